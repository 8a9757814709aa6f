"""12. Placed: runs of one configuration -> the rows of a published table that they are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava_lab.report.benchmarks import asked_otherwise
from llava_lab.report.matching import nearest, row_of
from llava_lab.report.published import Column, Published
from llava_lab.report.rows import ScoreRow, score_rows
from llava_lab.report.runs import RunResults

Group = tuple[str, list[RunResults]]  # a label, and runs that differ in their seeds alone
REASONS = 3  # that a note names


@dataclass(frozen=True)
class Ours:
    """Runs of one configuration that differ in their seeds, as a table shows them.

    Attributes:
        label: What they are called in notes.
        scale: Their scale.
        runs: The runs.
        scores: Their scores by "benchmark/score"; means, where there are several runs.
    """

    label: str
    scale: str
    runs: list[RunResults]
    scores: dict[str, ScoreRow]

    @classmethod
    def of(cls, group: Group) -> "Ours":
        """Read the scores of a group: its label and its runs."""
        label, runs = group
        scores = {f"{row.benchmark}/{row.score}": row for row in score_rows(runs)}
        return cls(label, runs[0].results["scale"] or "own", runs, scores)

    @property
    def usual(self) -> list[str]:
        """The score of each benchmark that tables show: its accuracy, or else its first one."""
        found: dict[str, str] = {}
        for key, row in self.scores.items():
            if row.score == "accuracy" or row.benchmark not in found:
                found[row.benchmark] = key
        return list(found.values())

    def measures(self, column: Column, key: str) -> bool:
        """Whether a score of a run of the published size is the same as a published column."""
        row, same = self.scores[key], column.ours
        if same is None or self.scale != "paper" or row.score != same["score"]:
            return False
        return column.asked_by(self._asked(row.benchmark))

    def apart(self, column: Column, key: str) -> str | None:
        """Why a score does not compare with the column that it measures; None where it does."""
        name = self.scores[key].benchmark
        for run in self.runs:
            counts = run.results.get("answered", {}).get(name)
            if counts and counts["answered"] < counts["questions"]:
                return f"{counts['answered']} of {counts['questions']} questions were answered"
        if judges := self._other_judge(column, name):
            mine, its = judges
            return f"judged by {mine}, {column.name} by {its}; scores of two judges do not compare"
        if otherwise := asked_otherwise(column, self._asked(name)):
            return f"asked otherwise than {column.name}: {otherwise}"
        return None

    def _asked(self, benchmark: str) -> Mapping[str, Any]:
        """A benchmark's options."""
        config = self.runs[0].config or {"data": {"benchmarks": []}}
        asked = (each for each in config["data"]["benchmarks"] if each["name"] == benchmark)
        return next(asked, {})

    def _other_judge(self, column: Column, benchmark: str) -> tuple[str, str] | None:
        """Who judged a benchmark and who a published column, where those are not the same."""
        published = (column.ours or {}).get("judge")
        judge = self.runs[0].results.get("judges", {}).get(benchmark, {}).get("model")
        return (judge, published) if published and judge != published else None


Placed = dict[str, dict[str, Ours]]  # by scale, then by row


def place(table: Published, groups: Sequence[Group]) -> tuple[Placed, list[str]]:
    """Put groups into their rows; notes say which have none, or share one.

    Groups of one configuration, as points of two sweeps may be, are one: that of most runs.
    """
    found: dict[tuple[str, str], list[Ours]] = {}
    notes = []
    for group in groups:
        config = group[1][0].config
        if config is None:
            notes.append(f"{group[0]}: no config.yaml beside its results, by which to place it.")
        elif row := row_of(table, config):
            each = Ours.of(group)
            found.setdefault((each.scale, row.name), []).append(each)
        else:
            notes.append(_unplaced(table, group[0], config))
    placed: Placed = {}
    for (scale, name), sharing in found.items():
        sharing.sort(key=lambda each: len(each.runs))
        several = list({repr(each.runs[0].recipe()): each for each in sharing}.values())
        if len(several) > 1:
            labels = ", ".join(each.label for each in several)
            notes.append(
                f"{name}: several configurations or versions are this row, and none is placed: "
                f"{labels}."
            )
        else:
            placed.setdefault(scale, {})[name] = several[0]
    return placed, list(dict.fromkeys(notes))


def _unplaced(table: Published, label: str, config: Mapping[str, Any]) -> str:
    near = nearest(table, config)
    if near is None:
        return f"{label}: no row of this table can be reproduced at its scale."
    row, reasons = near
    more = f" and {len(reasons) - REASONS} more" if len(reasons) > REASONS else ""
    return (
        f"{label} is none of the rows. Nearest is {row.name}: {'; '.join(reasons[:REASONS])}{more}."
    )


def score_keys(ours: Iterable[Ours], chosen: Sequence[str]) -> list[str]:
    """Names of the scores to show of a scale."""
    groups = list(ours)
    known = dict.fromkeys(key for each in groups for key in each.scores)
    if odd := [key for key in chosen if key not in known]:
        raise ValueError(
            f"--scores: {odd[0]!r} is in none of the runs; there are {', '.join(known)}"
        )
    return list(chosen) or list(dict.fromkeys(key for each in groups for key in each.usual))
