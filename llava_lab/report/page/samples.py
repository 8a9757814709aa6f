"""12. Samples: predictions beside runs -> questions with their pictures, tiles and answers."""

import json
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from llava_lab.core.messages import explained
from llava_lab.core.trust import only_trusted
from llava_lab.data.official import files_of
from llava_lab.experiment.compose import expand_keys, leaves, merge
from llava_lab.report.page.configurations import Configuration
from llava_lab.report.runs import RunResults

if TYPE_CHECKING:  # of torch, which a page of findings needs not
    from llava_lab.data.geometry import ViewSpec
    from llava_lab.data.questions import Question
    from llava_lab.evaluate.benchmark import Benchmark, BenchmarkDataModule
    from llava_lab.report.page.tiles import Tiles

SHOWN = 6  # configurations whose answers stand side by side
QUESTIONS = 8  # of a benchmark
PIXELS, FRAME_PIXELS, FRAMES = 320, 112, 16
FILES = ("questions", "images", "answers", "captions", "labels.file")  # of a benchmark
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """A picture, or a frame of a video.

    Attributes:
        source: The pixels, as a data URI.
        size: Width and height of the file's own pixels.
    """

    source: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Look:
    """How some configurations were shown a question's pictures.

    Attributes:
        labels: The configurations.
        tokens: Visual tokens that were spent.
        pictures: The pictures, or the frames that were taken, each with its tiles.
    """

    labels: list[str]
    tokens: int
    pictures: "list[tuple[Picture, Tiles]]"


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        benchmark: Name of the benchmark.
        line: What the first predictions of it say: question, category, answer.
        answers: Label and predictions of each configuration.
        looks: How the pictures were shown; empty where they are not there.
    """

    benchmark: str
    line: Line
    answers: list[tuple[str, Line]]
    looks: list[Look]


def samples(
    found: Sequence[Configuration], trusted: Sequence[str] = ()
) -> tuple[list[Sample], list[str]]:
    """Questions of every benchmark, and notes on what could not be shown.

    They are chosen where the configurations answer differently, in turn from every category.

    Args:
        found: The configurations.
        trusted: Modules beside this package whose classes a run may name.
    """
    step = max(1, -(-len(found) // SHOWN))
    asked = [Asked(each, trusted) for each in found[::step]]
    asked = [each for each in asked if each.predictions]
    every = [_sample(asked, *key) for key in _chosen(asked)]
    notes = dict.fromkeys(note for each in asked for note in each.notes)
    if asked and len(asked) < len(found):
        notes[f"{len(asked)} of {len(found)} configurations are shown."] = None
    return every, list(notes)


def _chosen(asked: Sequence["Asked"]) -> Iterable[tuple[str, int, Line]]:
    """Benchmark, place and line of each question that is shown."""
    first: dict[str, list[Line]] = {}
    for each in asked:
        first = {**each.predictions, **first}
    for benchmark, lines in first.items():
        kinds: dict[str, list[tuple[bool, int]]] = {}
        for place, line in enumerate(lines):
            given = [other for each in asked if (other := each.at(benchmark, place, line))]
            same = len({other.get("correct", 0) >= 0.5 for other in given}) < 2
            kinds.setdefault(str(line.get("category")), []).append((same, place))
        ranked = [sorted(each) for _, each in sorted(kinds.items())]
        turns = [each[turn] for turn in range(QUESTIONS) for each in ranked if turn < len(each)]
        yield from ((benchmark, place, lines[place]) for _, place in turns[:QUESTIONS])


def _sample(asked: Sequence["Asked"], benchmark: str, place: int, line: Line) -> Sample:
    answers, looks = [], {}
    for each in asked:
        if other := each.at(benchmark, place, line):
            answers.append((each.label, other))
            if look := each.look(benchmark, place, other):
                key = (look.tokens, *(tiles for _, tiles in look.pictures))
                looks.setdefault(key, look).labels.append(each.label)
    return Sample(benchmark, line, answers, list(looks.values()))


class Asked:
    """What the first run of a configuration was asked, was shown and has answered.

    Args:
        configuration: The configuration.
        trusted: Modules beside this package whose classes the run may name.
    """

    def __init__(self, configuration: Configuration, trusted: Sequence[str] = ()):
        self.label, self.run = configuration.label, configuration.runs[0]
        self.trusted = trusted
        self.notes = list[str]()
        self._made: dict[str, Any] = {}

    @cached_property
    def predictions(self) -> dict[str, list[Line]]:
        """Lines of the prediction files, by benchmark."""
        files = {
            name: self.run.path.parent / "predictions" / f"{name}.jsonl"
            for name in self.run.results["benchmarks"]
        }
        return {name: _lines(path) for name, path in files.items() if path.is_file()}

    def at(self, benchmark: str, place: int, line: Line) -> Line | None:
        """The line at a place, if it is of the same question."""
        lines = self.predictions.get(benchmark, [])
        other = lines[place] if place < len(lines) else {}
        same = all(other.get(key) == line.get(key) for key in ("id", "question"))
        return other if same and other else None

    def look(self, benchmark: str, place: int, line: Line) -> Look | None:
        """The pictures of a question, as the views show them.

        None where it has no picture; and, with a note, where they cannot be shown.
        """
        from llava_lab.report.page.tiles import tiles_of

        try:
            question, (data, spec) = self.question(benchmark, place, line), self.built
            views, pictures, tokens = data.views, [], 0
            for path in question.images:
                media = views.load(path)
                tokens += views.layout(media.size, spec).tokens
                several = len(media.size) == 3
                frames = media.frames[:FRAMES] if several else [media]
                of = views if several else getattr(views, "image", views)
                side = FRAME_PIXELS if several else PIXELS
                for frame in frames:
                    tiles = tiles_of(of, frame.size, spec.image_size)
                    pictures.append((shrunk(frame, side), tiles))
            return Look([], tokens, pictures) if pictures else None
        except Exception as error:
            self.note(f"pictures of {benchmark} are not shown", error)
            return None

    def note(self, what: str, error: Exception) -> None:
        """Note what could not be shown, and why; an error that is a bug is raised again."""
        if (message := explained(error)) is None:
            raise error
        self.notes.append(f"{self.label}: {what}: {message}")

    def question(self, benchmark: str, place: int, line: Line) -> "Question":
        """The question that a line of predictions answers.

        Args:
            benchmark: Name of the benchmark.
            place: Number of the line, from 0.
            line: The line.

        Raises:
            OSError: If the benchmark's files are not there.
            ValueError: If they cannot be read, or do not have the question as it was asked.
        """
        asked = self.benchmark(benchmark)
        questions = self._once(benchmark, lambda: asked.questions)
        key = (line["id"], line["question"])
        # Where batches were limited, lines are fewer than questions.
        for some in (questions[place : place + 1], questions):
            found = [each for each in some if (each.id, each.prompt) == key]
            if len(found) == 1:
                return found[0]
        raise ValueError(
            f"{asked.path}: {len(found)} questions have the id {key[0]!r} and the text that was "
            "asked, not one; the file is not as it was"
        )

    def benchmark(self, name: str) -> "Benchmark":
        """A benchmark of the run, whose files are sought from here and from where the run lies.

        Raises:
            ValueError: If the run's configuration has none of that name, or cannot be built.
        """
        data, _ = self.built
        found = {each.name: each for each in data.benchmarks}
        if name not in found:
            path = self.run.path.with_name("config.yaml")
            raise ValueError(f"{path}: there is no benchmark {name}, only {', '.join(found)}")
        return found[name]

    @property
    def built(self) -> "tuple[BenchmarkDataModule, ViewSpec]":
        """What the run was asked, and what its model wants of a view.

        Raises:
            OSError: If a file that its model needs is not there.
            ValueError: If its configuration cannot be built.
        """
        return self._once("", self._build)

    def _build(self) -> "tuple[BenchmarkDataModule, ViewSpec]":
        # Here, since torch takes seconds, and a page without pictures needs none of it.
        import torch

        from llava_lab.experiment.experiment import Experiment
        from llava_lab.report.plan import unloaded

        with only_trusted(self.trusted), torch.device("meta"):
            experiment = Experiment.read(self.run.path.with_name("config.yaml"))
            moved = [_moved(each, self.run) for each in experiment.config["data"]["benchmarks"]]
            parts = unloaded(experiment).changed({"data.benchmarks": moved}).build()
        return parts.benchmarks, parts.model.view_spec

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """What is made once, or the error that making it has raised, again."""
        if name not in self._made:
            try:
                self._made[name] = make()
            except Exception as error:
                self._made[name] = error
        if isinstance(found := self._made[name], Exception):
            raise found
        return found


def _moved(benchmark: dict[str, Any], run: RunResults) -> dict[str, Any]:
    """A benchmark's options, its files from here or from the folder above the run with most."""
    names = {key: name for key, name in leaves(benchmark) if key in FILES and name is not None}
    places = [Path(), *run.path.resolve().parents]
    there = [sum(bool(files_of(str(place / name))) for name in names.values()) for place in places]
    place = places[there.index(max(there))]
    return merge(benchmark, expand_keys({key: str(place / name) for key, name in names.items()}))


def _lines(path: Path) -> list[Line]:
    """Lines of a prediction file.

    Raises:
        ValueError: If one is damaged; names it.
    """
    lines: list[Line] = []
    with path.open(encoding="utf-8") as file:  # str.splitlines parts an answer at U+2028, too
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if not isinstance(line, dict) or not {"id", "question", "prediction"} <= line.keys():
                raise ValueError(
                    f"{path}, line {number}: no prediction. `test` writes the file anew."
                )
            lines.append(line)
    return lines


def shrunk(image: Image.Image, side: int) -> Picture:
    """A picture, made small enough for a page."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = BytesIO()
    small.save(out, "WEBP", quality=80)
    return Picture(f"data:image/webp;base64,{b64encode(out.getvalue()).decode()}", image.size)
