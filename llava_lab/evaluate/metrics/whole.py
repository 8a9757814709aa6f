"""11. Whole: metrics that score an answer by its whole question, its options among it."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from llava_lab.data.questions import Question
from llava_lab.evaluate.metrics.base import BenchmarkMetric
from llava_lab.evaluate.metrics.score import as_array
from llava_lab.evaluate.ratio import Ratio, mean


class WholeQuestionMetric(BenchmarkMetric):
    """Mean score of questions: `accuracy`, and `accuracy/<category>` for each category."""

    repeats = True
    scores: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", default=[], dist_reduce_fx="cat")

    @abstractmethod
    def score(self, question: Question, prediction: str) -> float:
        """Score one question in [0, 1]; a ValueError if its answers cannot be compared with."""

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse questions, too, whose answers the metric cannot compare with."""
        super().check(questions)
        for question in questions:
            try:
                self.score(question, "")
            except ValueError as error:
                raise ValueError(f"{question.source}: {error}") from error

    def grade(
        self, questions: Sequence[Question], predictions: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Score every question by itself."""
        pairs = zip(questions, predictions, strict=True)
        scores = [self.score(question, text) for question, text in pairs]
        self.reset()
        self.update(scores, [question.category or "" for question in questions])
        return [{"correct": score} for score in scores]

    def update(self, scores: Sequence[float], categories: Sequence[str]) -> None:
        """Add scores of questions, each with its question's category."""
        self._append_names(categories)
        self._append("scores", scores)

    def ratios(self) -> dict[str, Ratio]:
        """What each question gave each score over all questions."""
        return {"accuracy": mean(as_array(self.scores))}


def one_answer(question: Question) -> str:
    """The only answer of a question; a ValueError if it has several or none."""
    if len(question.answers) != 1:
        raise ValueError(f"has the answers {list(question.answers)!r}; this metric takes one")
    return question.answers[0]
