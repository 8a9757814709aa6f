"""11. Hallucination: descriptions and what is true -> shares of invented objects and sentences.

The other measure, yes to an absent object (POPE: Li et al., EMNLP 2023), is `hallucination` of
`question.YesNo`.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from llava_lab.evaluate.metrics.base import QuestionMetric
from llava_lab.evaluate.metrics.normalize import vqa_answer
from llava_lab.evaluate.metrics.score import as_array
from llava_lab.evaluate.ratio import Ratio, mean


def statements(text: str) -> list[str]:
    """Distinct sentences of a text, normalized as answers are."""
    sentences = re.split(r"(?<=[.!?])\s+|\n", text.strip())
    return list(dict.fromkeys(filter(None, map(vqa_answer, sentences))))


def true_and_untrue(text: str, truths: Sequence[str]) -> tuple[int, int]:
    """Count the sentences of a text that are among the true ones, and those that are not."""
    claims, known = statements(text), set(map(vqa_answer, truths))
    true = sum(each in known for each in claims)
    return true, len(claims) - true


class Chair(QuestionMetric):
    """CHAIR of free descriptions (Rohrbach et al., EMNLP 2018), and the share of untrue sentences.

    A question's answers name what is there: objects, or whole sentences. A mention is an object's
    name with the attribute before it, if any; it is invented unless an answer has the same.

        chair_i   invented mentions / all mentions
        chair_s   descriptions with an invented mention / all descriptions
        recall    objects of the answers that are mentioned / all of them
        untrue    sentences that are no answer / all sentences

    Lower is better, except for `recall`. An empty description has the best of the others, and a
    recall of 0.
    n is the descriptions that count: those with a mention for `chair_i`.

    Args:
        objects: Names of objects, with their synonyms.
        attributes: Words that distinguish objects when they precede a name, such as colors.
        statements: Whether the answers list all true sentences, so that any other is `untrue`.
    """

    split, repeats = False, False
    counts: list[Tensor] | Tensor

    def __init__(
        self, objects: dict[str, list[str]], attributes: list[str], statements: bool
    ) -> None:
        super().__init__()
        if not objects:
            raise ValueError("metric.objects is empty: no object could be found in a description")
        self.add_state("counts", default=[], dist_reduce_fx="cat")
        names = {other.lower(): name for name, others in objects.items() for other in others}
        self.object_of = names | {name.lower(): name for name in objects}
        longest = sorted(self.object_of, key=len, reverse=True)
        before = rf"(?:({'|'.join(map(re.escape, attributes))})\s+)?" if attributes else "()"
        self.pattern = re.compile(rf"\b{before}({'|'.join(map(re.escape, longest))})\b", re.I)
        self.statements = statements

    def mentions(self, text: str) -> list[str]:
        """Every mention, in order: "red circle"."""
        return [f"{attribute} {name}".strip() for attribute, name in self._pairs(text)]

    def _pairs(self, text: str) -> list[tuple[str, str]]:
        """Attribute, or nothing, and object of every mention."""
        found = ((first.lower(), last.lower()) for first, last in self.pattern.findall(text))
        return [(attribute, self.object_of[name]) for attribute, name in found]

    def invented(self, prediction: str, answers: Sequence[str]) -> list[str]:
        """Mentions that no answer has; a name without an attribute matches any attribute."""
        there = {pair for answer in answers for pair in self._pairs(answer)}
        there |= {("", name) for _, name in there}
        pairs = [pair for pair in self._pairs(prediction) if pair not in there]
        return [f"{attribute} {name}".strip() for attribute, name in pairs]

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        """Score 1 where nothing is invented and nothing untrue, else 0."""
        untrue = self.statements and true_and_untrue(prediction, answers)[1]
        return float(not untrue and not self.invented(prediction, answers))

    def line(self, prediction: str, answers: Sequence[str]) -> dict[str, Any]:
        """Fields of one answer for the prediction file, with what is invented and untrue."""
        line = super().line(prediction, answers)
        line["invented"] = self.invented(prediction, answers)
        if self.statements:
            known = set(map(vqa_answer, answers))
            line["untrue"] = [each for each in statements(prediction) if each not in known]
        return line

    def update(
        self,
        predictions: Sequence[str],
        answers: Sequence[Sequence[str]],
        categories: Sequence[str],
    ) -> None:
        """Add descriptions: what was generated, all that is true, the question's category."""
        super().update(predictions, answers, categories)
        for prediction, truths in zip(predictions, answers, strict=True):
            mentioned = self.mentions(prediction)
            there = {mention for truth in truths for mention in self.mentions(truth)}
            true, untrue = true_and_untrue(prediction, truths)
            counts = [len(self.invented(prediction, truths)), len(mentioned)]
            counts += [len(there & set(mentioned)), len(there), untrue, true + untrue]
            self._append("counts", counts)

    def ratios(self) -> dict[str, Ratio]:
        """What each description gave each score."""
        invented, mentioned, found, there, untrue, stated = as_array(self.counts).reshape(-1, 6).T
        scores = {
            "chair_i": Ratio(invented, mentioned),
            "chair_s": mean(np.where(invented > 0, 1.0, 0.0)),
            "recall": Ratio(found, there),
        }
        return scores | {"untrue": Ratio(untrue, stated)} if self.statements else scores
