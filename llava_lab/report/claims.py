"""12. Claims: findings and the runs under results/ -> the state of all claims."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from llava_lab.experiment.sweep import Layers
from llava_lab.experiment.verdict_runs import choose
from llava_lab.report.committed import Committed, read_results
from llava_lab.report.estimate import Difference, difference_of
from llava_lab.report.family import Verdict, verdicts
from llava_lab.report.finding import Contrast, Finding, Look
from llava_lab.report.history import TYPED, History, check_runs, history_of
from llava_lab.report.runs import version_notes
from llava_lab.report.verdict import Evidence, measure

Key = tuple[str, str, int]  # sweep, point and seed
Runs = Mapping[Key, Committed]


@dataclass(frozen=True)
class Claims:
    """All findings with what is known of them.

    Attributes:
        findings: All findings, by id.
        runs: The runs that verdicts are made from.
        verdicts: What the rules say, by id.
        histories: What became of each finding, by id.
        outdated: Which runs were made with other files or options than their sweeps have now.
    """

    findings: Mapping[str, Finding]
    runs: Runs
    verdicts: Mapping[str, Verdict]
    histories: Mapping[str, History]
    outdated: Collection[Key] = ()

    def used(self, id: str) -> list[Committed]:
        """The runs that a verdict is from."""
        verdict = self.verdicts[id]
        if verdict.evidence is None:
            return []
        return [self.runs[key] for key in keys(verdict.finding, verdict.evidence.look)]

    def beside(self, id: str) -> list[Committed]:
        """Runs of points that a finding's sweep has and no rule compares, in the sweep's order."""
        finding = self.findings[id]
        compared = {
            point
            for each in self.findings.values()
            if each.sweep.name == finding.sweep.name
            for point in each.points
        }
        others = dict.fromkeys(point.name for point in finding.sweep.points())
        return [
            run
            for other in others
            for (sweep, point, _), run in self.runs.items()
            if sweep == finding.sweep.name and point == other not in compared
        ]

    def remarks(self, id: str) -> list[str]:
        """What has to be known beside a verdict: whether rule or runs have changed since."""
        finding, history, used = self.findings[id], self.histories[id], self.used(id)
        found = []
        if history.rule is not None and history.rule != finding.sha256:
            found.append("The rule was changed after its last run.")
        for count, what in (
            (sum(id not in run.rules for run in used), "made before this rule was written"),
            (
                sum(run.rules.get(id, finding.sha256) != finding.sha256 for run in used),
                "made for an earlier rule",
            ),
            (
                sum((run.sweep, run.point, run.seed) in self.outdated for run in used),
                f"made with other files or options than sweep {finding.sweep.name} has now",
            ),
        ):
            if count:
                found.append(f"{count} of {len(used)} runs were {what}.")
        found += version_notes(run.run for run in used)
        for event in history.earlier:
            if event["event"] == TYPED:
                by = "typed by hand"
            elif event["rule"] != history.rule:
                by = "by an earlier rule"
            else:
                by = f"by earlier runs of {event['look']} seeds"
            found.append(f"{event['date']}: {event['verdict']}, {by}.")
        return found


def read_claims(findings: Mapping[str, Finding], folder: Path, more: Layers = ()) -> Claims:
    """Judge all findings by the runs under a folder of results.

    Args:
        findings: All findings, by id.
        folder: The folder.
        more: Files and overrides that the runs were made with, beside their sweeps'.

    Raises:
        ValueError: If a file is damaged, a run lacks a score that a finding names, or a history has
            lost something.
    """
    runs = read_results(folder) if folder.is_dir() else []
    histories = {id: history_of(folder, id) for id in findings}
    check_runs(histories, runs)
    claims = judge(findings, {(run.sweep, run.point, run.seed): run for run in runs}, histories)
    known = {each.sweep.name for each in findings.values()}
    present = fresh(list(findings.values()), claims.runs, more)
    outdated = {key for key in claims.runs if key[0] in known and key not in present}
    return replace(claims, outdated=outdated)


def judge(findings: Mapping[str, Finding], runs: Runs, histories: Mapping[str, History]) -> Claims:
    """Judge all findings by some runs.

    Args:
        findings: All findings, by id.
        runs: The runs, by sweep, point and seed.
        histories: Histories, by id.
    """

    def measured(finding: Finding, look: Look) -> Evidence | None:
        if not all(key in runs for key in keys(finding, look)):
            return None
        return measure(finding, look, partial(_compare, finding, runs))

    return Claims(findings, runs, verdicts(findings, measured), histories)


def keys(finding: Finding, look: Look, every_point: bool = False) -> list[tuple[str, str, int]]:
    """Sweep, point and seed of the runs of a look: of points that are compared, or of every one."""
    points = finding.points
    if every_point:
        points = list(dict.fromkeys(point.name for point in finding.sweep.points()))
    return [(finding.sweep.name, point, seed) for point in points for seed in finding.seeds(look)]


def fresh(findings: Sequence[Finding], runs: Runs, more: Layers = ()) -> Runs:
    """Runs whose files and options are those that findings and their sweeps have now.

    Args:
        findings: The findings, in whose sweeps they are.
        runs: The runs.
        more: Files and overrides for all points.
    """
    found: dict[tuple[str, str, int], Committed] = {}
    for finding in findings:
        known = {(finding.sweep.name, point.name) for point in finding.sweep.points()}
        left = [key for key in runs if key not in found and key[:2] in known]
        wanted = [(point, seed) for _, point, seed in left]
        chosen = choose(finding.sweep, wanted, finding.draw, more)
        for point in chosen.points():
            key = (finding.sweep.name, point.name, point.seed)
            if chosen.record(Path(), point, more).stem == runs[key].record:
                found[key] = runs[key]
    return found


def _compare(
    finding: Finding, runs: Runs, contrast: Contrast, score: str, seeds: Sequence[int]
) -> Difference:
    pairs = []
    for seed in seeds:
        both = [
            runs[finding.sweep.name, point, seed]
            for point in (contrast.treatment, contrast.against)
        ]
        for run in both:
            finding.check_scores(run.points, run.name)
        pairs.append((both[0].points[score], both[1].points[score]))
    return difference_of(pairs)
