"""12. Runs: folders and files -> the checked contents of their results.json."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any, cast

from llava_lab.core.below import files_below
from llava_lab.core.records import file_sha256, read_record
from llava_lab.core.yaml_file import parse_value
from llava_lab.evaluate.points import NAME as POINTS
from llava_lab.evaluate.points import PASSES
from llava_lab.report.points import WAY_OUT, Key, Points, parse_points

NAME = "results.json"
KEYS = ("experiment", "scale", "seed", "stages", "benchmarks", "cost")
KINDS = {
    **{"experiment": (str,), "scale": (str, type(None)), "seed": (int,), "stages": (list,)},
    **{"benchmarks": (dict,), "cost": (dict,)},
}
COUNTS = ("steps", "samples", "tokens", "seconds", "loss_first", "loss_last", "flops")
SPENT = ("step", "samples", "tokens", "flops")  # until a point of a trajectory
SCORE = ("value", "ci95", "n")


@dataclass(frozen=True)
class RunResults:
    """A finished run: its results.json and the content.

    Attributes:
        path: The file.
        results: Its content.
        kept: Content of points.json, where it does not stand beside the file.
        text: The resolved configuration, where it does not.
    """

    path: Path
    results: dict[str, Any]
    kept: Mapping[str, Any] | None = None
    text: str | None = None

    def visual_tokens(self, benchmark: str) -> float | None:
        """Mean visual tokens of a benchmark's questions, or of training; None where unknown."""
        asked = self.results.get("visual_tokens", {})
        return asked.get(benchmark, self.results["cost"].get("visual_tokens_mean"))

    def recipe(self) -> object:
        """What is equal for two runs that differ only in their seed.

        That is the lab's version and the configuration beside the file, less the seed. Where the
        file stands alone, sizes and steps must do.
        """
        if (text := self._config()) is not None:
            lines = text.splitlines()
            return [self.version, *(x for x in lines if not x.startswith("seed_everything:"))]
        sizes = ("parameters", "trainable_parameters", "visual_tokens_mean")
        steps = [(stage["name"], stage.get("steps")) for stage in self.results["stages"]]
        return [self.version, *(self.results["cost"].get(key) for key in sizes), *steps]

    @property
    def version(self) -> str | None:
        """Version of the lab that made it, or None where that is not said."""
        return self.results.get("versions", {}).get("llava_lab")

    @cached_property
    def config(self) -> Mapping[str, Any] | None:
        """The resolved configuration, or None where the file stands alone."""
        text = self._config()
        return None if text is None else parse_value(text)

    @cached_property
    def points(self) -> dict[Key, Points]:
        """What each question gave each score, by benchmark and score.

        Nothing where that was not kept: older runs and other tools' results have scores alone.

        Raises:
            ValueError: If the file is damaged, or is not that of the results beside it.
        """
        benchmarks = self.results["benchmarks"]
        if self.kept is not None:
            return parse_points(self.kept, f"{self.path}", benchmarks)
        path = self.path.with_name(POINTS)
        if not path.is_file():
            return {}
        if file_sha256(path) != self.results.get("points_sha256"):
            raise ValueError(
                f"{path}: damaged, or not the points of the {self.path.name} beside it. {WAY_OUT}"
            )
        return parse_points(read_record(path, {"benchmarks": dict}, WAY_OUT), f"{path}", benchmarks)

    @cached_property
    def scores(self) -> dict[Key, dict[str, Any]]:
        """Scores as the results state them."""
        benchmarks = self.results["benchmarks"]
        return {(name, key): score for name, of in benchmarks.items() for key, score in of.items()}

    @property
    def sighted(self) -> list[Key]:
        """The scores that were measured with the right images."""
        return [key for key in self.scores if not key[1].startswith(PASSES)]

    def _config(self) -> str | None:
        """The text of the configuration.

        Raises:
            ValueError: If it is not that of the results.
        """
        if self.text is not None:
            return self.text
        path = self.path.with_name("config.yaml")
        if not path.is_file():
            return None
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.results.get("config_sha256"):
            raise ValueError(
                f"{path}: damaged, not the configuration of the {NAME} beside it. `fit` the "
                "run again to rewrite it."
            )
        return content.decode()


def tokens(runs: Sequence[RunResults], benchmark: str) -> float | None:
    """Mean visual tokens of a benchmark's questions over runs; None where one does not say."""
    return mean_of_known([run.visual_tokens(benchmark) for run in runs])


def cost(runs: Sequence[RunResults], key: str) -> float | None:
    """Mean of one entry of `cost` over runs; None where one lacks it."""
    return mean_of_known([run.results["cost"].get(key) for run in runs])


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Mean of numbers; None where one is not known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def version_notes(runs: Iterable[RunResults]) -> list[str]:
    """A note where runs were made by several versions of a package: not only options differ."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for package, version in run.results.get("versions", {}).items():
            found.setdefault(package, set()).add(str(version))
    several = [f"{name} {', '.join(sorted(e))}" for name, e in found.items() if len(e) > 1]
    return [f"Made by several versions: {'; '.join(several)}."] if several else []


def results_below(folder: Path) -> list[Path]:
    """Results files in a folder and below it, those of folders that are links too."""
    return [path for path in files_below(folder) if path.name == NAME]


def find(paths: Sequence[Path]) -> list[Path]:
    """Find the results files at, in or below the paths; each one once.

    Raises:
        FileNotFoundError: If there are none at one of them.
        ValueError: If one is another file.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_file() and path.suffix != ".json":
            raise ValueError(f"{path} has no results; give a run's folder or its {NAME}")
        if path.is_file():
            files = [path]
        elif not path.is_dir():
            raise FileNotFoundError(f"{path} does not exist; give a run's folder or its {NAME}")
        else:
            here = path / NAME
            files = [here] if here.is_file() else results_below(path)
        if not files:
            raise FileNotFoundError(
                f"no {NAME} in or below {path}; a run writes it when all of its stages are done"
            )
        found |= {file.resolve(): file for file in files}
    return list(found.values())


def read(path: Path) -> RunResults:
    """Read and check one results file.

    Raises:
        ValueError: If it is damaged or lacks something; names it.
    """
    found = read_record(path, {}, "`fit` the run again to rewrite it.")
    return RunResults(path, check(path, found))


def check(path: Path, results: dict[str, Any]) -> dict[str, Any]:
    """Check the content of a results file.

    Args:
        path: The file, for messages.
        results: Its content.

    Raises:
        ValueError: If something is lacking or no number; names it.
    """
    _need(results, KEYS, f"{path}")
    for key, kind in KINDS.items():
        if type(results[key]) not in kind:
            raise ValueError(f"{path}: {key} is {results[key]!r:.200}, which no run writes")
    for stage in results["stages"]:
        _need(stage, ("name",), f"{path}: a stage")
        if not isinstance(stage["name"], str):
            raise ValueError(f"{path}: a stage's name is {stage['name']!r:.200}")
        where = f"{path}: stage {stage['name']}"
        _numbers({key: stage[key] for key in COUNTS if key in stage}, where)
        _numbers(stage.get("held_out", {}), f"{where}: held_out")
        _check_trajectory(stage.get("trajectory", {"asked": {}, "points": []}), where)
    _numbers(results["cost"], f"{path}: cost")
    _numbers(results.get("visual_tokens", {}), f"{path}: visual_tokens")
    _check_benchmarks(results["benchmarks"], f"{path}")
    return results


def _check_benchmarks(benchmarks: Any, where: str) -> None:
    """Refuse a benchmark's scores without a value, or those of another pass alone."""
    _need(benchmarks, (), f"{where}: benchmarks")
    for benchmark, scores in benchmarks.items():
        _need(scores, (), f"{where}: benchmarks, {benchmark}")
        for metric, score in scores.items():
            for prefix in PASSES:
                if (seen := metric.removeprefix(prefix)) not in scores:
                    place = f"{where}: benchmarks, {benchmark}"
                    raise ValueError(f"{place}: {metric}, but no {seen} beside it")
            _check_score(score, f"{where}: benchmarks, {benchmark}, {metric}")


def _check_trajectory(trajectory: Any, where: str) -> None:
    """Refuse points of a trajectory that lack something or are not in their order."""
    _need(trajectory, ("asked", "points"), f"{where}: trajectory")
    if not isinstance(trajectory["points"], list):
        raise ValueError(f"{where}: trajectory, points is no list")
    before = 0
    for point in trajectory["points"]:
        _need(point, (*SPENT, "benchmarks"), f"{where}: a point of its trajectory")
        _numbers({key: point[key] for key in SPENT}, f"{where}: a point of its trajectory")
        if None in (point[key] for key in SPENT) or point["step"] <= before:
            raise ValueError(f"{where}: the points of its trajectory are not in their order")
        before = point["step"]
        _check_benchmarks(point["benchmarks"], f"{where}, step {before}")


def _check_score(score: Any, where: str) -> None:
    """Refuse a score without a finite value, interval and count."""
    _need(score, SCORE, where)
    ends = score["ci95"]
    numbers = [score["value"], *(ends if isinstance(ends, list) and len(ends) == 2 else [None])]
    if not all(isinstance(each, int | float) and isfinite(each) for each in numbers):
        raise ValueError(f"{where}: value {score['value']!r} with ci95 {ends!r} is no score")
    if not isinstance(score["n"], int) or score["n"] < 0:
        raise ValueError(f"{where}: n is {score['n']!r}; it is a number of questions")


def _numbers(mapping: object, where: str) -> None:
    """Refuse a mapping whose values are neither finite numbers nor null (unknown)."""
    _need(mapping, (), where)
    for key, value in cast(Mapping[str, Any], mapping).items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and isfinite(value)):
            raise ValueError(f"{where}: {key} is {value!r:.200}, which is no number")


def _need(mapping: object, keys: Sequence[str], where: str) -> None:
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{where}: {mapping!r} where a mapping belongs")
    missing = [key for key in keys if key not in mapping]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; `fit` the run again to rewrite it")
