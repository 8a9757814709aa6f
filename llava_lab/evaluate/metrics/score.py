"""11. Score: what questions gave a score -> its value with a 95% interval."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from llava_lab.evaluate.interval import estimate
from llava_lab.evaluate.ratio import Array, Ratio


@dataclass
class Score:
    """One number of a benchmark, as a fraction.

    Attributes:
        value: The score.
        ci95: Low and high end of the 95% interval over questions.
        n: Number of questions that count in it.
    """

    value: float
    ci95: list[float]
    n: int

    @classmethod
    def of(cls, ratio: Ratio, clusters: Sequence[Hashable] | None = None) -> "Score":
        """Score of what questions gave.

        Args:
            ratio: What they gave.
            clusters: Cluster of each question, such as its picture; None if each is its own.
        """
        found = estimate(ratio, range(len(ratio.of)) if clusters is None else clusters)
        return cls(found.value, list(found.interval()), found.questions)


def as_array(state: list[Tensor] | Tensor) -> Array:
    """Values of a metric's state as one array; a list before ranks are gathered, then a tensor."""
    if isinstance(state, list) and not state:
        return np.zeros(0)
    return dim_zero_cat(state).cpu().double().numpy()
