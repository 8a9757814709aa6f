"""12. History: what became of a finding, look by look -> lines that are added and never changed.

`results/findings/F3.jsonl` has a line for each event, with a hash of it and of all lines before:

- `typed`: a verdict from before there were rules, with its numbers and where they stand.
- `rule`: the rule by which the next runs are judged, whole; before the first of them.
- `verdict`: what the rule said of a look, of which runs, at which commit.

A line that is changed, or lost in between, is found by its hash. A rule that is lost at the end is
found by the runs, which name the rule that they were made for.
"""

import datetime
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_lab.core.atomic import write
from llava_lab.core.records import canonical
from llava_lab.core.yaml_file import read_mapping
from llava_lab.report.committed import FINDINGS, Committed
from llava_lab.report.family import Verdict
from llava_lab.report.finding import Finding

TYPED, RULE, VERDICT = "typed", "rule", "verdict"
CHAIN = "chain"  # hash of an event and of those before it
WAY_OUT = "Take the committed file again (`git checkout`): lines are added, never changed."


@dataclass(frozen=True)
class History:
    """Events of a finding, the oldest first.

    Attributes:
        path: The file.
        events: The events.
    """

    path: Path
    events: tuple[Mapping[str, Any], ...]

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        """Events of a kind."""
        return [event for event in self.events if event["event"] == kind]

    @property
    def rule(self) -> str | None:
        """Hash of the rule that was last run."""
        rules = self.of(RULE)
        return rules[-1]["sha256"] if rules else None

    @property
    def earlier(self) -> list[Mapping[str, Any]]:
        """Verdicts that were replaced since: typed ones, of another rule, of other runs."""
        last = {(event["rule"], event["look"]): event for event in self.of(VERDICT)}
        replaced = [
            event
            for event in self.of(VERDICT)
            if event["rule"] != self.rule or last[event["rule"], event["look"]] is not event
        ]
        return [*self.of(TYPED), *replaced]

    def added(self, events: Iterable[Mapping[str, Any]]) -> "History":
        """The history with more events, written down."""
        lines, chain = [], ""
        for event in (*self.events, *events):
            chain = _chain(chain, event)
            lines.append(json.dumps({**event, CHAIN: chain}, ensure_ascii=False) + "\n")
        if lines:
            write(self.path, "".join(lines))
        return read_history(self.path)


def read_history(path: Path) -> History:
    """Read and check a history; one without a file is empty.

    Raises:
        ValueError: If a line was changed or is missing; names the line.
    """
    events, chain = [], ""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = text.removesuffix("\n").split("\n") if text else []  # U+2028 stands inside of a text
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            known, kind = event.pop(CHAIN), event["event"]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: damaged ({error!r}). {WAY_OUT}") from error
        chain = _chain(chain, event)
        if known != chain or kind not in (TYPED, RULE, VERDICT):
            raise ValueError(
                f"{path}, line {number}: this line was changed, or one before it is missing. "
                f"{WAY_OUT}"
            )
        events.append(event)
    return History(path, tuple(events))


def history_of(results: Path, id: str) -> History:
    """History of a finding in a folder of results."""
    return read_history(results / FINDINGS / f"{id}.jsonl")


def check_runs(histories: Mapping[str, History], runs: Sequence[Committed]) -> None:
    """Refuse runs that were made for a rule of which the history says nothing.

    Raises:
        ValueError: Names run and finding.
    """
    for run in runs:
        for id, sha256 in run.rules.items():
            known = histories[id].of(RULE) if id in histories else ()
            if id in histories and sha256 not in [event["sha256"] for event in known]:
                raise ValueError(
                    f"{run.run.path} was made for a rule of {id} that {histories[id].path} does "
                    f"not have. {WAY_OUT}"
                )


def begin(results: Path, finding: Finding, commit: str | None) -> History:
    """Write the rule down before its first run; nothing, where it is the last one's."""
    history = history_of(results, finding.id)
    if history.rule == finding.sha256:
        return history
    rule = {"event": RULE, "date": _today(), "git": commit, "sha256": finding.sha256}
    return history.added([{**rule, "text": read_mapping(finding.path)}])


def note(results: Path, verdict: Verdict, runs: Mapping[str, str], commit: str | None) -> History:
    """Write a verdict down, where it is not the last one.

    Args:
        results: The folder of results.
        verdict: The verdict.
        runs: Hash of each run's file that it is from, by name.
        commit: Commit of the code.
    """
    finding, evidence = verdict.finding, verdict.evidence
    history = history_of(results, finding.id)
    if evidence is None:
        return history
    digest = hashlib.sha256(json.dumps(runs, sort_keys=True).encode()).hexdigest()
    event = {
        "event": VERDICT,
        "rule": finding.sha256,
        "verdict": verdict.word,
        "look": evidence.look.seeds,
        "alpha": verdict.alpha,
        "family": verdict.family,
        "p": evidence.p,
        "effects": [_effect(moved, verdict) for moved in evidence.moved],
        "lacking": list(verdict.lacking),
        "runs": digest,
    }
    last = history.of(VERDICT)[-1:]
    if last and all(last[0].get(key) == event[key] for key in ("rule", "verdict", "look", "runs")):
        return history
    return history.added([{**event, "date": _today(), "git": commit}])


def _effect(moved: Any, verdict: Verdict) -> dict[str, Any]:
    low, high = moved.effect.interval(1 - (verdict.alpha or 0))
    shown = {"value": moved.effect.value, "low": low, "high": high}
    return {"score": moved.move.score, **{key: round(each, 6) for key, each in shown.items()}}


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _chain(before: str, event: Mapping[str, Any]) -> str:
    return hashlib.sha256(f"{before}{canonical(event)}".encode()).hexdigest()
