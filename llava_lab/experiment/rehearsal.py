"""Rehearsal: a run in a small world, as far as nothing is trained -> its stages and its scores."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_lab.evaluate.benchmark import Benchmark
from llava_lab.evaluate.points import PASSES
from llava_lab.experiment.experiment import Experiment
from llava_lab.experiment.sweep import Layers, Point, Sweep

# Small, and yet with questions of every category.
SMALL = {
    "tiny_world": {"train_images": 48, "eval_images": 100, "text_rows": 40},
    "tiny_videos": {"train_videos": 6, "eval_videos": 20},
}


@dataclass(frozen=True)
class Rehearsal:
    """What a run would be.

    Attributes:
        fingerprints: Of each stage. Stages that share one here do so in a whole world, too.
        scores: Names of all scores, each behind its benchmark's; of a benchmark with a judge,
            which is not asked here, the name of the benchmark and a slash.
    """

    fingerprints: dict[str, str]
    scores: list[str]


def rehearse(sweep: Sweep, point: Point, folder: Path, more: Layers = ()) -> Rehearsal:
    """Find out what a run would train and be scored by.

    Args:
        sweep: Its sweep.
        point: Its point, whose options name its worlds.
        folder: Where small worlds are made in their place, once for all points.
        more: Files and overrides for all points.
    """
    small = Point(point.labels, {**point.options, **_moved(point, folder)}, point.seed)
    experiment = Experiment.read_layers(sweep.layers(small, more))
    fitting = experiment.fitting(folder / "runs")
    fingerprints = fitting.preview().fingerprints
    scores = [name for each in fitting.parts.benchmarks.benchmarks for name in _scores(each)]
    return Rehearsal(fingerprints, scores)


def _moved(point: Point, folder: Path) -> dict[str, Any]:
    """Options that put small worlds in place of a point's."""
    moved: dict[str, Any] = {}
    roots = {}
    for key, counts in SMALL.items():
        if (root := point.options.get(f"{key}.root")) is not None:
            roots[root] = f"{folder}/{key}"
            moved |= {f"{key}.root": roots[root], f"{key}.seed": 0}
            moved |= {f"{key}.{name}": count for name, count in counts.items()}
    paths = {key: each for key, each in point.options.items() if key.startswith("paths.")}
    return moved | {key: roots[each] for key, each in paths.items() if each in roots}


def _scores(benchmark: Benchmark) -> Iterator[str]:
    """Names of a benchmark's scores: those of answers without a word."""
    if benchmark.metric.settings():
        yield f"{benchmark.name}/"
        return
    questions = benchmark.questions
    benchmark.metric.grade(questions, [""] * len(questions))
    for name in benchmark.metric.compute():
        yield from (f"{benchmark.name}/{prefix}{name}" for prefix in ("", *PASSES))
