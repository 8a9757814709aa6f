"""11. Score: scores of questions -> a value with its 95% interval, overall and by category."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from llava_lab.evaluate.interval import Array, bootstrap, wilson


@dataclass
class Score:
    """One number of a benchmark, as a fraction.

    Attributes:
        value: The score.
        ci95: Low and high end of the 95% interval over questions.
        n: Number of questions that it is computed from.
    """

    value: float
    ci95: list[float]
    n: int


def as_array(state: list[Tensor] | Tensor) -> Array:
    """Values of a metric's state as one array; a list before ranks are gathered, then a tensor."""
    if isinstance(state, list) and not state:
        return np.zeros(0)
    return dim_zero_cat(state).cpu().double().numpy()


def named(categories: Array) -> list[str]:
    """Names of all categories, sorted."""
    return [str(name) for name in np.unique(categories) if name]


def with_parents(names: list[str]) -> list[str]:
    """Names and their parents, sorted: reading/small -> reading, reading/small."""
    paths = [name.split("/") for name in names]
    return sorted({"/".join(path[:end]) for path in paths for end in range(1, len(path) + 1)})


def within(categories: Array, name: str) -> Array:
    """Which of the categories [q] are `name` or below it."""
    return (categories == name) | np.char.startswith(categories.astype(str), f"{name}/")


def mean_score(scores: Array) -> Score:
    """Mean of scores [q]: Wilson's interval if all are 0 or 1, else a bootstrap."""
    values, counts = np.unique(scores, return_counts=True)
    mean, n = float(scores.mean()), len(scores)
    if set(values) <= {0.0, 1.0}:
        return Score(mean, wilson(float(scores.sum()), n), n)
    return Score(mean, bootstrap([counts], lambda draws: draws[0] @ values / n), n)


def share(part: float, whole: float) -> Score:
    """A proportion with Wilson's interval."""
    return Score(float(part / whole) if whole else 0.0, wilson(part, int(whole)), int(whole))
