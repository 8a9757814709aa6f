"""12. Running: the runs that findings lack, look by look; then what they gave, under results/."""

import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from llava_lab.core import verdict_worlds
from llava_lab.core.checkout import git_commit
from llava_lab.core.lock import lock
from llava_lab.core.progress import say
from llava_lab.core.version import __version__
from llava_lab.experiment.rehearsal import rehearse
from llava_lab.experiment.sweep import Layers, Point
from llava_lab.experiment.sweeping import run as run_sweep
from llava_lab.experiment.verdict_runs import Chosen, choose
from llava_lab.report.claims import Claims, judge, keys, read_claims
from llava_lab.report.committed import commit, commit_again
from llava_lab.report.elsewhere import elsewhere, rules_before
from llava_lab.report.finding import Finding
from llava_lab.report.history import begin, note
from llava_lab.report.runs import read


@dataclass(frozen=True)
class Running:
    """Makes the runs of findings.

    Attributes:
        findings: All findings, by id: they share the level.
        results: The folder of results.
        runs: The folder of all runs.
        jobs: Runs at once; None for one a GPU, or one without GPUs.
        more: Files and overrides for all runs.
        every_point: Whether points of a sweep that a finding does not compare are run, too, for
            the seeds of its first look: for a published table, of which the finding is a part.
        one_look: Whether to stop once the next look of each finding is taken, decided or not.
    """

    findings: Mapping[str, Finding]
    results: Path
    runs: Path
    jobs: int | None = None
    more: Layers = ()
    every_point: bool = False
    one_look: bool = False

    @cached_property
    def git(self) -> str | None:
        """Commit of the code."""
        return git_commit()

    def run(self, ids: Sequence[str]) -> Claims:
        """Make the runs of findings until each is decided, has had its last look, or its next.

        Runs that are under results/ already, made with the same files and options, count, those
        that another sweep has made, too. A run that fails does not stop the others; at the end it
        is said.

        Args:
            ids: The findings.

        Raises:
            ValueError: If a rule or a sweep is not committed, or runs failed.
        """
        check_written(self.findings.values())
        self.rehearse(ids)
        for id in ids:
            begin(self.results, self.findings[id], self.git)
        with lock(self.runs / ".report.lock", "report --run", wait=False), verdict_worlds.opened():
            claims = self._noted()
            while sweeps := list(self.lacking(ids, claims)):
                if sum(self._take(sweep, claims) for sweep in sweeps):
                    claims = self._noted()
                    continue
                failed = []
                for sweep in sweeps:
                    failed += [] if self._sweep(sweep) else [sweep.name]
                    claims = self._noted()  # whatever stops the next sweep
                if failed:
                    raise ValueError(
                        f"runs of {', '.join(failed)} failed, and a look waits for all of its "
                        "runs; the same command tries them again"
                    )
                if self.one_look:
                    break
        return claims

    def rehearse(self, ids: Sequence[str]) -> None:
        """Refuse a finding that names a score which its runs would not have.

        Args:
            ids: The findings.
        """
        with TemporaryDirectory() as folder:
            for sweep in self.lacking(ids, self.claims()):
                scores = rehearse(sweep, sweep.points()[0], Path(folder), self.more).scores
                for finding in self.findings.values():
                    if finding.sweep.name == sweep.name:
                        finding.check_scores(scores, f"sweep {sweep.name}")

    def claims(self) -> Claims:
        """The claims by the runs that were made with the present version, files and options."""
        found = read_claims(self.findings, self.results, self.more)
        runs = {
            key: each
            for key, each in found.runs.items()
            if key not in found.outdated and each.run.version == __version__
        }
        return judge(self.findings, runs, found.histories)

    def lacking(self, ids: Sequence[str], claims: Claims) -> Iterator[Chosen]:
        """The runs that the next looks lack: a sweep each, of the points that are asked for."""
        sweeps: dict[str, list[tuple[str, int]]] = {}
        of: dict[str, Finding] = {}
        for finding in (self.findings[id] for id in ids):
            look = claims.verdicts[finding.id].next
            wanted = [] if look is None else keys(finding, look)
            if self.every_point:
                wanted += keys(finding, finding.looks[0], every_point=True)
            for name, point, seed in wanted:
                if (name, point, seed) not in claims.runs:
                    sweeps.setdefault(name, []).append((point, seed))
                    of[name] = finding
        for name, wanted in sweeps.items():
            yield choose(of[name].sweep, wanted, of[name].draw, self.more)

    def to_make(self, ids: Sequence[str], claims: Claims) -> Iterator[Chosen]:
        """Of the runs that are lacking those that no other sweep has made."""
        for sweep in self.lacking(ids, claims):
            made = [point for point, _ in elsewhere(sweep, claims.runs, self.more)]
            if left := tuple(point for point in sweep.chosen if point not in made):
                yield replace(sweep, chosen=left)

    def most(self, ids: Sequence[str], claims: Claims) -> int:
        """Number of runs that are lacking if every undecided finding goes to its last look."""
        undecided = [self.findings[id] for id in ids if claims.verdicts[id].next is not None]
        wanted = {key for finding in undecided for key in keys(finding, finding.looks[-1])}
        if self.every_point:
            asked = [self.findings[id] for id in ids]
            wanted |= {key for each in asked for key in keys(each, each.looks[0], every_point=True)}
        return len(wanted - claims.runs.keys())

    def _begin(self, sweep: Chosen) -> None:
        """Write down the rules that runs are evidence for."""
        of = {each.id: each for point in sweep.points() for each in self._of(sweep, point)}
        for finding in of.values():
            begin(self.results, finding, self.git)

    def _sweep(self, sweep: Chosen) -> bool:
        """Make runs and keep them under results/; False if some failed."""
        self._begin(sweep)
        try:
            run_sweep(sweep, self.runs, self.jobs, self.more)
        except ValueError as error:
            say(f"sweep {sweep.name}: {error}")
            return False
        finally:  # also of those that were done before a signal came
            self._commit(sweep)
        return True

    def _take(self, sweep: Chosen, claims: Claims) -> int:
        """Keep runs that other sweeps have made under this one, too; how many these are."""
        found = list(elsewhere(sweep, claims.runs, self.more))
        self._begin(replace(sweep, chosen=tuple(point for point, _ in found)))
        for point, run in found:
            rules = rules_before(run, self._of(sweep, point))
            record = sweep.record(self.runs, point, self.more).stem
            commit_again(self.results, sweep.name, point, record, run, rules)
        if found:
            names = sorted({run.sweep for _, run in found})
            say(f"sweep {sweep.name}: {len(found)} runs were made by {', '.join(names)}")
        return len(found)

    def _commit(self, sweep: Chosen) -> None:
        for point, results in sweep.recorded(self.runs, self.more):
            record = sweep.record(self.runs, point, self.more).stem
            rules = {each.id: each.sha256 for each in self._of(sweep, point)}
            commit(self.results, sweep.name, point, record, read(results), rules)

    def _of(self, sweep: Chosen, point: Point) -> list[Finding]:
        """Findings that a run is evidence for."""
        return [
            each
            for each in self.findings.values()
            if each.sweep.name == sweep.name and point.name in each.points
        ]

    def _noted(self) -> Claims:
        """The claims, their verdicts written down."""
        claims = self.claims()
        for id, verdict in claims.verdicts.items():
            used = {run.name: run.sha256 for run in claims.used(id)}
            note(self.results, verdict, used, self.git)
        return claims


def check_written(findings: Iterable[Finding]) -> None:
    """Refuse rules and sweeps that are not committed as they are; outside a checkout none is.

    Args:
        findings: The findings.

    Raises:
        ValueError: Names the first file.
    """
    for file in sorted({file for each in findings for file in (each.path, each.sweep_path)}):
        command = ["git", "-C", str(file.parent), "status", "--porcelain", "--ignored", "--"]
        try:
            done = subprocess.run([*command, file.name], capture_output=True, text=True)
        except OSError:  # there is no git
            return
        if done.returncode == 0 and done.stdout:
            raise ValueError(
                f"{file} is not committed as it is. A rule is written down before its runs: commit "
                "it, and then run it"
            )
