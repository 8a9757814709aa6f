"""12. lmms-eval: its logs -> results beside ours.

`DATE_results.json` has a value of each task's metrics, and, where lmms-eval ran with --log_samples,
`DATE_samples_TASK.jsonl` has what every question gave. Where the mean of a metric's samples is its
value, questions have points, as ours do; elsewhere there is the standard error that is stated. What
a metric's number is of is known by its name (configs/paper/lmms_eval.yaml), never by its size.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from math import inf, isfinite
from pathlib import Path
from typing import Any

from llava_lab.core.below import files_below
from llava_lab.core.yaml_file import read_mapping
from llava_lab.report.published import LMMS_EVAL, PAPER
from llava_lab.report.runs import RunResults

END = "_results.json"
ORIGIN = "lmms-eval"
WAY_OUT = "Is it a log of lmms-eval? Its --output_path has DATE_results.json below a folder a model"
NOT_METRICS = ("alias", "samples")
STDERR = "_stderr"
Z = 1.959964
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Unit:
    """What lmms-eval states of a metric.

    Attributes:
        of: What it states of a score that is 1 with us.
        most: The highest that it can state.
        columns: Columns of published tables that the metric is.
    """

    of: float
    most: float = inf
    columns: tuple[str, ...] = ()

    @property
    def bounds(self) -> list[float]:
        """Lowest and highest score, as ours are."""
        return [-inf if self is UNKNOWN else 0.0, self.most / self.of]


UNKNOWN = Unit(100)  # stands as it is stated, where ours are in per cent


@cache
def known_units() -> tuple[dict[str, dict[str, Unit]], dict[str, Unit]]:
    """Units of the metrics of tasks, and of those that have one in every task, by pattern."""
    known = read_mapping(PAPER / LMMS_EVAL)
    tasks = {
        task: {metric: _unit(given) for metric, given in metrics.items()}
        for task, metrics in known["tasks"].items()
    }
    return tasks, {pattern: _unit(given) for pattern, given in known["any"].items()}


def _unit(given: Mapping[str, Any]) -> Unit:
    return Unit(given["of"], given.get("most", given["of"]), tuple(given.get("columns", ())))


def unit_of(task: str, metric: str) -> Unit:
    """The unit of a task's metric, without its filter; UNKNOWN where it is not known."""
    tasks, every = known_units()
    if metric in tasks.get(task, {}):
        return tasks[task][metric]
    return next((u for pattern, u in every.items() if fnmatchcase(metric, pattern)), UNKNOWN)


def is_log(path: Path) -> bool:
    """Whether a file is named as a log of lmms-eval is."""
    return path.name.endswith(END) and path.name != END


def logs_in(folder: Path) -> list[Path]:
    """Logs of lmms-eval in a folder and below it.

    Raises:
        ValueError: If one model's folder has several.
    """
    found = [path for path in files_below(folder) if is_log(path)]
    for path in found:
        beside = [each.name for each in found if each.parent == path.parent]
        if len(beside) > 1:
            raise ValueError(
                f"{path.parent}: {len(beside)} runs of lmms-eval, {', '.join(beside)}; name the "
                "file of one"
            )
    return found


def read_log(path: Path) -> RunResults:
    """Read the results of one run of lmms-eval.

    Raises:
        ValueError: If the file, or one of samples beside it, is damaged; names it.
    """
    content = _object(path)
    tasks = content.get("results")
    if not isinstance(tasks, Mapping) or not tasks:
        raise ValueError(f"{path}: has no results. {WAY_OUT}")
    benchmarks: dict[str, dict[str, Any]] = {}
    points: dict[str, Any] = {}
    notes: list[str] = []
    columns: dict[str, tuple[str, str]] = {}
    for task, given in tasks.items():
        metrics = _metrics(path, task, given)
        if not metrics:
            continue  # a group without numbers of its own
        asked, whole = _counts(content, task, given)
        units = {metric: unit_of(task, _name(metric)) for metric in metrics}
        _check_units(path, task, metrics, units)
        samples = _samples(path, task)
        kept = {} if samples is None else _points(samples, metrics, units)
        scores = {m: _score(v, given, m, units[m], asked) for m, v in metrics.items()}
        benchmarks[task] = scores
        if kept and samples is not None:
            points[task] = _benchmark(samples, kept)
        notes += _notes(task, scores, metrics, units, kept)
        if asked < whole:
            notes.append(f"{task}: {asked} of {whole} questions, which is no column of a table.")
        else:
            columns |= {
                each: (task, m) for m in metrics if m == _name(m) for each in units[m].columns
            }
    if not benchmarks:
        raise ValueError(f"{path}: no task has a number. {WAY_OUT}")
    results = {
        **{"experiment": _model(content, path), "scale": None, "seed": 0, "stages": []},
        **{"benchmarks": benchmarks, "cost": {"visual_tokens_mean": None}},
        **{"origin": ORIGIN, "notes": notes, "columns": columns},
    }
    return RunResults(path, results, kept={"benchmarks": points})


def _object(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}). {WAY_OUT}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: {type(content).__name__} where an object belongs. {WAY_OUT}")
    return content


def _model(content: Mapping[str, Any], path: Path) -> str:
    """What the model is called: its own name, or the folder's."""
    name = content.get("model_name")
    return str(name) if name else path.parent.name


def _metrics(path: Path, task: str, given: Any) -> dict[str, float]:
    """Numbers of a task by metric; the filter stands behind where there is one."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{path}: task {task} is {given!r:.100}, no mapping. {WAY_OUT}")
    found = {}
    for key, value in given.items():
        metric, _, chosen = key.partition(",")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if key in NOT_METRICS or not chosen or not number or STDERR in metric:
            continue
        if not isfinite(value):
            raise ValueError(f"{path}: task {task}: {key} is {value}, which is no number")
        found[metric if chosen == "none" else f"{metric},{chosen}"] = float(value)
    return found


def _name(metric: str) -> str:
    """A metric's name without its filter."""
    return metric.partition(",")[0]


def _counts(content: Mapping[str, Any], task: str, given: Mapping[str, Any]) -> tuple[int, int]:
    """Questions that a task asked, and those that it has; as many where that is not stated."""
    known = content.get("n-samples", {}).get(task, {})
    asked = known.get("effective", given.get("samples"))
    asked = int(asked) if isinstance(asked, int | float) else 0
    whole = known.get("original")
    return asked, int(whole) if isinstance(whole, int | float) else asked


def _check_units(
    path: Path, task: str, metrics: Mapping[str, float], units: Mapping[str, Unit]
) -> None:
    """Refuse a number that cannot be in the unit that its metric is known to have."""
    for metric, value in metrics.items():
        unit = units[metric]
        if unit is not UNKNOWN and not 0 <= value <= unit.most:
            raise ValueError(
                f"{path}: task {task}: {metric} is {value:g}, which is not from 0 to "
                f"{unit.most:g}, as lmms-eval states it. Did another release write it?"
            )


def _samples(path: Path, task: str) -> list[Mapping[str, Any]] | None:
    """Lines of a task's samples, in the order of its documents; None where they were not logged."""
    date = path.name.removesuffix(END)
    file = path.with_name(f"{date}_samples_{task}.jsonl")
    if not file.is_file():
        return None
    lines = []
    # Not str.splitlines, which parts an answer at U+2028, too.
    texts = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            lines.append((int(line["doc_id"]), line))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file}, line {number}: damaged ({error!r}). {WAY_OUT}") from error
    ids = [each for each, _ in lines]
    if len(set(ids)) < len(ids):
        raise ValueError(
            f"{file}: {len(ids) - len(set(ids))} documents stand in it twice, as if two runs had "
            "written it; remove the lines of one"
        )
    return [line for _, line in sorted(lines, key=lambda each: each[0])]


def _points(
    samples: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, float],
    units: Mapping[str, Unit],
) -> dict[str, list[float]]:
    """What each question gave the metrics that are means of their samples."""
    found = {}
    for metric, value in metrics.items():
        each = [_number(line.get(_name(metric))) for line in samples]
        known = [number for number in each if number is not None]
        if not known or len(known) < len(each) or not all(0 <= n <= 1 for n in known):
            continue
        if abs(sum(known) / len(known) - value / units[metric].of) < TOLERANCE:
            found[metric] = known
    return found


def _number(value: Any) -> float | None:
    """A sample's number: itself, or the score of what a task keeps of it."""
    value = value.get("score") if isinstance(value, Mapping) else value
    number = isinstance(value, int | float) and isfinite(value)
    return float(value) if number else None


def _score(
    value: float, given: Mapping[str, Any], metric: str, unit: Unit, asked: int
) -> dict[str, Any]:
    name, _, chosen = metric.partition(",")
    error = given.get(f"{name}{STDERR},{chosen or 'none'}")
    ends = unit.bounds
    if isinstance(error, int | float) and isfinite(error):
        ends = [(value - Z * error) / unit.of, (value + Z * error) / unit.of]
    return {"value": value / unit.of, "ci95": ends, "n": asked, "as_stated": unit is UNKNOWN}


def _benchmark(
    samples: Sequence[Mapping[str, Any]], kept: Mapping[str, list[float]]
) -> dict[str, Any]:
    """A task as points.json has a benchmark; its pictures are not known."""
    ids = [str(line["doc_id"]) for line in samples]
    asked = [[line["doc_id"], line.get("doc_hash")] for line in samples]
    scores = {metric: {"got": got, "of": 1, "top": 1.0} for metric, got in kept.items()}
    one_pass = {"places": list(range(len(ids))), "split": False, "means": [], "scores": scores}
    return {
        "questions": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        "ids": ids,
        "clusters": [f"document {each}" for each in ids],
        "categories": [""] * len(ids),
        "passes": {"": one_pass},
    }


def _notes(
    task: str,
    scores: Mapping[str, Any],
    metrics: Mapping[str, float],
    units: Mapping[str, Unit],
    kept: Mapping[str, Any],
) -> list[str]:
    notes = []
    odd = [f"{metric} {metrics[metric]:.6g}" for metric, unit in units.items() if unit is UNKNOWN]
    if odd:
        notes.append(f"{task}: {', '.join(odd)} as lmms-eval states it, in a unit of its own.")
    lost = [m for m, s in scores.items() if m not in kept and s["ci95"] == units[m].bounds]
    if lost:
        notes.append(
            f"{task}: no interval is known of {', '.join(lost)}: neither a standard error nor "
            "samples whose mean it is (--log_samples)."
        )
    if kept:
        notes.append(f"{task}: questions count as independent, as their pictures are not logged.")
    return notes
