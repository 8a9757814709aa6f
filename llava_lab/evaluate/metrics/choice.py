"""11. Choice: answers to multiple choices -> letters, by the rule of each benchmark's script."""

import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from llava_lab.data.questions import Question
from llava_lab.evaluate.metrics.base import BenchmarkMetric
from llava_lab.evaluate.metrics.score import as_array
from llava_lab.evaluate.metrics.whole import WholeQuestionMetric, one_answer
from llava_lab.evaluate.ratio import Ratio, mean

Images = Literal["exact", "first", "scienceqa", "ai2d", "mmbench", "mmmu"]
Rule = Images | Literal["egoschema", "perception", "videomme"]
DRAWN = ("mmmu", "egoschema")  # rules whose scripts draw a letter where they find none
LETTERS = string.ascii_uppercase


def exact_letter(text: str, options: Sequence[str]) -> str | None:
    """SEED-Bench as LLaVA scores it: the whole answer is the letter.

    haotian-liu/LLaVA@c121f04, scripts/convert_seed_for_submission.py.
    """
    return text


def first_letter(text: str, options: Sequence[str]) -> str | None:
    """SEED-Bench as lmms-eval scores it: the answer's first character, in any case.

    EvolvingLMMs-Lab/lmms-eval@75571cf, lmms_eval/tasks/seedbench/utils.py.
    """
    return text.strip()[:1].upper()


def scienceqa_letter(text: str, options: Sequence[str]) -> str | None:
    """ScienceQA: "B", "B. ...", or "The answer is B." found exactly once; up to E.

    haotian-liu/LLaVA@c121f04, llava/eval/eval_science_qa.py. The period of the pattern stands for
    any character there, so that "The answer is B" at the end of an answer finds nothing.
    """
    if text in "ABCDE" and len(text) == 1:
        return text
    if len(text) >= 3 and text[0] in "ABCDE" and text[1:3] == ". ":
        return text[0]
    found = re.findall(r"The answer is ([A-Z]).", text)
    return found[0] if len(found) == 1 else None


def ai2d_letter(text: str, options: Sequence[str]) -> str | None:
    """AI2D: the letter before a period at the answer's beginning, else all of it as one word.

    EvolvingLMMs-Lab/lmms-eval@75571cf, lmms_eval/tasks/ai2d/utils.py, and its exact match, which
    does not see case and punctuation.
    """
    found = re.match(r"\s*([A-Z])\.", text)
    plain = found[1] if found else text
    return plain.translate(str.maketrans("", "", string.punctuation)).upper()


# Marks beside a letter, in the order in which they are tried.
MARKS = (
    *(("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ").")),
    *((":", ""), (":", ","), (":", "."), (":", ")"), (":", ").")),
)


def mmbench_letter(text: str, options: Sequence[str]) -> str | None:
    """MMBench: one letter of A to E that stands alone, then one with marks, then one option's text.

    EvolvingLMMs-Lab/lmms-eval@75571cf, lmms_eval/tasks/mmbench/mmbench_evals.py, after the rules of
    open-compass. In an answer of more than three words a lone A may be an article, and no lone
    letter counts. What no rule finds, ChatGPT is asked for there; here there is no letter.
    """
    words = set(text.split())
    alone = [letter for letter in "ABCDE" if letter in words]
    if len(alone) == 1 and not ("A" in words and len(text.split()) > 3):
        return alone[0]
    for before, behind in MARKS:
        marked = [letter for letter in "ABCDE" if f"{before}{letter}{behind}" in words]
        if len(marked) == 1:
            return marked[0]
    low = text.lower()
    shown = [LETTERS[place] for place, option in enumerate(options) if option.lower() in low]
    return shown[0] if len(shown) == 1 else None


def mmmu_letter(text: str, options: Sequence[str]) -> str | None:
    """MMMU: "(B)", else "B ", else "B.", else an option's text; the last one where there are more.

    MMMU-Benchmark/MMMU@51ce7f3, eval/eval_utils.py, as EvolvingLMMs-Lab/lmms-eval@75571cf has it in
    lmms_eval/tasks/_task_utils/mmmu_mcq_utils.py. Texts are looked for in answers of more than five
    words. Where several letters have a period, none has a space behind it, and the first is taken.
    """
    for mark in ",.!?;:'":
        text = text.strip(mark)
    padded, letters = f" {text} ", LETTERS[: len(options)]
    for form in ("({})", "{} ", "{}."):
        if found := [letter for letter in letters if form.format(letter) in padded]:
            looked_for = "({})" if form == "({})" else " {} "
            return max(found, key=lambda letter: padded.rfind(looked_for.format(letter)))
    if len(padded.split()) > 5:
        low = padded.lower()
        shown = {
            letters[i]: low.rfind(o.lower()) for i, o in enumerate(options) if o.lower() in low
        }
        return max(shown, key=lambda letter: shown[letter]) if shown else None
    return None


def egoschema_letter(text: str, options: Sequence[str]) -> str | None:
    """EgoSchema: of "(B)", "B " and "B." that which stands first, by where it stands last.

    EvolvingLMMs-Lab/lmms-eval@75571cf, lmms_eval/tasks/egoschema/utils.py: MMMU's parser, but for
    that all forms count together, and the first is taken.
    """
    for mark in ",.!?;:'":
        text = text.strip(mark)
    padded, letters = f" {text} ", LETTERS[: len(options)]
    forms = [f.format(letter) for f in ("({})", "{} ", "{}.") for letter in letters]
    if found := [form for form in forms if form in padded]:
        return min(found, key=padded.rfind).strip("(). ")
    if len(padded.split()) > 5:
        last = [padded.lower().rfind(option.strip().lower()) for option in options]
        shown = [place for place, at in enumerate(last) if at >= 0]
        return letters[min(shown, key=lambda place: last[place])] if shown else None
    return None


def perception_letter(text: str, options: Sequence[str]) -> str | None:
    """Perception Test: the first of A to D that is a word of its own.

    EvolvingLMMs-Lab/lmms-eval@75571cf, lmms_eval/tasks/perceptiontest/val/utils.py.
    """
    found = re.search(r"\b([A-D])\b", text)
    return found[1] if found else None


# The fifth and the sixth lack a comma between two phrases in the script, so that neither is found.
PREFIXES = (
    *("The best answer is", "The correct answer is", "The answer is", "The answer"),
    *("The best option isThe correct option is", "Best answer:Best option:"),
)


def videomme_letter(text: str, options: Sequence[str]) -> str | None:
    """Video-MME: the first A, B, C or D behind such beginnings as "The answer is", in any word.

    EvolvingLMMs-Lab/lmms-eval@1d3f34a, lmms_eval/tasks/videomme/utils.py, of the time of
    LLaVA-NeXT's videos; later versions have another rule.
    """
    for prefix in PREFIXES:
        text = text.replace(prefix, "")
    found = re.search("[ABCD]", text)
    return found[0] if found else None


RULES: dict[str, Callable[[str, Sequence[str]], str | None]] = {
    **{"exact": exact_letter, "first": first_letter, "scienceqa": scienceqa_letter},
    **{"ai2d": ai2d_letter, "mmbench": mmbench_letter, "mmmu": mmmu_letter},
    **{"egoschema": egoschema_letter, "perception": perception_letter},
    **{"videomme": videomme_letter},
}


def right_letter(question: Question) -> str:
    """The letter of a question's answer; a ValueError if that is none of its options'."""
    answer = one_answer(question)
    known = LETTERS[: len(question.choices)] or LETTERS
    if len(answer) != 1 or answer not in known:
        raise ValueError(
            f"its answer is {answer!r}; a multiple choice has one of {', '.join(known)}"
        )
    return answer


def drawn(question: Question, answer: str, letter: str | None) -> float:
    """Score a letter, or, where none was found, what a draw among the options does on average.

    Raises:
        ValueError: If the question's options are not known, among which a letter is looked for.
    """
    if not question.choices:
        raise ValueError("its options are not known, among which the rule looks for a letter")
    return 1 / len(question.choices) if letter is None else float(letter == answer)


class Choice(WholeQuestionMetric):
    """Accuracy of multiple choices.

    An answer in which the rule finds no letter is wrong. Under "mmmu" and "egoschema", whose
    scripts draw a letter at random there, it scores what the draw does on average: 1 by the number
    of options.

    Args:
        rule: How the letter is found: as one of `RULES`, each with the script that it is from.
    """

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        if rule not in RULES:
            raise ValueError(f"metric.rule is {rule!r}; it is one of {', '.join(RULES)}")
        self.rule = rule

    def rate(self, question: Question, prediction: str) -> float:
        """Score 1 for the right letter, else 0."""
        answer = right_letter(question)
        if self.rule in DRAWN:
            return drawn(question, answer, RULES[self.rule](prediction.strip(), question.choices))
        return float(RULES[self.rule](prediction.strip(), question.choices) == answer)


class Circular(BenchmarkMetric):
    """MMBench: a question is right if it is right with its options in every order that is asked.

    Rows whose ids are equal but for whole millions are one question in several orders. Gives
    `circular`, the published score, over questions of which every order was answered; `accuracy`,
    over rows in the first order alone; and `unmatched`, the share of answers in which no rule finds
    an option: the server asks ChatGPT for those, and they are wrong here.
    """

    repeats = True
    found: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        self.orders: Counter[Hashable] = Counter()
        self.add_state("found", default=[], dist_reduce_fx="cat")

    def together(self, question: Question) -> Hashable:
        """The id without its millions, which all orders of a question have."""
        return int(question.id) % 1_000_000 if question.id.isdecimal() else question.id

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse, too, ids that are no numbers, answers that are no letters, one order alone."""
        super().check(questions)
        for question in questions:
            if not question.id.isdecimal():
                raise ValueError(f"{question.source}: the id {question.id!r} is no whole number")
            try:
                right_letter(question)
            except ValueError as error:
                raise ValueError(f"{question.source}: {error}") from error
        if twice := [id for id, n in Counter(q.id for q in questions).items() if n > 1]:
            raise ValueError(
                f"two questions have the id {twice[0]!r}, by which orders are told apart"
            )
        self.orders = Counter(map(self.together, questions))
        if questions and max(self.orders.values()) == 1:
            raise ValueError(
                f"{questions[0].source}: no question is there in a second order (an id that is "
                "1000000 more); read the file that has them, or score by the metric Choice"
            )

    def grade(
        self, questions: Sequence[Question], predictions: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Score all questions, each with those that are it in another order."""
        pairs = zip(questions, predictions, strict=True)
        letters = [mmbench_letter(text.strip(), question.choices) for question, text in pairs]
        answers = map(right_letter, questions)
        right = [letter == answer for letter, answer in zip(letters, answers, strict=True)]
        groups: dict[Hashable, list[int]] = {}
        for place, question in enumerate(questions):
            groups.setdefault(self.together(question), []).append(place)
        # The whole question counts at the place of its row in the first order; not at all where
        # the trainer limits batches and an order is missing.
        rows = np.zeros((len(questions), 4))
        rows[:, 0] = right
        rows[:, 3] = [letter is None for letter in letters]
        for key, places in groups.items():
            first = min(places, key=lambda place: int(questions[place].id))
            if len(places) >= self.orders[key]:
                rows[first, 1:3] = all(right[place] for place in places), 1
        self.reset()
        self.update(rows.tolist(), [question.category or "" for question in questions])
        return [
            {"correct": float(each), "letter": letter}
            for each, letter in zip(right, letters, strict=True)
        ]

    def update(self, rows: Sequence[Sequence[float]], categories: Sequence[str]) -> None:
        """Add rows: right, the whole question right, whether it is its first, no option found."""
        self._append_names(categories)
        self._append("found", [value for row in rows for value in row])

    def ratios(self) -> dict[str, Ratio]:
        """What each row gave each score."""
        right, whole, first, unmatched = as_array(self.found).reshape(-1, 4).T
        return {
            "circular": Ratio(whole, first),
            "accuracy": Ratio(right * first, first),
            "unmatched": mean(unmatched),
        }
