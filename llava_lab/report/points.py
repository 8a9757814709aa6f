"""12. Points: the points.json of a run -> what each question gave each score, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from llava_lab.evaluate.interval import cluster_places
from llava_lab.evaluate.ratio import Array, Ratio, by_category

Key = tuple[str, str]  # benchmark and score, as in results.json: ("questions", "blind_accuracy")
TOLERANCE = 1e-6  # by which a score of results.json may differ from that of its points
WAY_OUT = "`fit` the run again: it asks the benchmarks anew."


@dataclass(frozen=True)
class Points:
    """What each question gave one score of one run.

    The score is sum(got) / sum(of). All scores of a benchmark's pass have the same questions.

    Attributes:
        benchmark: Name of the benchmark.
        score: Name of the score, as in results.json: "accuracy/count", "blind_accuracy/count".
        ids: Each question's place in its file and id [q]; ids alone may repeat.
        clusters: What questions that are not independent share [q]: the name of their picture.
        got: What each question gave [q].
        of: What it could give [q]; 0 for one that does not count in this score.
        content: Hash of what was asked, pictures' bytes included. Two runs asked the same
            questions if it is equal: worlds of two seeds have equal ids and names.
        top: Highest value that the score can have.
        numbers: Number of each question's cluster [q], where it is known already.
        raw: What each question itself gave and could give, where `got` and `of` are moved.
        lost: Whether they are moved, and the file of an older version does not say from where.
    """

    benchmark: str
    score: str
    ids: Array
    clusters: Array
    got: Array
    of: Array
    content: str = ""
    top: float = 1.0
    numbers: Array | None = None
    raw: tuple[Array, Array] | None = None
    lost: bool = False

    @cached_property
    def places(self) -> Array:
        """Number of each question's cluster [q]."""
        return cluster_places(self.clusters) if self.numbers is None else self.numbers

    @cached_property
    def ratio(self) -> Ratio:
        """The score as a ratio of sums."""
        return Ratio(self.got, self.of, self.top, self.raw)

    def flipped(self, other: "Points") -> int | None:
        """Number of questions whose own outcome differs; None where that was not kept."""
        if self.lost or other.lost:
            return None
        pairs = zip(self.ratio.outcomes, other.ratio.outcomes, strict=True)
        return int(np.any([ours != theirs for ours, theirs in pairs], axis=0).sum())

    def same_questions(self, other: "Points") -> bool:
        """Whether the other run was scored on the same questions."""
        same = self.ids is other.ids or np.array_equal(self.ids, other.ids)
        return self.content == other.content and same


def parse_points(
    content: Mapping[str, Any], where: str, scores: Mapping[str, Any] | None = None
) -> dict[Key, Points]:
    """Points of the content of a points.json, checked.

    Args:
        content: The content.
        where: What to call it in messages.
        scores: `benchmarks` of the results.json that it belongs to, whose values must be these.

    Raises:
        ValueError: If something is missing or does not fit; names it.
    """
    found: dict[Key, Points] = {}
    for name, kept in content["benchmarks"].items():
        try:
            found |= {(name, each.score): each for each in _of_benchmark(name, kept)}
        except (KeyError, TypeError, IndexError, ValueError) as error:
            message = f"{where}: benchmark {name} is damaged ({error!r}). {WAY_OUT}"
            raise ValueError(message) from error
    for (name, score), points in found.items() if scores is not None else ():
        said = (scores or {}).get(name, {}).get(score, {}).get("value")
        if said is None or abs(said - points.ratio.value) > TOLERANCE:
            raise ValueError(
                f"{where}: benchmark {name} has {score} {points.ratio.value:.6g}, where its "
                f"results say {said}. {WAY_OUT}"
            )
    return found


def _of_benchmark(name: str, kept: Mapping[str, Any]) -> list[Points]:
    """Points of all passes over a benchmark."""
    ids = [f"{place}:{each}" for place, each in enumerate(kept["ids"])]
    if not len(ids) == len(kept["clusters"]) == len(kept["categories"]):
        raise ValueError("ids, clusters and categories are not as many")
    found = []
    for prefix, one_pass in kept["passes"].items():
        places = np.array(one_pass["places"], dtype=int)
        if len(places) and not 0 <= places.min() <= places.max() < len(ids):
            raise ValueError(f"a place beyond its {len(ids)} questions")
        overall = {key: _ratio(each, len(places)) for key, each in one_pass["scores"].items()}
        chosen = [np.array(kept[key])[places] for key in ("clusters", "categories")]
        clusters, categories = (each.astype(str) for each in chosen)
        ratios = overall
        if one_pass["split"]:
            ratios = by_category(overall, categories, one_pass["means"])
        here, content, numbers = np.array(ids)[places], kept["questions"], cluster_places(clusters)
        for score, each in ratios.items():
            lost = not one_pass["split"] and each.top > 1 and each.raw is None  # a sum of MME
            known = (here, clusters, each.got, each.of, content, each.top, numbers, each.raw, lost)
            found.append(Points(name, f"{prefix}{score}", *known))
    return found


def _ratio(kept: Mapping[str, Any], count: int) -> Ratio:
    got, of, *raw = (_numbers(e, count) for e in (kept["got"], kept["of"], *kept.get("raw", ())))
    return Ratio(got, of, kept["top"], (raw[0], raw[1]) if raw else None)


def _numbers(kept: float | Sequence[float], count: int) -> Array:
    """Numbers of questions [q]; one number stands for all."""
    numbers = np.full(count, kept, dtype=float) if np.isscalar(kept) else np.array(kept, float)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"{numbers.shape} numbers of {count} questions, or no numbers")
    return numbers
