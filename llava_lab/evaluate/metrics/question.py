"""11. Question metrics: GQA's exact match, VQA's soft accuracy, POPE's yes or no."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from llava_lab.evaluate.interval import Array, bootstrap
from llava_lab.evaluate.metrics.base import QuestionMetric
from llava_lab.evaluate.metrics.normalize import exact_answer, says_yes, vqa_answer
from llava_lab.evaluate.metrics.score import Score, as_array, named, share


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
            count = sum(int(counts.sum()) for counts in groups)
            found["mean_f1"] = Score(float(np.mean(values)), interval, count)
        return found


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
    """POPE's five scores of outcomes [4], and how often an absent object is answered with yes."""
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
