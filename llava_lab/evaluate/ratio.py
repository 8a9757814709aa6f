"""11. Ratio: what each question gave a score -> the score, those of its categories, their mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Ratio:
    """A score as a ratio of sums over questions: sum(got) / sum(of).

    An accuracy has `of` 1 for each question, and `got` 1 for each correct answer. Precision has
    `of` 1 for each yes, and `got` 1 for each right one.

    Attributes:
        got: What each question gave [q].
        of: What it could give [q]; 0 for a question that does not count in this score.
        top: Highest value that the score can have; the lowest is 0.
        raw: What each question itself gave and could give, where `mean_of_ratios` has moved both
            by the values of its parts.
    """

    got: Array
    of: Array
    top: float = 1.0
    raw: tuple[Array, Array] | None = None

    @property
    def outcomes(self) -> tuple[Array, Array]:
        """What each question itself gave and could give: equal for two runs that did the same."""
        return self.raw or (self.got, self.of)

    @property
    def value(self) -> float:
        """The score; 0 where no question counts."""
        whole = self.of.sum()
        return float(self.got.sum() / whole) if whole else 0.0

    @property
    def n(self) -> int:
        """Number of questions that count."""
        return int(np.count_nonzero(self.of))

    def where(self, chosen: Array) -> "Ratio":
        """The same score of some questions [q] alone; the others count nothing."""
        raw = (self.raw[0] * chosen, self.raw[1] * chosen) if self.raw else None
        return replace(self, got=self.got * chosen, of=self.of * chosen, raw=raw)


def mean(values: Array, top: float = 1.0) -> Ratio:
    """The mean of one number a question [q]."""
    return Ratio(values, np.ones(len(values)), top)


def named(categories: Array) -> list[str]:
    """Names of all categories, sorted."""
    return [str(name) for name in np.unique(categories) if name]


def with_parents(names: Sequence[str]) -> list[str]:
    """Names and their parents, sorted: reading/small -> reading, reading/small."""
    paths = [name.split("/") for name in names]
    return sorted({"/".join(path[:end]) for path in paths for end in range(1, len(path) + 1)})


def within(categories: Array, name: str) -> Array:
    """Which of the categories [q] are `name` or below it."""
    return (categories == name) | np.char.startswith(categories.astype(str), f"{name}/")


def by_category(
    overall: Mapping[str, Ratio], categories: Array, means: Sequence[str] = ()
) -> dict[str, Ratio]:
    """Scores over all questions, of each category, and means of those.

    Args:
        overall: Scores over all questions, by name: "accuracy".
        categories: Category of each question [q]; one of category "" counts in the overall alone.
        means: Names of the scores whose mean over categories is a score of its own: "f1" gives
            "mean_f1".

    Returns:
        Scores by name: "accuracy", "accuracy/reading", "accuracy/reading/small".
    """
    found = dict(overall)
    for name in with_parents(named(categories)):
        chosen = within(categories, name)
        found |= {f"{key}/{name}": ratio.where(chosen) for key, ratio in overall.items()}
    for key in means:
        if parts := [found[f"{key}/{name}"] for name in named(categories)]:
            found[f"mean_{key}"] = mean_of_ratios(parts)
    return found


def mean_of_ratios(parts: Sequence[Ratio]) -> Ratio:
    """The mean of several ratios, again as a ratio of sums.

    Parts are scaled to the same sum of `of`, and moved to the same value. What a question
    contributes to the error of a ratio, got - value * of, then is what it contributes to that of
    the mean.
    """
    nothing, ones = np.zeros(len(parts[0].of)), np.ones(len(parts[0].of))
    known = [part if part.of.any() else Ratio(nothing, ones) for part in parts]
    value = float(np.mean([part.value for part in known]))
    scaled = [
        ((part.got + (value - part.value) * part.of) / part.of.mean(), part.of / part.of.mean())
        for part in known
    ]
    got, of = np.sum(scaled, axis=0)
    itself = np.sum([part.outcomes for part in parts], axis=0)
    return Ratio(got, of, parts[0].top, (itself[0], itself[1]))
