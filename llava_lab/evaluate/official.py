"""11. Official: a published benchmark as data: files, their columns, prompt, decoding, metric."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llava_lab.core.atomic import write
from llava_lab.data.cells import cell, fields, filled, is_template
from llava_lab.data.choices import options_of, written
from llava_lab.data.fields import IMAGE_PLACEHOLDER, read_text
from llava_lab.data.image_folder import ImageFolder, VideoPath
from llava_lab.data.official import files_of, read_official, unpack
from llava_lab.data.questions import Question
from llava_lab.data.rows import BadRow, BadRows, FileRow, Refused
from llava_lab.data.video_names import VideoNames
from llava_lab.evaluate.benchmark import Benchmark
from llava_lab.evaluate.metrics.base import BenchmarkMetric
from llava_lab.evaluate.submission import SUBMISSIONS


@dataclass
class Columns:
    """Which cells of a row make a question.

    A template has names of columns in braces (llava_lab.data.cells); anything else is the name of
    one column. Cells of the row's label are under `label`, such as `label.answer`.

    Args:
        id: Template of the question's id.
        text: Template of what is asked; `{choices}` stands for the options, a line each: "A. cat".
        image: Template of the picture's path in `images`; or the column of a picture that the file
            has inside, which is written to `images` once; or several such columns. A null cell is a
            question without a picture; null, all are.
        answers: Template of the one answer, or the column of a list of them: texts, or objects with
            `answer`; or several columns of one each, of which some may be null. Null where answers
            are secret.
        category: Template of the category; "/" parts what has scores of its own at each level.
        choices: Column of a list of options, or columns of one each, of which the first empty one
            ends them; or templates of one each, which all are options.
        kind: Template of what sort of answer is wanted, for the metric.
        prompts: Line that is added to a question, by its kind; null adds none.
        video: Whether `image` is the path of a video, whose ending may be left out.
        caption: Template of what a judge reads beside question and answer, or null.
    """

    id: str
    text: str
    image: str | list[str] | None = None
    answers: str | list[str] | None = None
    category: str | None = None
    choices: str | list[str] | None = None
    kind: str | None = None
    prompts: dict[str, str] | None = None
    video: bool = False
    caption: str | None = None


@dataclass
class Labels:
    """A file of answers, apart from that of the questions.

    Every question has one label, and every label a question: anything else is an error.

    Args:
        file: The file, or a pattern of several, or a folder.
        key: Template of a label's key.
        of: Template of the key of a question's label.
        under: Key of the rows in a JSON object; null where there is none.
        where: Values of columns that a label must have to count; null takes all.
        repeated: Labels of one key have to be "equal"; or the "last" one counts, as in scripts that
            keep them by key.
    """

    file: str
    key: str
    of: str
    under: str | None = None
    where: dict[str, str] | None = None
    repeated: Literal["equal", "last"] = "equal"


def check_roles(name: str, files: Mapping[str, str], roles: Sequence[str]) -> None:
    """Refuse the description of a file that a benchmark does not have."""
    if odd := set(files) - set(roles):
        raise ValueError(f"benchmark {name}: files are {', '.join(roles)}; not {odd}")


def all_there(name: str, needed: Mapping[str, str], files: Mapping[str, str]) -> None:
    """Refuse to begin where files are missing, with one message that names all of them.

    Args:
        name: Name of the benchmark.
        needed: Paths of its files and folders, by their role.
        files: What each role's file is, and from which download.
    """
    if lost := [role for role, path in needed.items() if not files_of(path)]:
        lines = [f"\n  {needed[role]}: {files.get(role, role)}" for role in lost]
        raise FileNotFoundError(
            f"benchmark {name}: {len(lost)} of {len(needed)} files and folders are not "
            f"there; put them where they belong:{''.join(lines)}"
        )


class Official(Benchmark):
    """A published benchmark, read from the files that its authors publish.

    Args:
        name: Name in tables and of the prediction file.
        questions: File of the questions, or a pattern of several parquet files.
        images: Folder of the pictures; those that files have inside are written there.
        columns: Which cells of a row make a question.
        metric: How answers are scored.
        labels: File of the answers, or null where the questions have them.
        under: Key of the questions in a JSON object, or null.
        prompt: Line that is added to every question; null where the file has it.
        max_new_tokens: Longest answer.
        submission: Form of the file for the server that scores answers, or null.
        files: What `questions`, `images` and `labels` are: from which download, how large.
        blind: Ask all questions a second time beside wrong images, those of another question.
        limit: Number of questions to ask, from the first on; null asks all.
        temperature: Temperature of answers; null for that of `data`.
    """

    idle = ("questions", "images", "labels.file", "files", "submission")

    def __init__(
        self,
        name: str,
        questions: str,
        images: str,
        columns: Columns,
        metric: BenchmarkMetric,
        labels: Labels | None = None,
        under: str | None = None,
        prompt: str | None = None,
        max_new_tokens: int = 128,
        submission: str | None = None,
        files: dict[str, str] | None = None,
        blind: bool = False,
        limit: int | None = None,
        temperature: float | None = None,
    ):
        super().__init__(name, questions, images, metric, prompt, blind, limit)
        if submission is not None and submission not in SUBMISSIONS:
            known = ", ".join(SUBMISSIONS)
            raise ValueError(f"benchmark {name}: submission {submission!r} is none of {known}")
        check_roles(name, files or {}, ("questions", "images", "labels"))
        self.folder, self.columns, self.labels, self.under = Path(images), columns, labels, under
        self._videos = VideoNames(self.folder)
        self.submission, self.files = submission, files or {}
        self.decode_by(max_new_tokens, temperature)

    def read(self) -> list[Question]:
        """Read all questions with their answers.

        Raises:
            FileNotFoundError: If files are not there; names all of them, and what they are.
            BadRows: Some rows are not usable.
            ValueError: If questions and labels do not belong together.
        """
        self._all_there()
        labels = self._read_labels()
        folder = None if self._inside else ImageFolder(self.folder)
        questions, bad, total, used = [], [], 0, set()
        for row in read_official(self.path, self.under):
            total += 1
            try:
                key = filled(self.labels.of, row.value) if self.labels else ""
                value = dict(row.value)
                if self.labels:
                    value["label"] = self._label(labels, key).value
                    used.add(key)
                questions.append(self._question(FileRow(row.place, row.number, value), folder))
            except Refused as problem:
                bad.append(BadRow(row.place, str(row.number), str(problem)))
        if bad:
            raise BadRows(Path(self.path), bad, total)
        if left := [label for key, label in labels.items() if key not in used]:
            raise ValueError(
                f"{left[0].place}: a label of no question of {self.path} ({len(left)} such "
                "labels); are the two files of one release?"
            )
        if not questions:
            raise ValueError(f"{self.path}: holds no questions")
        return questions

    def _all_there(self) -> None:
        """Refuse to begin where files are missing, with one message that names all of them."""
        needed = {"questions": self.path}
        needed |= {"labels": self.labels.file} if self.labels else {}
        needed |= {} if self._inside else {"images": str(self.folder)}
        all_there(self.name, needed, self.files)

    @property
    def _inside(self) -> bool:
        """Whether pictures are inside of the questions' file."""
        image = self.columns.image
        return isinstance(image, list) or (image is not None and not is_template(image))

    def _read_labels(self) -> dict[str, FileRow]:
        """Labels by their key; the same key twice has to be the same label."""
        found: dict[str, FileRow] = {}
        if self.labels is None:
            return found
        where = self.labels.where or {}
        for row in read_official(self.labels.file, self.labels.under):
            if any(str(cell(row.value, name)) != value for name, value in where.items()):
                continue
            try:
                key = filled(self.labels.key, row.value)
            except Refused as problem:
                raise ValueError(f"{row.place}: {problem}") from None
            before, found[key] = found.get(key, row), row
            if self.labels.repeated == "equal" and self._answer(before) != self._answer(row):
                raise ValueError(f"{row.place}: another label for {key!r} than {before.place}")
        return found

    def _answer(self, label: FileRow) -> list[Any]:
        """What a label says of the answer."""
        answers = self.columns.answers or ""
        columns = [answers] if isinstance(answers, str) else answers
        names = [
            name
            for column in columns
            for name in ([n for n, _ in fields(column)] if is_template(column) else [column])
        ]
        return [cell({"label": label.value}, name) for name in names]

    def _label(self, labels: Mapping[str, FileRow], key: str) -> FileRow:
        assert self.labels is not None
        if key not in labels:
            raise Refused(f"its label, {key!r}, is not in {self.labels.file}")
        return labels[key]

    def _question(self, row: FileRow, folder: ImageFolder | None) -> Question:
        columns, cells = self.columns, row.value
        choices = options_of(cells, columns.choices)
        cells = {**cells, "choices": written(choices)} if columns.choices else cells
        kind = filled(columns.kind, cells).strip() if columns.kind else ""
        text = filled(columns.text, cells)
        if not text.strip():
            raise Refused("its question is empty")
        if columns.prompts is not None:
            if kind not in columns.prompts:
                raise Refused(f"its kind is {kind!r}; known are {', '.join(columns.prompts)}")
            text = f"{text}\n{columns.prompts[kind]}"
        images = tuple(self._pictures(cells, folder))
        if IMAGE_PLACEHOLDER in text:
            raise Refused(f"its text has a literal {IMAGE_PLACEHOLDER}")
        name, answers = filled(columns.id, cells), tuple(self._answers(cells))
        category = filled(columns.category, cells) if columns.category else None
        for written_to_answers in (name, text, category or "", *answers):
            read_text(written_to_answers, "its id, text, category or answer")
        return Question(
            name,
            images,
            f"{IMAGE_PLACEHOLDER}\n" * len(images) + text,
            category,
            answers,
            row.place,
            filled(columns.caption, cells) if columns.caption else None,
            choices=choices,
            kind=kind,
        )

    def _pictures(self, cells: Mapping[str, Any], folder: ImageFolder | None) -> Iterator[Path]:
        image = self.columns.image
        if folder is None:
            names = [image] if isinstance(image, str) else image or []
            for name in names:
                if (inside := cell(cells, name)) is not None:
                    yield (self.folder / unpack(inside, self.folder)).absolute()
        elif isinstance(image, str) and all(cell(cells, n) is not None for n, _ in fields(image)):
            name = filled(image, cells)
            if self.columns.video:
                shown = name if "/" in name else self._videos.find(name)
                yield VideoPath(folder.find(shown, "video"))
            else:
                yield folder.find(name)

    def _answers(self, cells: Mapping[str, Any]) -> Iterator[str]:
        """The correct answers; none where the file keeps them secret."""
        answers = self.columns.answers or []
        for column in [answers] if isinstance(answers, str) else answers:
            if is_template(column):
                value: Any = filled(column, cells).strip()
            else:
                value = cell(cells, column)
            for each in value if isinstance(value, list) else [value]:
                text = each.get("answer") if isinstance(each, Mapping) else each
                if text is not None and value != "":
                    yield str(text)

    def submit(self, folder: Path, predictions: Sequence[str]) -> None:
        """Write the file for the server."""
        if self.submission is not None:
            form = SUBMISSIONS[self.submission]
            write(folder / f"{self.name}{form.ending}", form.text(self.questions, predictions))
