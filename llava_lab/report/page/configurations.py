"""12. Configurations: runs -> those that differ in their seed alone, by what sets them apart."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llava_lab.experiment.compose import flat, write_value
from llava_lab.report.committed import Committed
from llava_lab.report.matching import row_of
from llava_lab.report.placed import Group
from llava_lab.report.published import Published
from llava_lab.report.rows import ScoreRow, score_rows
from llava_lab.report.runs import RunResults, cost
from llava_lab.report.table import grouped

LONG = 70  # letters of a label that fit a plot
SEED = "seed_everything"
CLASS = ".class_path"
ABSENT = object()


@dataclass(frozen=True)
class Configuration:
    """Runs of one configuration that differ in their seeds.

    Attributes:
        label: What sets it apart from the others of the page.
        family: Its experiment and scale.
        runs: The runs.
        options: Its options by dotted name; empty where there is no config.yaml.
    """

    label: str
    family: str
    runs: list[RunResults]
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def scores(self) -> dict[str, ScoreRow]:
        """Scores by "benchmark/score": means over seeds where there are several."""
        rows = score_rows(self.runs)
        return {f"{row.benchmark}/{row.score}": row for row in rows}

    @property
    def group(self) -> Group:
        """The label with the runs, as tables take them."""
        return self.label, self.runs

    def cost(self, key: str) -> float | None:
        """Mean of one entry of `cost` over runs; None where one lacks it."""
        return cost(self.runs, key)

    @property
    def seconds(self) -> float:
        """Mean training time of all stages, those reused from other runs included."""
        stages = [stage.get("seconds") or 0.0 for r in self.runs for stage in r.results["stages"]]
        return sum(stages) / len(self.runs)


def configurations(runs: Sequence[RunResults]) -> list[Configuration]:
    """Group runs that differ in their seeds alone, and call each by what differs."""
    groups = grouped(runs)
    options = [_options(group[0]) for group in groups]
    families: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        families.setdefault(_family(group[0].results), []).append(number)
    labels = [""] * len(groups)
    for family, members in families.items():
        shown = differing([options[number] for number in members])
        for number in members:
            own = options[number]
            parts = [f"{name} {_short(own[key])}" for key, name in shown.items() if key in own]
            head = [family] if len(families) > 1 or not parts else []
            labels[number] = _cut(", ".join([*head, *parts]))
    labels = _apart(labels, [group[0].path.parent for group in groups])
    return [
        Configuration(label, _family(group[0].results), group, own)
        for label, group, own in zip(labels, groups, options, strict=True)
    ]


def _apart(labels: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Labels, those of several with the run's folder behind: its name, or its path if need be.

    Runs without config.yaml may have one label, and so may those that were made twice.
    """
    pairs = list(zip(labels, folders, strict=True))
    named = [f"{each} ({at.name})" if labels.count(each) > 1 else each for each, at in pairs]
    return [
        f"{each} ({at})" if named.count(name) > 1 else name
        for name, (each, at) in zip(named, pairs, strict=True)
    ]


def committed(runs: Iterable[Committed]) -> list[Configuration]:
    """Runs under results/, by sweep, point and version; each seed has a world of its own."""
    points: dict[tuple[str, str, str | None], list[RunResults]] = {}
    for each in runs:
        points.setdefault((each.sweep, each.point, each.run.version), []).append(each.run)
    names = Counter((sweep, point) for sweep, point, _ in points)
    return [
        Configuration(
            f"{sweep}: {point}" + (f" ({version})" if names[sweep, point] > 1 else ""),
            sweep,
            found,
            _options(found[0]),
        )
        for (sweep, point, version), found in points.items()
    ]


def rows_in(table: Published, runs: Iterable[Committed]) -> list[Group]:
    """Runs under results/ that are rows of a published table, by sweep and point."""
    groups = [each.group for each in committed(runs)]
    return [group for group in groups if row_of(table, group[1][0].config or {})]


def _options(run: RunResults) -> dict[str, Any]:
    """Options by dotted name, without the seed, and the version; none without config.yaml."""
    if run.config is None:
        return {}
    options = {**dict(flat(dict(run.config))), "llava_lab": run.version}
    options.pop(SEED, None)
    return options


def differing(options: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Keys in which options differ, each with a short name for it.

    Of keys that always change together, such as the views of several stages, one stands for all:
    that of a class, or else the shortest.
    """
    columns: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for each in options for key in each):
        values = [repr(each.get(key, ABSENT)) for each in options]
        if len(set(values)) > 1:
            columns[key] = values
    kept: dict[str, str] = {}
    for key, values in columns.items():
        alike = repr([values.index(value) for value in values])
        kept[alike] = min(kept.get(alike, key), key, key=_rank)
    lasts = [_last(key) for key in kept.values()]
    return {key: _last(key) if lasts.count(_last(key)) == 1 else key for key in kept.values()}


def _rank(key: str) -> tuple[bool, int]:
    return not key.endswith(CLASS), len(key)


def _last(key: str) -> str:
    """The end of a dotted key; of a class, what the class is of."""
    return key.removesuffix(CLASS).split(".")[-1]


def _short(value: Any) -> str:
    """A value in a label; of a class, its name."""
    text = write_value(value)
    return text.rpartition(".")[2] if text.startswith("llava_lab.") else text


def _family(results: Mapping[str, Any]) -> str:
    return f"{results['experiment']}, {results['scale'] or 'own'}"


def _cut(label: str) -> str:
    return label if len(label) <= LONG else f"{label[: LONG - 1]}…"
