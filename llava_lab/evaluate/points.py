"""11. Points: what each question gave each score in each pass -> points.json beside the results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_lab.core.records import write_record
from llava_lab.data.questions import Question
from llava_lab.evaluate.ratio import Array, Ratio

NAME = "points.json"
# What names of scores begin with, beside a wrong picture, without any, and of the answer that is
# most frequent in the file.
BLIND, TEXT_ONLY, MOST_FREQUENT = PASSES = ("blind_", "text_only_", "most_frequent_")


class PointsFile:
    """Collects what questions gave, benchmark by benchmark and pass by pass.

    A file holds of each benchmark `questions` (hash of the questions and of their pictures' bytes)
    and the `ids`, `clusters` and `categories` of all of its questions; and of each pass, by the
    prefix of its scores ("" or one of PASSES), the `places` of the questions that were scored, and
    of each score over all questions what these gave (`got`) and could give (`of`), a number where
    that is equal for all; of a sum of scores also both as they were before it moved them (`raw`).
    Scores of categories and means follow from those (`split`, `means`).
    """

    def __init__(self) -> None:
        self.benchmarks: dict[str, dict[str, Any]] = {}

    def begin(self, name: str, questions: Sequence[Question], content: str) -> None:
        """Add a benchmark: its questions, and the hash of what they ask."""
        self.benchmarks[name] = {
            "questions": content,
            "ids": [question.id for question in questions],
            "clusters": clusters_of(questions),
            "categories": [question.category or "" for question in questions],
            "passes": {},
        }

    def add(
        self,
        name: str,
        prefix: str,
        places: Sequence[int],
        ratios: Mapping[str, Ratio],
        *,
        split: bool,
        means: Sequence[str],
    ) -> None:
        """Add a pass over a benchmark.

        Args:
            name: The benchmark.
            prefix: Prefix of the pass's scores.
            places: Places in the file of the questions that were scored.
            ratios: What these gave each score over all questions.
            split: Whether categories have scores of their own.
            means: Scores whose mean over categories is a score, too.
        """
        scores: dict[str, dict[str, Any]] = {}
        for key, ratio in ratios.items():
            scores[key] = {"got": packed(ratio.got), "of": packed(ratio.of), "top": ratio.top}
            if ratio.raw:
                scores[key]["raw"] = [packed(each) for each in ratio.raw]
        known = {"places": list(places), "split": split, "means": list(means), "scores": scores}
        self.benchmarks[name]["passes"][prefix] = known

    def clusters(self, name: str, places: Sequence[int]) -> list[str]:
        """Cluster of each of some questions of a benchmark."""
        every = self.benchmarks[name]["clusters"]
        return [every[place] for place in places]

    def write(self, path: Path) -> None:
        """Write the file, with a checksum."""
        write_record(path, {"benchmarks": self.benchmarks}, indent=None)


def clusters_of(questions: Sequence[Question]) -> list[str]:
    """What questions that are not independent share: the first picture or video, by its name.

    A question without a picture is a cluster of its own. A name has the folder before it, and as
    many folders more as tell all pictures apart.

    Args:
        questions: All questions of a file, in its order.
    """
    shown = {question.images[0].parts for question in questions if question.images}
    most = max(map(len, shown), default=2)
    lengths = range(2, most)
    apart = (size for size in lengths if len({parts[-size:] for parts in shown}) == len(shown))
    size = next(apart, most)
    return [
        "/".join(question.images[0].parts[-size:]) if question.images else f"question {place}"
        for place, question in enumerate(questions)
    ]


def packed(values: Array) -> int | float | list[int | float]:
    """Numbers as JSON: whole ones as such, and one number where all are equal."""
    numbers = [int(each) if float(each).is_integer() else float(each) for each in values]
    return numbers[0] if numbers and len(set(numbers)) == 1 else numbers
