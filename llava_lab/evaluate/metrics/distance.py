"""11. Distance: answers that may be near -> relaxed accuracy, ANLS, trees, MathVista's accuracy."""

import re
import string
from collections.abc import Sequence

from llava_lab.core.numbers import at_least, shares
from llava_lab.data.questions import Question
from llava_lab.evaluate.metrics.question import QuestionMetric
from llava_lab.evaluate.metrics.whole import WholeQuestionMetric, one_answer


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's distance: fewest characters to add, remove or replace.

    A column of the table at once, as bits of two numbers: Myers, Journal of the ACM 1999. Bit i of
    `more` says that row i is one above row i - 1, and of `less` that it is one below.
    """
    if not one:
        return len(other)
    places: dict[str, int] = {}
    for place, character in enumerate(one):
        places[character] = places.get(character, 0) | 1 << place
    all_bits, last = (1 << len(one)) - 1, 1 << (len(one) - 1)
    more, less, distance = all_bits, 0, len(one)
    for character in other:
        equal = places.get(character, 0)
        down = equal | less
        across = (((equal & more) + more) ^ more) | equal
        right_more = less | ~(across | more) & all_bits
        right_less = more & across
        distance += bool(right_more & last) - bool(right_less & last)
        right_more = (right_more << 1 | 1) & all_bits
        right_less = (right_less << 1) & all_bits
        more = right_less | ~(down | right_more) & all_bits
        less = right_more & down
    return distance


class TreeDistance(QuestionMetric):
    """SynthDoG: 1 less the edit distance between trees by that to an empty tree, 0 at least.

    Donut's evaluator as EvolvingLMMs-Lab/lmms-eval@75571cf, lmms_eval/tasks/synthdog, has it. A
    tree is one field with the text as its leaf. The field is `output` in an answer and
    `text_sequence` in the file, which costs 1, so that a text that is right scores less than 1; an
    answer is in small letters there, and the file's text is not. lmms-eval prints the sum over
    questions, which is the mean here times their number.
    """

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        """Score one text."""
        if len(answers) != 1:
            raise ValueError(f"has the answers {list(answers)!r}; SynthDoG has one")
        answer = answers[0].strip()
        distance = edit_distance(prediction.lower().strip(), answer)
        return max(0.0, 1 - (1 + distance) / (1 + len(answer)))


class RelaxedAccuracy(QuestionMetric):
    """ChartQA: numbers may be 5% off; anything else is the answer but for case.

    EvolvingLMMs-Lab/lmms-eval@75571cf, lmms_eval/tasks/chartqa/utils.py, after Qwen-VL's script. A
    number with % behind it is a hundredth, on both sides: "5%" is 0.05, and not 5. An answer of 0
    has no 5% and is compared as text; so is one with a unit or a comma.

    Args:
        tolerance: By which share of the answer a number may be off.
    """

    def __init__(self, tolerance: float = 0.05) -> None:
        super().__init__()
        at_least(0, tolerance=tolerance)
        self.tolerance = tolerance

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        """Score 1 for a number near the answer, or the answer's text, else 0."""
        if len(answers) != 1:
            raise ValueError(f"has the answers {list(answers)!r}; ChartQA has one")
        said, answer = prediction.strip(), answers[0]
        number, wanted = _number(said), _number(answer)
        if number is not None and wanted:
            return float(abs(number - wanted) / abs(wanted) <= self.tolerance)
        return float(said.lower() == answer.lower())


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


class ANLS(QuestionMetric):
    """DocVQA and InfographicVQA: average normalized Levenshtein similarity.

    An answer scores 1 less its edit distance by the longer length, to the nearest of the accepted
    answers, and 0 below the threshold. Case and repeated spaces do not count. Biten et al., ICCV
    2019; EvolvingLMMs-Lab/lmms-eval@75571cf, lmms_eval/api/metrics.py, after Qwen-VL's script,
    which measures lengths before repeated spaces are removed.

    Args:
        threshold: Similarity below which an answer scores 0.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        shares(threshold=threshold)
        self.threshold = threshold

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        """Score the similarity to the nearest answer."""
        said = prediction.strip()
        shares = []
        for answer in answers:
            distance = edit_distance(
                " ".join(answer.lower().split()), " ".join(said.lower().split())
            )
            length = max(len(answer.upper()), len(said.upper()))
            shares.append(distance / length if length else 0.0)
        similarity = 1 - min(shares)
        return similarity if similarity >= self.threshold else 0.0


class MathVista(WholeQuestionMetric):
    """MathVista: the answer in its form (option, whole number, number of some decimals, list).

    The kind of a question is its `question_type`, `answer_type` and `precision`, a space between.
    An option may be said by letter or by text, and else is the one whose text is nearest in edits.
    EvolvingLMMs-Lab/lmms-eval@75571cf, lmms_eval/tasks/mathvista/mathvista_evals.py, after
    lupantech/MathVista. There an LM first cuts the answer out of a longer text; here nothing does
    but 'The answer is "...".', so that only short answers are scored as published.
    """

    def rate(self, question: Question, prediction: str) -> float:
        """Score 1 where the answer in its form is the right one, else 0."""
        said = prediction.strip()
        found = re.search(r'The answer is "(.*)"\.', said)
        return self.compare(question, found[1] if found else said)

    @staticmethod
    def compare(question: Question, said: str) -> float:
        """Score an answer that nothing stands around."""
        answer = one_answer(question)
        form, kind, decimals = _kind(question)
        if form == "multi_choice":
            return float(_option(said, question.choices).strip() == answer.strip())
        try:
            if kind == "integer":
                said = str(int(float(said)))
            elif kind == "float":
                said = str(round(float(said), decimals))
        except (ValueError, OverflowError):
            return 0.0
        return float(said.strip() == answer.strip())


def _kind(question: Question) -> tuple[str, str, int]:
    form, _, rest = question.kind.partition(" ")
    kind, _, decimals = rest.partition(" ")
    if (form, kind) not in KINDS or (form == "multi_choice") != bool(question.choices):
        raise ValueError(
            f"its kind, {question.kind!r} with {len(question.choices)} options, is not MathVista's"
        )
    return form, kind, int(float(decimals or 0))


KINDS = (
    *(("multi_choice", "text"), ("free_form", "text"), ("free_form", "integer")),
    *(("free_form", "float"), ("free_form", "list")),
)


def _option(said: str, options: Sequence[str]) -> str:
    """The text of the option that is meant."""
    if letter := re.search(r"\(([a-zA-Z])\)", said):
        said = letter[1].upper()
    letters = string.ascii_uppercase[: len(options)]
    if len(said) == 1 and said in letters:
        return options[letters.index(said)]
    return min(options, key=lambda option: edit_distance(said, option))
