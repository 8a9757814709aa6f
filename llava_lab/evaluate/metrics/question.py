"""11. Metric: predictions and answers -> scores with intervals, overall and per category."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from llava_lab.data.sample import Question
from llava_lab.evaluate.interval import Array, bootstrap, wilson
from llava_lab.evaluate.metrics.normalize import exact_answer, says_yes, vqa_answer


@dataclass
class Score:
    """One number of a benchmark, as a fraction.

    Attributes:
        value: The score.
        ci95: Low and high end of the 95% interval over questions.
        n: How many questions it was computed from.
    """

    value: float
    ci95: list[float]
    n: int


class BenchmarkMetric(Metric):
    """Answers to a benchmark's questions -> scores by name; the part of all metrics.

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
        # UTF-8 bytes of each question's category and a line end, so that names need neither be
        # known beforehand nor be agreed upon by the ranks.
        self.add_state("names", default=[], dist_reduce_fx="cat")

    @abstractmethod
    def grade(
        self, questions: Sequence[Question], predictions: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Forget what was seen, and see a whole benchmark.

        Returns:
            What the prediction file says of each answer: `correct`, from 0 to 1, and more; nothing
            of one that is scored together with another.
        """

    def compute_here(self) -> dict[str, Score]:
        """Scores of what this process saw: all there is where every rank graded all answers."""
        # The instance's own `compute` is torchmetrics', which gathers what other ranks saw.
        return type(self).compute(self)

    @abstractmethod
    def compute(self) -> dict[str, Score]:
        """Score all questions of all ranks."""

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse questions that could not be scored, before anything is spent."""
        for question in questions:
            if "\n" in (question.category or ""):
                raise ValueError(
                    f"{question.source}: the category {question.category!r} contains a line "
                    "break; remove it"
                )

    def settings(self) -> dict[str, Any]:
        """What results say of it, beside its scores: nothing of a rule."""
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
        """Refuse answers that the rule cannot score against, too."""
        super().check(questions)
        for question in questions:
            try:
                self.score("", question.answers)
            except ValueError as error:
                raise ValueError(f"{question.source}: {error}") from error

    def line(self, prediction: str, answers: Sequence[str]) -> dict[str, Any]:
        """What the prediction file says of one answer."""
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


class ExactMatch(QuestionMetric):
    """GQA's accuracy: the prediction is one of the answers, but for case and a final period."""

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        """Score 1 for a match, else 0."""
        return float(exact_answer(prediction) in {exact_answer(answer) for answer in answers})


class VQAAccuracy(QuestionMetric):
    """VQA's soft accuracy, for questions that ten people answered.

    Leave one person out: the prediction scores min(1, m / 3) where m of the nine others gave it.
    The question's score is the mean over the ten people who can be left out. So 1, 2, 3 and 4
    people of ten that agree with the prediction are worth 0.3, 0.6, 0.9 and 1.

    The official rule is defined for ten answers only. With n others than ten the same mean is
    taken over n people, and where fewer than 3 others remain, all of them must agree for a 1
    (min(3, n - 1) in place of 3). A single answer is compared as it is: 1 for a match, else 0.

    The official processing removes articles, so that the answer "A" and a prediction without text
    are equal and score 1. Published numbers contain this; `empty_correct` in results.json counts
    such answers.
    """

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        """Score one question by the share of people who agree."""
        given = vqa_answer(prediction)
        agree = sum(vqa_answer(answer) == given for answer in answers)
        people = len(answers)
        if people == 1:
            return float(agree)
        enough = min(3, people - 1)
        without_one_of_them = min(1.0, (agree - 1) / enough)
        without_another = min(1.0, agree / enough)
        return (agree * without_one_of_them + (people - agree) * without_another) / people


class YesNo(QuestionMetric):
    """POPE's scores of yes-or-no questions; yes is the positive class.

    Gives `accuracy`, `precision`, `recall`, `f1`, `yes_ratio` and `hallucination`, the share of
    noes that are answered with yes, overall and for each category (`f1/random`), and `mean_f1`, the
    mean over categories that the papers' tables print.
    Intervals are Wilson's, with n the questions in the denominator; those of F1 are a bootstrap
    over questions, within categories for the mean. Where a denominator is 0 (nothing was answered
    with yes) the value is 0 and n is 0; the official script stops with a division by zero.
    """

    said_yes: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("said_yes", default=[], dist_reduce_fx="cat")

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        """Score 1 where the prediction's yes or no is the answer's, else 0."""
        answer = exact_answer(answers[0])
        if len(answers) != 1 or answer not in {"yes", "no"}:
            raise ValueError(
                f"a yes-or-no question has the answers {list(answers)!r};"
                " give exactly one, yes or no"
            )
        return float(says_yes(prediction) == (answer == "yes"))

    def update(
        self,
        predictions: Sequence[str],
        answers: Sequence[Sequence[str]],
        categories: Sequence[str],
    ) -> None:
        """Add questions: what was generated, the answer yes or no, the question's category."""
        super().update(predictions, answers, categories)
        if predictions:
            self._append("said_yes", [float(says_yes(prediction)) for prediction in predictions])

    def compute(self) -> dict[str, Score]:
        """Score all questions of all ranks."""
        scores, categories = self._gathered()
        right, yes = scores == 1, as_array(self.said_yes) == 1
        found = yes_no_scores(outcomes(right, yes), "")
        names = named(categories)
        groups = [outcomes(right[categories == name], yes[categories == name]) for name in names]
        for name, counts in zip(names, groups, strict=True):
            found |= yes_no_scores(counts, f"/{name}")
        if groups:
            values = [float(f1(counts)) for counts in groups]
            interval = bootstrap(
                groups, lambda draws: np.mean([f1(draw) for draw in draws], axis=0)
            )
            asked = sum(int(counts.sum()) for counts in groups)
            found["mean_f1"] = Score(float(np.mean(values)), interval, asked)
        return found


def as_array(state: list[Tensor] | Tensor) -> Array:
    """One array of a state's values; the state is a tensor once ranks were gathered."""
    if isinstance(state, list) and not state:
        return np.zeros(0)
    return dim_zero_cat(state).cpu().double().numpy()


def named(categories: Array) -> list[str]:
    """Names of all categories, sorted."""
    return [str(name) for name in np.unique(categories) if name]


def with_parents(names: list[str]) -> list[str]:
    """Names and what they are parts of, sorted: reading/small -> reading, reading/small."""
    paths = [name.split("/") for name in names]
    return sorted({"/".join(path[:end]) for path in paths for end in range(1, len(path) + 1)})


def within(categories: Array, name: str) -> Array:
    """Which of the categories [q] are this one or a part of it."""
    return (categories == name) | np.char.startswith(categories.astype(str), f"{name}/")


def mean_score(scores: Array) -> Score:
    """Mean of scores [q] with the interval that suits them."""
    values, counts = np.unique(scores, return_counts=True)
    mean, n = float(scores.mean()), len(scores)
    if set(values) <= {0.0, 1.0}:
        return Score(mean, wilson(float(scores.sum()), n), n)
    return Score(mean, bootstrap([counts], lambda draws: draws[0] @ values / n), n)


def share(part: float, whole: float) -> Score:
    """A proportion with Wilson's interval."""
    return Score(float(part / whole) if whole else 0.0, wilson(part, int(whole)), int(whole))


def outcomes(right: Array, yes: Array) -> Array:
    """Numbers of true positives, false positives, true negatives and false negatives [4]."""
    cells = [right & yes, ~right & yes, right & ~yes, ~right & ~yes]
    return np.array([cell.sum() for cell in cells])


def f1(counts: Array) -> Array:
    """F1 of outcomes [..., 4]; 0 where nothing is or was called positive."""
    true_positive, false_positive, _, false_negative = np.moveaxis(counts, -1, 0)
    whole = 2 * true_positive + false_positive + false_negative
    return 2 * true_positive / np.maximum(whole, 1)


def yes_no_scores(counts: Array, suffix: str) -> dict[str, Score]:
    """POPE's five scores of outcomes [4], and how often what is absent is said to be there."""
    true_positive, false_positive, true_negative, false_negative = counts
    n = int(counts.sum())
    said_yes = true_positive + false_positive
    interval = bootstrap([counts], lambda draws: f1(draws[0]))
    return {
        f"accuracy{suffix}": share(true_positive + true_negative, n),
        f"precision{suffix}": share(true_positive, said_yes),
        f"recall{suffix}": share(true_positive, true_positive + false_negative),
        f"f1{suffix}": Score(float(f1(counts)), interval, n),
        f"yes_ratio{suffix}": share(said_yes, n),
        f"hallucination{suffix}": share(false_positive, false_positive + true_negative),
    }
