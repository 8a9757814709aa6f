"""11. Open-ended: published question files of several layouts -> questions for a judge."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava_lab.data.fields import read_id
from llava_lab.data.image_folder import ImageFolder
from llava_lab.data.questions import Question, read_question
from llava_lab.data.rows import BadRow, BadRows, FileRow, Refused, read_rows
from llava_lab.data.video_names import VideoNames
from llava_lab.evaluate.benchmark import Benchmark
from llava_lab.evaluate.judge import JudgePrompt
from llava_lab.evaluate.metrics.base import BenchmarkMetric
from llava_lab.evaluate.official import all_there, check_roles


class OpenEnded(Benchmark):
    """Benchmark with free-form answers, in any of the published layouts.

    ActivityNet-QA and, as Video-LLaVA has them, MSVD-QA, MSRVTT-QA and TGIF-QA are two files,
    {question_id, video_name, question} and {question_id, answer}; Video-ChatGPT's rows are
    {video_name, Q, A} or, for consistency, {video_name, Q1, Q2, A}; LLaVA-Bench's are question
    files. A video's name has no suffix, and may lack the prefix `v_`. Repeated ids get `_1`, `_2`
    and so on; answers are matched in order.

    Args:
        name: Name in tables and of the prediction file.
        questions: .json or .jsonl file of questions.
        images: Folder of the images or videos.
        metric: How answers are scored.
        answers: File of {question_id, answer or text}, or null if the questions have answers.
        captions: File of {image, caption}, descriptions of the images for the judge, or, as for
            LLaVA-Bench-COCO, of {image, captions, instances}, captions and boxes; or null.
        prompt: Line that is added to every question.
        blind: Ask all questions a second time beside wrong images, those of another question; this
            doubles the judge's work.
        limit: Number of questions to ask, from the first on; null asks all.
        text_only: Ask all questions once more without any image, at the same price.
        max_new_tokens: Longest answer; null for that of `data`.
        temperature: Temperature of answers; null for that of `data`.
        files: What `questions`, `images`, `answers` and `captions` are: from which download.
    """

    idle = ("questions", "images", "files")

    def __init__(
        self,
        name: str,
        questions: str,
        images: str,
        metric: BenchmarkMetric,
        answers: str | None = None,
        captions: str | None = None,
        prompt: str | None = None,
        blind: bool = False,
        limit: int | None = None,
        text_only: bool = False,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        files: dict[str, str] | None = None,
    ):
        super().__init__(name, questions, images, metric, prompt, blind, limit, text_only=text_only)
        self.folder, self._videos = Path(images), VideoNames(Path(images))
        self.decode_by(max_new_tokens, temperature)
        self.answers, self.captions, self.files = answers, captions, files or {}
        check_roles(name, self.files, ("questions", "images", "answers", "captions"))
        prompts = [text for each in _prompts(metric) for text in each.texts.values()]
        if captions is not None and prompts and not any("{caption}" in text for text in prompts):
            raise ValueError(
                f"benchmark {name}: captions are for a judge, and none of its prompts shows a "
                "{caption}; leave them out, or write it into a prompt"
            )

    def read(self) -> list[Question]:
        """Read all questions of the file.

        Raises:
            FileNotFoundError: If files are not there; names all of them, and what they are.
            BadRows: Some rows are not usable.
            ValueError: If questions and answers have different ids.
        """
        path = Path(self.path)
        needed = {"questions": self.path, "images": str(self.folder)}
        more = {"answers": self.answers, "captions": self.captions}
        needed |= {role: file for role, file in more.items() if file is not None}
        all_there(self.name, needed, self.files)
        rows, folder = read_rows(path), ImageFolder(self.folder)
        answers, captions = self._answers(), self._captions()
        seen: dict[str, int] = defaultdict(int)
        questions: list[Question] = []
        bad: list[BadRow] = []
        for row in rows:
            try:
                if not isinstance(row.value, dict):
                    raise Refused(f"a row must be an object, not {type(row.value).__name__}")
                named = "video_name" in row.value
                name = read_id(row.value, "question_id", row.number if named else None)
                unique = f"{name}_{seen[name]}" if seen[name] else name
                seen[name] += 1
                for end, values in self._plain(row.value):
                    if self.answers is not None:
                        values["answer"] = _next(answers, name + end, self.answers)
                    if self.captions is not None:
                        values["caption"] = captions.get(str(values.get("image")))
                    values["question_id"] = unique + end
                    questions.append(read_question(FileRow(row.place, row.number, values), folder))
            except Refused as problem:
                bad.append(BadRow(row.place, str(row.number), str(problem)))
        if bad:
            raise BadRows(path, bad, len(rows))
        if left := [name for name, more in answers.items() if more]:
            raise ValueError(
                f"{self.answers}: {len(left)} answers are to no question of {path}, the first to "
                f"{left[0]!r}"
            )
        return questions

    def _plain(self, row: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Convert a row to rows of a question file, each with the suffix of its id."""
        if "video_name" not in row:
            yield "", dict(row)
            return
        shown = {"video": self._videos.find(str(row["video_name"])), "answer": row.get("A")}
        if "Q1" in row:
            for number in (1, 2):
                yield f"/{number}", {"text": row.get(f"Q{number}"), **shown}
        else:
            yield "", {"text": row.get("Q", row.get("question")), **shown}

    def _answers(self) -> dict[str, list[str]]:
        """Read answers by question id, in order if an id repeats."""
        found: dict[str, list[str]] = defaultdict(list)
        for row in read_rows(Path(self.answers)) if self.answers else ():
            values = row.value if isinstance(row.value, dict) else {}
            answer = values.get("answer", values.get("text"))
            if "question_id" not in values or not isinstance(answer, str):
                raise ValueError(
                    f"{row.place}: an answer has `question_id`, and `answer` or `text`"
                )
            found[str(values["question_id"])].append(answer)
        return found

    def _captions(self) -> dict[str, str]:
        """Read captions by image."""
        found: dict[str, Any] = {}
        for row in read_rows(Path(self.captions)) if self.captions else ():
            values = row.value if isinstance(row.value, dict) else {}
            image, caption = values.get("image"), values.get("caption")
            if "captions" in values and "instances" in values:
                caption = _with_boxes(values["captions"], values["instances"], row.place)
            if not isinstance(image, str) or caption is None:
                raise ValueError(f"{row.place}: a caption has `image` and `caption`")
            if found.setdefault(image, caption) != caption:
                raise ValueError(f"{row.place}: a second caption of {image!r}")
        return found


def _prompts(metric: Any) -> list[JudgePrompt]:
    """Prompts of a metric's judge; none where it has no judge, or one of its own kind."""
    found = getattr(metric, "prompts", None)
    return list(found.values()) if isinstance(found, dict) else []


def _with_boxes(captions: Any, instances: Any, place: str) -> str:
    """Captions and boxes as a text, as haotian-liu/LLaVA@c121f04 has them for its judge.

    llava/eval/eval_gpt_review_visual.py.
    """
    try:
        boxes = [f"{each['category']}: {each['bbox']}" for each in instances]
        return "\n".join(captions) + "\n\n" + "\n".join(boxes)
    except (TypeError, KeyError):
        raise ValueError(f"{place}: `instances` are objects of `category` and `bbox`") from None


def _next(answers: dict[str, list[str]], name: str, path: str) -> str:
    if not answers.get(name):
        raise Refused(f"question {name!r} has no answer in {path}")
    return answers[name].pop(0)
