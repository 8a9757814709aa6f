"""11. MM-Vet: free answers -> scores of 0 to 1 by a judge, by capability."""

from typing import Any

import numpy as np

from llava_lab.data.questions import Question
from llava_lab.evaluate.judge import Judge
from llava_lab.evaluate.metrics.judged import Judged, Verdict
from llava_lab.evaluate.ratio import Array, Ratio, mean


class MMVet(Judged):
    """MM-Vet: `score`, the mean of 0 to 1; by capability, and by combination of capabilities.

    yuweihao/MM-Vet@acde843, mm-vet_evaluator.py. A question's category is its capabilities with "_"
    between: `score/ocr_spat` is of questions that need these two and no other, `with_ocr` of all
    that need OCR. The script asks again up to five times for a reply that begins with no number,
    each time at a higher temperature, and then counts 0.

    Args:
        judge: The judge.
        prompt: YAML file of its prompt; asset:judge/mm_vet.yaml for the published one.
    """

    worst = (0.0,)

    def __init__(self, judge: Judge, prompt: str) -> None:
        super().__init__(judge, {"answer": prompt})

    def case(self, question: Question, prediction: str) -> dict[str, str]:
        """Values for the prompt; parts of an answer get a space around <AND> and <OR>."""
        case = super().case(question, prediction)
        answer = case["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        return case | {"answer": answer}

    def read(self, reply: str) -> Verdict:
        """Read the number that a reply begins with."""
        score = float(reply.strip().split(" ")[0])
        if not 0 <= score <= 1:
            raise ValueError(f"not from 0 to 1: {score}")
        return (score,)

    def shares(self, verdicts: Array) -> dict[str, Ratio]:
        """The mean."""
        return {"score": mean(verdicts[:, 0].round(6))}

    def all_ratios(self) -> dict[str, Ratio]:
        """The mean of all, of each combination, and of all questions with a capability."""
        found, needed = super().all_ratios(), [name.split("_") for name in self._categories()]
        for capability in sorted({each for names in needed for each in names if each}):
            chosen = np.array([1.0 * (capability in names) for names in needed])
            found[f"with_{capability}"] = found["score"].where(chosen)
        return found

    def tell(self, verdict: Verdict) -> dict[str, Any]:
        """The score."""
        return {"correct": round(verdict[0], 6)}
