"""11. Whole: metrics that score an answer by its whole question, its options among it."""

from collections.abc import Sequence
from typing import Any

from llava_lab.data.questions import Question
from llava_lab.evaluate.metrics.base import MeanMetric


class WholeQuestionMetric(MeanMetric):
    """Mean of a score that follows from an answer and its whole question."""

    def grade(
        self, questions: Sequence[Question], predictions: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Score every question by itself."""
        pairs = zip(questions, predictions, strict=True)
        scores = [self.rate(question, text) for question, text in pairs]
        self.reset()
        self.update(predictions, scores, [question.category or "" for question in questions])
        return [{"correct": score} for score in scores]

    def update(
        self, predictions: Sequence[str], scores: Sequence[float], categories: Sequence[str]
    ) -> None:
        """Add questions: what was answered, its score, the question's category."""
        self._append_scores(predictions, scores, categories)


def one_answer(question: Question) -> str:
    """The only answer of a question; a ValueError if it has several or none."""
    if len(question.answers) != 1:
        raise ValueError(f"has the answers {list(question.answers)!r}; this metric takes one")
    return question.answers[0]
