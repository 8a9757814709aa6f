"""11. Submission: answers to all questions -> the file that a benchmark's server scores.

The forms are those of haotian-liu/LLaVA@c121f04, scripts/convert_*_for_submission.py and
convert_mmvet_for_eval.py, but where one says otherwise.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llava_lab.data.questions import Question
from llava_lab.evaluate.metrics.choice import LETTERS, egoschema_letter
from llava_lab.evaluate.metrics.normalize import vqa_answer

Pairs = Sequence[tuple[Question, str]]


@dataclass(frozen=True)
class Form:
    """A form of file.

    Attributes:
        ending: Ending of its name.
        make: Questions with answers to the file's text.
    """

    ending: str
    make: Callable[[Pairs], str]

    def text(self, questions: Sequence[Question], predictions: Sequence[str]) -> str:
        """The file's text.

        Args:
            questions: All questions.
            predictions: The answer to each.
        """
        return self.make(list(zip(questions, predictions, strict=True)))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _number(id: str) -> int | str:
    return int(id) if id.isdecimal() else id


def _vqav2(pairs: Pairs) -> str:
    """Official processing of VQA's answers, by question."""
    rows = [{"question_id": _number(q.id), "answer": vqa_answer(text)} for q, text in pairs]
    return _json(rows)


def _vizwiz(pairs: Pairs) -> str:
    """The same by picture."""
    return _json([{"image": q.images[0].name, "answer": vqa_answer(text)} for q, text in pairs])


def _gqa(pairs: Pairs) -> str:
    """Answers without periods at the end, in lower case."""
    rows = [{"questionId": q.id, "prediction": text.rstrip(".").lower()} for q, text in pairs]
    return _json(rows)


def _seed(pairs: Pairs) -> str:
    """A line a question."""
    rows = [{"question_id": q.id, "prediction": text} for q, text in pairs]
    return "".join(f"{_json(row)}\n" for row in rows)


def _mmvet(pairs: Pairs) -> str:
    """An object of answers by id, "v1_0"."""
    return _json({q.id: text for q, text in pairs})


def _docvqa(pairs: Pairs) -> str:
    """Answers as they are, by the question's number."""
    return _json([{"questionId": _number(q.id), "answer": text} for q, text in pairs])


def _egoschema(pairs: Pairs) -> str:
    """An object of the options' numbers by video; -1, which is wrong, where no option is named.

    EvolvingLMMs-Lab/lmms-eval@75571cf, lmms_eval/tasks/egoschema/utils.py, which draws one there.
    """
    letters = {q.id: egoschema_letter(text.strip(), q.choices) for q, text in pairs}
    return _json({id: -1 if each is None else LETTERS.index(each) for id, each in letters.items()})


def _perception(pairs: Pairs) -> str:
    """Rows of a video, a question and an option's number; -1 for whatever is no letter alone.

    EvolvingLMMs-Lab/lmms-eval@75571cf, lmms_eval/tasks/perceptiontest/test/utils.py.
    """
    rows = []
    for question, text in pairs:
        video, _, number = question.id.rpartition("/")
        asked = question.prompt.rsplit("\n", len(question.choices))[0]
        option = "ABC".find(text) if text else -1
        named = {"video_name": video, "question": asked, "question_id": _number(number)}
        rows.append({**named, "pred_id": option if len(text) == 1 else -1})
    return _json(rows)


def _mmbench(pairs: Pairs) -> str:
    """A table by index, question (with its hint) and options; the server takes it as .xlsx."""
    most = max((len(question.choices) for question, _ in pairs), default=0)
    letters = [chr(ord("A") + place) for place in range(most)]
    file = io.StringIO()
    writer = csv.writer(file, delimiter="\t", lineterminator="\n")
    writer.writerow(["index", "question", *letters, "prediction"])
    for question, text in pairs:
        options = [*question.choices, *[""] * (most - len(question.choices))]
        asked = question.prompt.rsplit("\n", len(question.choices))[0]
        writer.writerow([question.id, asked, *options, text])
    return file.getvalue()


SUBMISSIONS = {
    "vqav2": Form(".json", _vqav2),
    "vizwiz": Form(".json", _vizwiz),
    "gqa": Form(".json", _gqa),
    "seed": Form(".jsonl", _seed),
    "mmvet": Form(".json", _mmvet),
    "docvqa": Form(".json", _docvqa),
    "mmbench": Form(".tsv", _mmbench),
    "egoschema": Form(".json", _egoschema),
    "perception": Form(".json", _perception),
}
