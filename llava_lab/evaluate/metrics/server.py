"""11. Server: a benchmark whose answers are secret -> no scores here, but a file for its server."""

from collections.abc import Sequence
from typing import Any

from llava_lab.data.questions import Question
from llava_lab.evaluate.metrics.base import BenchmarkMetric
from llava_lab.evaluate.ratio import Ratio


class Server(BenchmarkMetric):
    """Scores nothing: the benchmark's server does, on the file in the run's `submissions`."""

    scored = needs_answers = False
    split = False

    def grade(
        self, questions: Sequence[Question], predictions: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Score nothing."""
        return [{} for _ in questions]

    def update(self) -> None:
        """Add nothing."""

    def ratios(self) -> dict[str, Ratio]:
        """No scores."""
        return {}

    def all_ratios(self) -> dict[str, Ratio]:
        """No scores."""
        return {}
