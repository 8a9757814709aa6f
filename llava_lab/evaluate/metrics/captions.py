"""11. Captions: descriptions of pictures -> CIDEr and ROUGE-L against people's captions."""

import shutil
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from llava_lab.core import ranks
from llava_lab.data.questions import Question
from llava_lab.evaluate.metrics.base import BenchmarkMetric
from llava_lab.evaluate.metrics.score import as_array
from llava_lab.evaluate.ratio import Ratio, mean


class Captions(BenchmarkMetric):
    """COCO's caption scores: `cider`, of 10 at most, and `rouge_l`, both means over pictures.

    Scored by pycocoevalcap, as in EvolvingLMMs-Lab/lmms-eval@75571cf, lmms_eval/tasks/coco_cap,
    with the tokenizer of Stanford's CoreNLP, which is a program in Java. How rare words are is
    counted in the references of the pictures that are asked about: a part of them (`limit`) has
    another CIDEr. Tables print hundreds of it: a value of 1.1 as 110.
    """

    found: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("found", default=[], dist_reduce_fx="cat")

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse to begin, too, without what scores."""
        super().check(questions)
        _scorers()

    def grade(
        self, questions: Sequence[Question], predictions: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Score all captions, once for all ranks."""
        references = [list(question.answers) for question in questions]
        rows = ranks.on_one_rank(lambda: caption_scores(predictions, references))
        self.reset()
        self.update(rows, [question.category or "" for question in questions])
        return [
            {"correct": min(1.0, cider), "cider": cider, "rouge_l": rouge} for cider, rouge in rows
        ]

    def update(self, rows: Sequence[Sequence[float]], categories: Sequence[str]) -> None:
        """Add captions: CIDEr and ROUGE-L of each, and its category."""
        self._append_names(categories)
        self._append("found", [value for row in rows for value in row])

    def ratios(self) -> dict[str, Ratio]:
        """What each caption gave each score."""
        cider, rouge = as_array(self.found).reshape(-1, 2).T
        return {"cider": mean(cider, 10.0), "rouge_l": mean(rouge)}


def _scorers() -> tuple[Any, Any, Any]:
    try:
        from pycocoevalcap.cider.cider import Cider  # pyrefly: ignore[missing-import]
        from pycocoevalcap.rouge.rouge import Rouge  # pyrefly: ignore[missing-import]
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer  # pyrefly: ignore
    except ImportError:
        raise ValueError(
            "captions are scored by pycocoevalcap: pip install -e '.[captions]'"
        ) from None
    if shutil.which("java") is None:
        raise ValueError("captions are tokenized by a program in Java: install java (a JRE)")
    return PTBTokenizer(), Cider(), Rouge()


def caption_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> list[tuple[float, float]]:
    """CIDEr and ROUGE-L of each caption.

    Args:
        predictions: A caption of each picture.
        references: People's captions of each picture.

    Raises:
        ValueError: If pycocoevalcap or Java is not there.
    """
    tokenizer, cider, rouge = _scorers()
    told = {at: list(map(_in_a_line, texts)) for at, texts in enumerate(references)}
    said = {at: [_in_a_line(text)] for at, text in enumerate(predictions)}
    told, said = tokenizer.tokenize(told), tokenizer.tokenize(said)
    columns = [scorer.compute_score(told, said)[1] for scorer in (cider, rouge)]
    return [(float(one), float(other)) for one, other in zip(*columns, strict=True)]


def _in_a_line(text: str) -> dict[str, str]:
    """A caption for the tokenizer, which takes every line for one, also behind U+2028 and the like.

    pycocoevalcap itself joins the lines of a text only where a line feed parts them.
    """
    return {"caption": " ".join(text.splitlines())}
