"""11. Paired: two yes-or-no questions a picture -> accuracy of questions, and of pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from llava_lab.data.questions import Question
from llava_lab.evaluate.metrics.base import BenchmarkMetric
from llava_lab.evaluate.metrics.score import as_array
from llava_lab.evaluate.metrics.whole import one_answer
from llava_lab.evaluate.ratio import Ratio, mean, mean_of_ratios


def yes_no_other(text: str) -> str:
    """Read a yes or no as MME does: the answer itself, or within its first four characters.

    BradyFU/Awesome-Multimodal-Large-Language-Models, eval_tool/calculation.py, on the answer in
    lower case: "yes, it is" is a yes, "not at all" and "nothing" a no, "it is" neither. A lone "y"
    or "n" is neither, too; lmms-eval, whose rule is Otter's, reads them as yes and no.
    """
    text = text.lower()
    return next((word for word in ("yes", "no") if word in text[:4]), "other")


class PairedYesNo(BenchmarkMetric):
    """MME: of each task `accuracy` of questions, and `accuracy_plus` of pictures with both right.

    `points/<task>` is the sum of both in percent, 200 at most, and each of `groups` the sum of its
    tasks' points: 1,510.7 of 2,000 is what papers print. So that tables, which print shares in
    percent, print it as that, its value here is 15.107. Such a sum over tasks is no ratio of
    sums over questions; it is linearized around its value (`mean_of_ratios`), which gives the value
    exactly, and the interval that the delta method gives.

    The two questions of a picture have one id and one category, its task.

    Args:
        groups: Names of sums, each with its tasks.
    """

    split, repeats = False, True
    found: list[Tensor] | Tensor

    def __init__(self, groups: dict[str, list[str]]) -> None:
        super().__init__()
        tasks = [task for group in groups.values() for task in group]
        if not tasks or len(set(tasks)) < len(tasks):
            raise ValueError(f"metric.groups is {groups!r}; each task is in exactly one group")
        self.groups = groups
        self.add_state("found", default=[], dist_reduce_fx="cat")

    def together(self, question: Question) -> tuple[str, str]:
        """Task and id, which the two questions of a picture have."""
        return question.category or "", question.id

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse other answers than yes and no, unknown tasks, and pictures without a pair."""
        super().check(questions)
        known = [task for group in self.groups.values() for task in group]
        for question in questions:
            try:
                if (answer := one_answer(question).lower()) not in ("yes", "no"):
                    raise ValueError(f"its answer is {answer!r}, neither yes nor no")
                if question.category not in known:
                    raise ValueError(f"its task is {question.category!r}; known are {known}")
            except ValueError as error:
                raise ValueError(f"{question.source}: {error}") from error
        for (_, id), places in self._pairs(questions).items():
            if len(places) != 2:
                raise ValueError(
                    f"{questions[places[0]].source}: {len(places)} questions have the id {id!r}; "
                    "each picture has two"
                )

    def grade(
        self, questions: Sequence[Question], predictions: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Score all questions; one whose twin was not answered is left out."""
        said = [yes_no_other(text.strip()) for text in predictions]
        right = [
            word == one_answer(question).lower()
            for word, question in zip(said, questions, strict=True)
        ]
        pairs = [places for places in self._pairs(questions).values() if len(places) == 2]
        twin = {a: b for one, other in pairs for a, b in ((one, other), (other, one))}
        first = {one for one, _ in pairs}
        kept = [place for place in range(len(questions)) if place in twin]
        rows = [
            [right[at], right[at] and right[twin[at]] and at in first, at in first] for at in kept
        ]
        self.reset()
        self.update(rows, [questions[place].category or "" for place in kept])
        lines: list[dict[str, Any]] = [{} for _ in questions]
        for place in kept:
            lines[place] = {"correct": float(right[place]), "said": said[place]}
        return lines

    def _pairs(self, questions: Sequence[Question]) -> dict[tuple[str, str], list[int]]:
        """Places of the questions of each picture, by task and id."""
        found: dict[tuple[str, str], list[int]] = {}
        for place, question in enumerate(questions):
            found.setdefault(self.together(question), []).append(place)
        return found

    def update(self, rows: Sequence[Sequence[bool]], categories: Sequence[str]) -> None:
        """Add questions: right, its picture right, whether it is the first of its picture."""
        self._append_names(categories)
        self._append("found", [float(value) for row in rows for value in row])

    def ratios(self) -> dict[str, Ratio]:
        """What each question gave each score."""
        right, both, first = as_array(self.found).reshape(-1, 3).T
        categories = self._categories()
        of_all = {"accuracy": mean(right), "accuracy_plus": Ratio(both, first)}
        found: dict[str, Ratio] = dict(of_all)
        sums: dict[str, list[Ratio]] = {}
        for group, tasks in self.groups.items():
            for task in tasks:
                chosen = np.where(categories == task, 1.0, 0.0)
                if not chosen.any():
                    continue
                parts = {key: ratio.where(chosen) for key, ratio in of_all.items()}
                found |= {f"{key}/{task}": part for key, part in parts.items()}
                found[f"points/{task}"] = sum_of_ratios(list(parts.values()), of_all["accuracy"])
                sums.setdefault(group, []).extend(parts.values())
        return found | _totals(sums, of_all["accuracy"])


def _totals(sums: Mapping[str, list[Ratio]], right: Ratio) -> dict[str, Ratio]:
    """Sums of groups and, where there are several, of all."""
    found = {group: sum_of_ratios(parts, right) for group, parts in sums.items()}
    if len(sums) > 1:
        found["total"] = sum_of_ratios([part for parts in sums.values() for part in parts], right)
    return found


def sum_of_ratios(parts: Sequence[Ratio], right: Ratio) -> Ratio:
    """The sum of several ratios, as a ratio of sums: the mean, times their number.

    Args:
        parts: The ratios.
        right: Which questions are right, of all: what those of the sum gave by themselves. One
            answer would count twice in the parts, by its question and by its picture.
    """
    found, number = mean_of_ratios(parts), len(parts)
    raw = right.where(found.of != 0).outcomes
    return replace(found, got=number * found.got, top=float(number), raw=raw)
