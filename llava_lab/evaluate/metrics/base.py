"""11. Metric: answers to a benchmark's questions -> scores with intervals."""

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from llava_lab.data.questions import Question
from llava_lab.evaluate.metrics.score import Score, as_array
from llava_lab.evaluate.ratio import Array, Ratio, by_category, mean


class BenchmarkMetric(Metric):
    """Base of all metrics: predictions for a benchmark's questions -> scores by name.

    Every score is a ratio of sums over questions. Questions of the category "" count in the
    overall scores only.
    """

    means: tuple[str, ...] = ()  # scores whose mean over categories is a score, too
    scored = True  # whether scores are made here, not by a server
    needs_answers = True  # whether questions without an answer cannot be scored
    split = True  # whether categories have scores of their own
    repeats = False  # whether answers repeat, so that the most frequent one is a baseline

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    # All states are float: a rank that saw no question takes part in the gathering with an empty
    # float tensor, and ranks whose dtypes differ cannot be gathered.
    names: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        # UTF-8 bytes of each question's category and a line end: names need not be known
        # beforehand, nor be the same on all ranks.
        self.add_state("names", default=[], dist_reduce_fx="cat")

    @abstractmethod
    def grade(
        self, questions: Sequence[Question], predictions: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Reset the metric, and score all questions of a benchmark.

        Returns:
            Fields of each answer for the prediction file: `correct`, from 0 to 1, and more; none
            for an answer that is scored together with another.
        """

    @abstractmethod
    def ratios(self) -> dict[str, Ratio]:
        """What each question gave each score over all questions, in the order of `update`.

        Of the questions of this process, unless called by `compute`.
        """

    def all_ratios(self) -> dict[str, Ratio]:
        """What each question gave each score, those of categories included."""
        categories = self._categories()
        found = self.ratios()
        return by_category(found, categories, self.means) if self.split else found

    def compute(self) -> dict[str, Score]:
        """Score all questions of all ranks, each as if about a picture of its own."""
        return {name: Score.of(ratio) for name, ratio in self.all_ratios().items()}

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse questions that cannot be scored, before anything is computed."""
        for question in questions:
            if "\n" in (question.category or ""):
                raise ValueError(
                    f"{question.source}: the category {question.category!r} contains a line "
                    "break; remove it"
                )

    def together(self, question: Question) -> Hashable:
        """What is equal for questions that are scored together; None for one by itself."""
        return None

    def first(self, questions: list[Question], limit: int) -> list[Question]:
        """The first questions of a file.

        Args:
            questions: All of its questions.
            limit: How many.

        Raises:
            ValueError: If one of them is scored together with one that is left out.
        """
        within = {key: q for q in questions[:limit] if (key := self.together(q)) is not None}
        for other in questions[limit:]:
            if one := within.get(self.together(other)):
                raise ValueError(
                    f"{one.source}: question {one.id!r} is scored together with {other.id!r} "
                    f"({other.source}), which limit: {limit} leaves out; ask all, with limit: null"
                )
        return questions[:limit]

    def settings(self) -> dict[str, Any]:
        """Settings that are written to results beside the scores; none by default."""
        return {}

    def _append(self, state: str, values: Sequence[Any]) -> None:
        getattr(self, state).append(torch.tensor(values, dtype=torch.float, device=self.device))

    def _append_names(self, categories: Sequence[str]) -> None:
        for category in categories:
            if "\n" in category:
                raise ValueError(f"the category {category!r} contains a line break; remove it")
        self._append("names", list("".join(f"{name}\n" for name in categories).encode()))

    def _categories(self) -> Array:
        """Category names [q] of all questions."""
        text = as_array(self.names).astype(np.uint8).tobytes().decode()
        if not text:
            raise ValueError(f"{type(self).__name__} has seen no question; update it first")
        return np.array(text.split("\n")[:-1])


class MeanMetric(BenchmarkMetric):
    """Mean score of questions: `accuracy`, and `accuracy/<category>` for each category.

    A category may have parts: questions of "reading/small" count in `accuracy/reading`, too.
    """

    repeats = True
    scores: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", default=[], dist_reduce_fx="cat")

    @abstractmethod
    def rate(self, question: Question, prediction: str) -> float:
        """Score one question in [0, 1]; a ValueError if its answers cannot be compared with."""

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse questions, too, whose answers the metric cannot compare with."""
        super().check(questions)
        for question in questions:
            try:
                self.rate(question, "")
            except ValueError as error:
                raise ValueError(f"{question.source}: {error}") from error

    def ratios(self) -> dict[str, Ratio]:
        """What each question gave each score over all questions."""
        return {"accuracy": mean(as_array(self.scores))}

    def _append_scores(
        self, predictions: Sequence[str], scores: Sequence[float], categories: Sequence[str]
    ) -> None:
        for prediction, score in zip(predictions, scores, strict=True):
            if not 0 <= score <= 1:  # nor NaN, which no comparison holds for
                raise ValueError(
                    f"{type(self).__name__} scores {prediction!r} with {score}, not from 0 to 1"
                )
        self._append_names(categories)
        self._append("scores", scores)


class QuestionMetric(MeanMetric):
    """Mean of a score that follows from an answer and the accepted ones."""

    @abstractmethod
    def score(self, prediction: str, answers: Sequence[str]) -> float:
        """Score one question in [0, 1]."""

    def rate(self, question: Question, prediction: str) -> float:
        """Score one question by its answers."""
        return self.score(prediction, question.answers)

    def line(self, prediction: str, answers: Sequence[str]) -> dict[str, Any]:
        """Fields of one answer for the prediction file."""
        return {"correct": self.score(prediction, answers)}

    def grade(
        self, questions: Sequence[Question], predictions: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Score every question by itself."""
        answers = [question.answers for question in questions]
        self.reset()
        self.update(predictions, answers, [question.category or "" for question in questions])
        return [self.line(*pair) for pair in zip(predictions, answers, strict=True)]

    def update(
        self,
        predictions: Sequence[str],
        answers: Sequence[Sequence[str]],
        categories: Sequence[str],
    ) -> None:
        """Add questions: what was generated, all accepted answers, the question's category."""
        if not len(predictions) == len(answers) == len(categories):
            raise ValueError(
                f"{len(predictions)} predictions, {len(answers)} lists of answers and"
                f" {len(categories)} categories: give one of each for every question"
            )
        if not predictions:
            return
        for prediction, accepted in zip(predictions, answers, strict=True):
            if isinstance(accepted, str) or not accepted:
                raise ValueError(
                    f"the answers to the question that was answered with {prediction!r} are"
                    f" {accepted!r}; give a list with at least one answer"
                )
        scores = [self.score(*pair) for pair in zip(predictions, answers, strict=True)]
        self._append_scores(predictions, scores, categories)
