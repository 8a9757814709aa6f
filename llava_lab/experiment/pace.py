"""Pace: points of a sweep that have ended -> about how long those that are left take."""

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from tqdm import tqdm

from llava_lab.core.records import canonical
from llava_lab.experiment.sweep import Point

ASKED = "data."  # options of what a trained model is asked


class Pace:
    """Tells points that train stages from those that only ask a model which another has trained.

    Args:
        points: Points that are to be run, in their order. The first of those that differ in no
            more than what is asked trains for all of them.
        jobs: Points at once.
    """

    def __init__(self, points: Iterable[Point], jobs: int):
        self.jobs, self.trained, self.asked = jobs, list[float](), list[float]()
        self.training: dict[str, bool] = {}
        first = set()
        for point in points:
            rest = {key: each for key, each in point.options.items() if not key.startswith(ASKED)}
            key = canonical([rest, point.seed])
            self.training[f"{point}"] = key not in first
            first.add(key)

    def ended(self, point: Point, cost: Mapping[str, Any]) -> None:
        """Count a point that has ended.

        Args:
            point: The point.
            cost: What its results say of seconds; nothing where it has none.
        """
        self.training.pop(f"{point}", None)
        seconds, training = (cost.get(key) for key in ("seconds", "seconds_trained_here"))
        if seconds is None or training is None or seconds < training:  # such as after an interrupt
            return
        self.asked.append(seconds - training)
        if training:
            self.trained.append(seconds)

    @property
    def left(self) -> str:
        """About how long until all have ended; empty where nothing tells."""
        train = sum(self.training.values())
        ask = len(self.training) - train
        if not self.training or (train and not self.trained) or (ask and not self.asked):
            return ""
        seconds = train * fmean(self.trained or [0.0]) + ask * fmean(self.asked or [0.0])
        return f"; about {tqdm.format_interval(seconds / self.jobs)} left"
