"""11. Judged: free-form answers -> scores by an LM, with intervals.

Scores of two judges, or of two prompts, are not comparable: GPT-3.5's versions alone move the same
answers by 11 points. Results name both. Prompts ship as they are published, each with its source.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from llava_lab.core import ranks
from llava_lab.data.questions import Question
from llava_lab.evaluate.judge import Judge, JudgePrompt, Messages, read_object, read_score
from llava_lab.evaluate.metrics.base import BenchmarkMetric
from llava_lab.evaluate.metrics.score import as_array
from llava_lab.evaluate.ratio import Array, Ratio, mean

Verdict = tuple[float, ...]


class Judged(BenchmarkMetric):
    """Base of metrics that a judge scores.

    Args:
        judge: The judge.
        prompts: YAML files of its prompts, with `user` and `system`, each for one reply;
            asset:judge/NAME.yaml for ours.
    """

    # How to reach the judge; `settings` has what decides the scores.
    idle = ("judge.url", "judge.cache", "judge.tries", "judge.in_flight")
    needs: tuple[str, ...] = ("question", "answer", "prediction")
    worst: Verdict | None = None  # verdict of a reply that cannot be parsed, if that has one
    verdicts: list[Tensor] | Tensor

    def __init__(self, judge: Judge, prompts: dict[str, str]) -> None:
        super().__init__()
        if judge.on_unread == "worst" and self.worst is None:
            raise ValueError(f"{type(self).__name__} has no worst score: judge.on_unread is error")
        self.judge = judge
        self.prompts = {name: JudgePrompt(file, self.needs) for name, file in prompts.items()}
        self.add_state("verdicts", default=[], dist_reduce_fx="cat")

    @abstractmethod
    def read(self, reply: str) -> Verdict:
        """Parse a reply to numbers; a ValueError if it cannot be parsed."""

    @abstractmethod
    def shares(self, verdicts: Array) -> dict[str, Ratio]:
        """What each case gave each score, from verdicts [q, k], of all prompts concatenated.

        Scores are those of `ratios`, but for `unread`, the share of cases with a reply that cannot
        be parsed, where those count as the worst.
        """

    @abstractmethod
    def tell(self, verdict: Verdict) -> dict[str, Any]:
        """Fields of a verdict for the prediction file."""

    def settings(self) -> dict[str, Any]:
        """Settings of the judge and of its prompts."""
        prompts = {name: prompt.settings() for name, prompt in self.prompts.items()}
        return {**self.judge.settings(), "prompts": prompts}

    def cases(
        self, questions: Sequence[Question], predictions: Sequence[str]
    ) -> dict[int, dict[str, str]]:
        """Values for the prompt of each case, by the question's index; ids may repeat."""
        pairs = zip(questions, predictions, strict=True)
        return {index: self.case(*pair) for index, pair in enumerate(pairs)}

    def case(self, question: Question, prediction: str) -> dict[str, str]:
        """Values for the prompt of one case."""
        caption, answer = question.caption or "", question.answers[0]
        values = {"question": question.prompt, "answer": answer, "caption": caption}
        return {**values, "prediction": prediction}

    def unasked(self, case: Mapping[str, str]) -> Verdict | None:
        """Verdict of a case that needs no judge, or None."""
        return None

    def grade(
        self, questions: Sequence[Question], predictions: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Have all cases judged, once for all ranks."""
        cases = self.cases(questions, predictions)
        found = self._verdicts(cases, questions)
        self.reset()
        self.update(list(found.values()), [questions[index].category or "" for index in found])
        lines: list[dict[str, Any]] = [{} for _ in questions]
        for at, (*verdict, unread) in found.items():
            lines[at] = self.tell(tuple(verdict)) | ({"unread": True} if unread else {})
        return lines

    def _verdicts(
        self, cases: Mapping[int, Mapping[str, str]], questions: Sequence[Question]
    ) -> dict[int, Verdict]:
        """Verdicts of all cases, those of all prompts concatenated, and whether one is unread."""
        done: dict[str, Verdict] = {}
        requests: dict[str, Messages] = {}
        names = {
            at: [f"{name} of {questions[at].id} (question {at + 1})" for name in self.prompts]
            for at in cases
        }
        for at, values in cases.items():
            known = self.unasked(values)
            for name, prompt in zip(names[at], self.prompts.values(), strict=True):
                if known is not None:
                    done[name] = (*known, 0.0)
                else:
                    requests[name] = prompt.messages(values)
        worst = None if self.worst is None else (*self.worst, 1.0)
        done |= ranks.on_one_rank(
            lambda: self.judge.judge(requests, lambda reply: (*self.read(reply), 0.0), worst)
        )
        return {
            at: (
                *(score for name in names[at] for score in done[name][:-1]),
                max(done[name][-1] for name in names[at]),
            )
            for at in cases
        }

    def update(self, verdicts: Sequence[Verdict], categories: Sequence[str]) -> None:
        """Add verdicts, each with whether it is unread (1.0) behind, and its category."""
        self._append_names(categories)
        self._append("verdicts", verdicts)

    def ratios(self) -> dict[str, Ratio]:
        """What each case gave each score over all cases."""
        *scores, unread = as_array(self.verdicts).reshape(len(self._categories()), -1).T
        found = self.shares(np.array(scores).T)
        return found | ({"unread": mean(unread)} if self.judge.on_unread == "worst" else {})


class RightAnswer(Judged):
    """Video question answering: `accuracy`, the share of yes, and `score`, the mean of 0 to 5.

    Metric of MSVD-QA, MSRVTT-QA, TGIF-QA and ActivityNet-QA, as in
    mbzuai-oryx/Video-ChatGPT@659e04b, quantitative_evaluation/evaluate_activitynet_qa.py: a yes is
    whatever has "yes" in it, else a no has "no". `score` is divided by 5.

    Args:
        judge: The judge.
        prompt: YAML file of its prompt, with `user` and `system`; asset:judge/NAME.yaml for one
            that ships.
    """

    worst = (0.0, 0.0)

    def __init__(self, judge: Judge, prompt: str) -> None:
        super().__init__(judge, {"answer": prompt})

    def read(self, reply: str) -> Verdict:
        """Read a yes or no under `pred`, and a `score` of 0 to 5."""
        found = read_object(reply)
        match found.get("pred"):
            case str(said) if "yes" in said.lower() or "no" in said.lower():
                return float("yes" in said.lower()), read_score(found, 0, 5) / 5
        raise ValueError(f"neither yes nor no: {found!r}")

    def shares(self, verdicts: Array) -> dict[str, Ratio]:
        """Both means."""
        right, score = verdicts.round(6).T
        return {"accuracy": mean(right), "score": mean(score)}

    def tell(self, verdict: Verdict) -> dict[str, Any]:
        """Whether the answer is correct, and its score of 0 to 5."""
        return {"correct": verdict[0], "score": round(5 * verdict[1])}


class Aspects(Judged):
    """Aspects of Video-ChatGPT's benchmark: the mean of 0 to 5 of each, divided by 5.

    mbzuai-oryx/Video-ChatGPT@659e04b, quantitative_evaluation/evaluate_benchmark_*.py, by which
    video detailed description (VDD) is scored, too. An answer of less than two characters scores 0
    without a judge, as in LLaVA-VL/LLaVA-NeXT@e789bd4, llava/eval.

    Args:
        judge: The judge.
        prompts: YAML file of the prompt of each aspect, with `user` and `system`;
            asset:judge/NAME.yaml for those that ship.
    """

    worst = (0.0,)

    def read(self, reply: str) -> Verdict:
        """Read a `score` of 0 to 5."""
        return (read_score(read_object(reply), 0, 5) / 5,)

    def unasked(self, case: Mapping[str, str]) -> Verdict | None:
        """Verdict of 0 for an answer that is too short."""
        return (0.0,) if len(case["prediction"]) < 2 else None

    def shares(self, verdicts: Array) -> dict[str, Ratio]:
        """The mean of each aspect."""
        columns = zip(self.prompts, verdicts.round(6).T, strict=True)
        return {name: mean(column) for name, column in columns}

    def tell(self, verdict: Verdict) -> dict[str, Any]:
        """Scores of 0 to 5; `correct` is their mean divided by 5."""
        scores = {name: round(5 * each) for name, each in zip(self.prompts, verdict, strict=True)}
        return {"correct": sum(verdict) / len(verdict), **scores}


class Consistency(Aspects):
    """Video-ChatGPT's consistency: answers to two wordings of a question, judged together.

    Questions are named N/1 and N/2, as `OpenEnded` names those of a row with Q1 and Q2.
    """

    needs = ("question", "question2", "answer", "prediction", "prediction2")

    def together(self, question: Question) -> str:
        """N, of the names N/1 and N/2."""
        return question.id.rpartition("/")[0]

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse a question without a second wording."""
        super().check(questions)
        paired = {index for pair in self.pairs(questions) for index in pair}
        for question in (q for index, q in enumerate(questions) if index not in paired):
            raise ValueError(
                f"{question.source}: question {question.id} has no second wording beside it; "
                "rows need Q1 and Q2"
            )

    @staticmethod
    def pairs(questions: Sequence[Question]) -> list[tuple[int, int]]:
        """Pair the indices of N/1 and N/2, in order if ids repeat."""
        indices: dict[str, list[int]] = {}
        for index, question in enumerate(questions):
            indices.setdefault(question.id, []).append(index)
        return [
            pair
            for name, firsts in indices.items()
            if name.endswith("/1")
            for pair in zip(firsts, indices.get(f"{name[:-2]}/2", []), strict=False)
        ]

    def cases(
        self, questions: Sequence[Question], predictions: Sequence[str]
    ) -> dict[int, dict[str, str]]:
        """Values of each pair, by the index of the first wording."""
        single, twice = super().cases(questions, predictions), ("question", "prediction")
        return {
            first: single[first] | {f"{key}2": single[second][key] for key in twice}
            for first, second in sorted(self.pairs(questions))
        }

    def unasked(self, case: Mapping[str, str]) -> Verdict | None:
        """Verdict of 0 if either answer is too short."""
        return super().unasked(case) or super().unasked({"prediction": case["prediction2"]})


class Relative(Judged):
    """LLaVA-Bench-in-the-Wild: mean score of answers divided by that of references, 1 to 10.

    The judge reads a caption of the image. `relative` may be above 1.

    Args:
        judge: The judge.
        prompt: YAML file of its prompt, with `user` and `system`; asset:judge/NAME.yaml for ours.
    """

    needs = ("caption", "question", "answer", "prediction")

    def __init__(self, judge: Judge, prompt: str) -> None:
        super().__init__(judge, {"both": prompt})

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse questions without a caption, which the judge needs in place of the image."""
        super().check(questions)
        for question in questions:
            if not question.caption:
                raise ValueError(
                    f"{question.source}: no caption of its picture for the judge; set `captions`"
                )

    def read(self, reply: str) -> Verdict:
        """Read two numbers on the first line: of the reference, then of the answer."""
        numbers = reply.strip().split("\n")[0].replace(",", " ").split()
        reference, answer = (float(each) for each in numbers)
        if not (1 <= reference <= 10 and 1 <= answer <= 10):
            raise ValueError(f"not from 1 to 10: {numbers}")
        return reference, answer

    def shares(self, verdicts: Array) -> dict[str, Ratio]:
        """The ratio of the means."""
        references, answers = verdicts.T
        return {"relative": Ratio(answers, references, top=10.0)}

    def tell(self, verdict: Verdict) -> dict[str, Any]:
        """Both scores; `correct` is the answer's divided by the reference's, at most 1."""
        reference, answer = verdict
        share = min(1.0, answer / reference)
        return {"correct": share, "score": answer, "reference_score": reference}
