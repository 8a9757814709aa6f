"""Scorers: answers to questions -> a score each, by the questions' own answers or by a judge."""

from collections.abc import Callable, Sequence
from typing import Any

from llava_lab.data.questions import Question
from llava_lab.evaluate.judge import Judge, JudgePrompt, read_object, read_score
from llava_lab.evaluate.metrics.hallucination import true_and_untrue

AnsweredQuestion = tuple[Question, str]
Scorer = Callable[[Sequence[AnsweredQuestion]], list[int]]


def score_by_answers(answered: Sequence[AnsweredQuestion]) -> list[int]:
    """Score each answer: sentences that are among the question's own, less those that are not."""
    counts = [true_and_untrue(text, question.answers) for question, text in answered]
    return [true - untrue for true, untrue in counts]


class JudgeScorer:
    """Scores from 1 to 5 by a judge that reads the question's caption, as in LLaVA-Hound.

    Args:
        judge: The judge.
        prompt: File of its prompt.
    """

    def __init__(self, judge: Judge, prompt: str):
        self.judge, self.prompt = judge, JudgePrompt(prompt, ("caption", "question", "prediction"))

    def settings(self) -> dict[str, Any]:
        """Everything that decides the scores."""
        return self.judge.settings() | self.prompt.settings()

    def __call__(self, answered: Sequence[AnsweredQuestion]) -> list[int]:
        """Score each answer."""
        cases = {
            f"answer {number} to question {question.id}": self.prompt.messages(
                {
                    "caption": question.caption or "",
                    "question": question.prompt,
                    "answer": question.answers[0] if len(question.answers) == 1 else "none given",
                    "prediction": text,
                }
            )
            for number, (question, text) in enumerate(answered)
        }
        return list(self.judge.judge(cases, read_rating).values())


def read_rating(reply: str) -> int:
    """Read the score of a judge's reply, from 1 to 5."""
    return read_score(read_object(reply), 1, 5)
