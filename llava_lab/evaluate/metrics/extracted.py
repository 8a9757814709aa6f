"""11. Extracted: an LM cuts the answer out of a longer text, and a rule compares it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from llava_lab.core import ranks
from llava_lab.data.questions import Question
from llava_lab.evaluate.judge import Judge, JudgePrompt
from llava_lab.evaluate.metrics.distance import MathVista
from llava_lab.evaluate.metrics.score import as_array
from llava_lab.evaluate.ratio import Ratio, mean


class ExtractedMathVista(MathVista):
    """MathVista as published: an LM cuts the answer out of whatever is no option and no number.

    lupantech/MathVista@53d5258, evaluation/extract_answer.py. Not asked about are an empty one,
    one that is an option word by word, and a number where one is wanted. An answer that is
    not cut out counts as empty, as there, where `on_unread` is "worst".

    Args:
        judge: The LM.
        prompt: YAML file of its prompt, which shows the answer and, as {caption}, the question as
            the file's `query` has it; asset:judge/mathvista.yaml for the published one.
    """

    idle = ("judge.url", "judge.cache", "judge.tries", "judge.in_flight")
    repeats = False  # a most frequent answer is not worth its price
    asked: list[Tensor] | Tensor
    unread: list[Tensor] | Tensor

    def __init__(self, judge: Judge, prompt: str) -> None:
        super().__init__()
        self.judge, self.prompt = judge, JudgePrompt(prompt, ("caption", "prediction"))
        self.add_state("asked", default=[], dist_reduce_fx="cat")
        self.add_state("unread", default=[], dist_reduce_fx="cat")

    def settings(self) -> dict[str, Any]:
        """Settings of the LM and of its prompt."""
        return {**self.judge.settings(), "prompts": {"extraction": self.prompt.settings()}}

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse questions, too, that are not written down for the LM."""
        super().check(questions)
        for question in questions:
            if not question.caption:
                raise ValueError(f"{question.source}: no query for the LM; set columns.caption")

    def grade(
        self, questions: Sequence[Question], predictions: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Cut all answers out, once for all ranks, and score them."""
        said = [text.strip() for text in predictions]
        names = {
            place: f"{question.id} (question {place + 1})"
            for place, question in enumerate(questions)
            if not self.plain(question, said[place])
        }
        requests = {
            name: self.prompt.messages(
                {"caption": questions[place].caption or "", "prediction": said[place]}
            )
            for place, name in names.items()
        }
        cut = ranks.on_one_rank(lambda: self.judge.judge(requests, str.strip, ""))
        found = [cut[names[place]] if place in names else text for place, text in enumerate(said)]
        scores = [self.compare(*pair) for pair in zip(questions, found, strict=True)]
        self.reset()
        self.update(predictions, scores, [question.category or "" for question in questions])
        asked = [place in names for place in range(len(questions))]
        self._append("asked", [float(each) for each in asked])
        self._append(
            "unread", [float(a and not text) for a, text in zip(asked, found, strict=True)]
        )
        return [
            {"correct": score, "extracted": text} for score, text in zip(scores, found, strict=True)
        ]

    def ratios(self) -> dict[str, Ratio]:
        """Accuracy, and the shares of answers that the LM was asked to cut out, and did not."""
        shares = {"extracted": self.asked, "unread": self.unread}
        return super().ratios() | {name: mean(as_array(each)) for name, each in shares.items()}

    @staticmethod
    def plain(question: Question, said: str) -> bool:
        """Whether an answer needs no LM."""
        if not said or (question.choices and said in question.choices):
            return True
        number = {"integer": int, "float": float}.get(question.kind.split(" ")[1])
        try:
            return number is not None and number(said) is not None
        except ValueError:
            return False
