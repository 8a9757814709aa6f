"""11. Question metrics: GQA's exact match, VQA's soft accuracy, POPE's yes or no."""

from collections.abc import Sequence

from torch import Tensor

from llava_lab.evaluate.metrics.base import QuestionMetric
from llava_lab.evaluate.metrics.normalize import exact_answer, says_yes, vqa_answer
from llava_lab.evaluate.metrics.score import as_array
from llava_lab.evaluate.ratio import Array, Ratio, mean


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

    The evaluator of VQA itself leaves the ten answers as they are where all ten are equal; that of
    TextVQA, whose rule is this, processes them always.

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
    n is the questions in the denominator: of F1, all but the right noes. Where there are none
    (nothing was answered with yes) the value is 0; the official script stops with a division by
    zero.
    """

    means = ("f1",)

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

    def ratios(self) -> dict[str, Ratio]:
        """What each question gave each score over all questions."""
        return yes_no_ratios(as_array(self.scores) == 1, as_array(self.said_yes) == 1)


def yes_no_ratios(right: Array, yes: Array) -> dict[str, Ratio]:
    """POPE's five scores, and how often an absent object is answered with yes.

    Args:
        right: Whether each question was answered right [q].
        yes: Whether it was answered with yes [q].
    """
    true_positive, false_positive = 1.0 * (right & yes), 1.0 * (~right & yes)
    present, absent = 1.0 * (right == yes), 1.0 * (right != yes)
    return {
        "accuracy": mean(1.0 * right),
        "precision": Ratio(true_positive, 1.0 * yes),
        "recall": Ratio(true_positive, present),
        "f1": Ratio(2 * true_positive, 1.0 * yes + present),
        "yes_ratio": mean(1.0 * yes),
        "hallucination": Ratio(false_positive, absent),
    }
