"""11. Metric: answers to a benchmark's questions -> scores with intervals."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from llava_lab.data.questions import Question
from llava_lab.evaluate.interval import Array
from llava_lab.evaluate.metrics.score import (
    Score,
    as_array,
    mean_score,
    named,
    with_parents,
    within,
)


class BenchmarkMetric(Metric):
    """Base of all metrics: predictions for a benchmark's questions -> scores by name.

    Questions of the category "" count in the overall scores only.
    """

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

    def compute_here(self) -> dict[str, Score]:
        """Compute scores of this process alone, when every rank has graded all answers."""
        # The instance's own `compute` is torchmetrics', which gathers what other ranks saw.
        return type(self).compute(self)

    @abstractmethod
    def compute(self) -> dict[str, Score]:
        """Score all questions of all ranks."""

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse questions that cannot be scored, before anything is computed."""
        for question in questions:
            if "\n" in (question.category or ""):
                raise ValueError(
                    f"{question.source}: the category {question.category!r} contains a line "
                    "break; remove it"
                )

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


class QuestionMetric(BenchmarkMetric):
    """Mean score of questions: `accuracy`, and `accuracy/<category>` for each category.

    A category may have parts: questions of "reading/small" count in `accuracy/reading`, too.
    The interval is Wilson's where every question scored 0 or 1, else a bootstrap over questions.
    """

    scores: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", default=[], dist_reduce_fx="cat")

    @abstractmethod
    def score(self, prediction: str, answers: Sequence[str]) -> float:
        """Score one question in [0, 1]."""

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse questions, too, whose answers the metric cannot compare with."""
        super().check(questions)
        for question in questions:
            try:
                self.score("", question.answers)
            except ValueError as error:
                raise ValueError(f"{question.source}: {error}") from error

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
        for prediction, score in zip(predictions, scores, strict=True):
            if not 0 <= score <= 1:  # nor NaN, which no comparison holds for
                raise ValueError(
                    f"{type(self).__name__} scores {prediction!r} with {score}, not from 0 to 1"
                )
        self._append_names(categories)
        self._append("scores", scores)

    def compute(self) -> dict[str, Score]:
        """Score all questions of all ranks."""
        scores, categories = self._gathered()
        found = {"accuracy": mean_score(scores)}
        for name in with_parents(named(categories)):
            found[f"accuracy/{name}"] = mean_score(scores[within(categories, name)])
        return found

    def _gathered(self) -> tuple[Array, Array]:
        """Scores [q] and category names [q] of all questions."""
        categories = self._categories()
        return as_array(self.scores), categories
