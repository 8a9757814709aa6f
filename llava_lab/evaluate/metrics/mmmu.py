"""11. MMMU: multiple choices by their letter, open questions by key phrases of the answer."""

import ast
import re

from llava_lab.data.questions import Question
from llava_lab.evaluate.metrics.choice import drawn, mmmu_letter, right_letter
from llava_lab.evaluate.metrics.whole import WholeQuestionMetric, one_answer

Value = str | float
INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
TRIVIAL = {":", ",", ".", "!", "?", ";", "'"}
# Numbers with commas, in scientific notation, and all others.
NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


class MMMU(WholeQuestionMetric):
    """MMMU's accuracy; the kind of a question is "multiple-choice" or "open".

    MMMU-Benchmark/MMMU@51ce7f3, eval/eval_utils.py. Where no letter is found the script draws one
    at random; here that scores what the draw does on average, 1 by the number of options. An open
    question has one answer or a list of them, and is right if one is part of a key phrase, or is a
    number in it.
    """

    def rate(self, question: Question, prediction: str) -> float:
        """Score 1 for a right answer, else 0."""
        if question.kind == "multiple-choice":
            answer = right_letter(question)
            return drawn(question, answer, mmmu_letter(prediction.strip(), question.choices))
        if question.kind != "open":
            raise ValueError(f"its kind is {question.kind!r}, neither multiple-choice nor open")
        wanted = [value for text in _answers(one_answer(question)) for value in normalized(text)]
        return float(any(_found(value, wanted) for value in said_values(prediction)))


def _answers(text: str) -> list[str]:
    """One answer, or several that are written as a list."""
    if not text.startswith("["):
        return [text]
    try:
        return [str(each) for each in ast.literal_eval(text)]
    except (SyntaxError, ValueError):
        return [text]


def _found(said: Value, wanted: list[Value]) -> bool:
    """Whether a text holds an answer, or a number is one."""
    if isinstance(said, str):
        return any(isinstance(each, str) and each in said for each in wanted)
    return said in wanted


def normalized(text: str) -> list[Value]:
    """A number of two decimals, or text in lower case, a lone character with a space beside it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        low = text.lower()
        return [f" {low}", f"{low} "] if len(low) == 1 else [low]


def said_values(text: str) -> list[Value]:
    """What an answer says: its key phrases, and the numbers in them."""
    phrases = key_phrases(text)
    numbers = [each for phrase in phrases for form in NUMBERS for each in re.findall(form, phrase)]
    return [value for each in [*phrases, *numbers] for value in normalized(each)]


def key_phrases(text: str) -> list[str]:
    """Of each line the shortest text behind an indicator such as "is"; the answer where none has.

    The script parts lines by sentences, too, but only before a capital, of which it has made small
    letters before. "=" is an indicator in the last line alone.
    """
    text = text.strip().strip(".").lower()
    lines = re.split(r"\.\s(?=[A-Z])|\n", text)
    found = []
    for place, line in enumerate(lines):
        indicators = (*INDICATORS, "=") if place == len(lines) - 1 else INDICATORS
        tails = [line.split(each)[-1].strip() for each in indicators if each in line]
        # An empty tail does not stop a longer one behind it from being taken, as in the script.
        shortest = ""
        for tail in tails:
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in TRIVIAL:
            found.append(shortest)
    return found or [text]
