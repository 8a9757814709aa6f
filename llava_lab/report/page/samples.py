"""12. Samples: predictions beside runs -> questions with their pictures, tiles and answers."""

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from llava_lab.core.messages import explained
from llava_lab.report.page.configurations import Configuration
from llava_lab.report.runs import RunResults

if TYPE_CHECKING:  # of torch, which a page of findings needs not
    from llava_lab.report.page.tiles import Tiles

SHOWN = 6  # configurations whose answers stand side by side
QUESTIONS = 8  # of a benchmark
PIXELS, FRAME_PIXELS, FRAMES = 320, 112, 16
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
        line: What the first configuration's predictions say of it: question, category, answer.
        answers: Label and predictions of each configuration.
        looks: How the pictures were shown; empty where they are not there.
    """

    benchmark: str
    line: Line
    answers: list[tuple[str, Line]]
    looks: list[Look]


def samples(found: Sequence[Configuration]) -> tuple[list[Sample], list[str]]:
    """Questions of every benchmark, and notes on what could not be shown.

    They are chosen where the configurations answer differently, in turn from every category.
    """
    step = max(1, -(-len(found) // SHOWN))
    asked = [Asked(each) for each in found[::step]]
    asked = [each for each in asked if each.predictions]
    every = [_sample(asked, *key) for key in _chosen(asked)]
    notes = dict.fromkeys(note for each in asked for note in each.notes)
    if asked and len(asked) < len(found):
        notes[f"{len(asked)} of {len(found)} configurations are shown."] = None
    return every, list(notes)


def _chosen(asked: Sequence["Asked"]) -> Iterable[tuple[str, int]]:
    """Benchmark and place of each question that is shown."""
    for benchmark, lines in asked[0].predictions.items() if asked else ():
        kinds: dict[str, list[tuple[bool, int]]] = {}
        for place, line in enumerate(lines):
            given = [other for each in asked if (other := each.at(benchmark, place, line))]
            same = len({other.get("correct", 0) >= 0.5 for other in given}) < 2
            kinds.setdefault(str(line.get("category")), []).append((same, place))
        ranked = [sorted(each) for _, each in sorted(kinds.items())]
        turns = [each[turn] for turn in range(QUESTIONS) for each in ranked if turn < len(each)]
        yield from ((benchmark, place) for _, place in turns[:QUESTIONS])


def _sample(asked: Sequence["Asked"], benchmark: str, place: int) -> Sample:
    line = asked[0].predictions[benchmark][place]
    answers, looks = [], {}
    for each in asked:
        if other := each.at(benchmark, place, line):
            answers.append((each.label, other))
            if look := each.look(benchmark, place, other):
                key = (look.tokens, *(tiles for _, tiles in look.pictures))
                looks.setdefault(key, look).labels.append(each.label)
    return Sample(benchmark, line, answers, list(looks.values()))


class Asked:
    """What the first run of a configuration was asked, was shown and has answered."""

    def __init__(self, configuration: Configuration):
        self.label, self.run = configuration.label, configuration.runs[0]
        self.config, self.notes = self.run.config or {}, list[str]()
        self._questions: dict[str, Sequence[Any]] = {}

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
        """The pictures of a question, if they are there, as the views show them."""
        from llava_lab.report.page.tiles import tiles_of

        try:
            questions = self.questions(benchmark)
            if self._shown is None or place >= len(questions) or questions[place].id != line["id"]:
                return None
            views, spec = self._shown
            pictures, tokens = [], 0
            for path in questions[place].images:
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
            if (message := explained(error)) is None:
                raise
            self.notes.append(f"{self.label}: pictures of {benchmark} are not shown: {message}")
            return None

    def questions(self, benchmark: str) -> Sequence[Any]:
        """The questions of a benchmark, if its file is still there."""
        if benchmark not in self._questions:
            self._questions[benchmark] = []  # said once, if it fails
            self._questions[benchmark] = _questions(self.run, benchmark, self.config)
        return self._questions[benchmark]

    @cached_property
    def _shown(self) -> tuple[Any, Any] | None:
        """The views of the questions, and what the model wants of a view."""
        # Here, since torch takes seconds, and a page without pictures needs none of it.
        import torch

        from llava_lab.experiment.experiment import Experiment
        from llava_lab.report.plan import unloaded

        try:
            experiment = Experiment.read(self.run.path.with_name("config.yaml"))
            with torch.device("meta"):
                model, _, benchmarks, _ = unloaded(experiment).build()
        except (OSError, ValueError) as error:
            self.notes.append(f"{self.label}: tiles and tokens are not known: {error}")
            return None
        return benchmarks.views, model.view_spec


def _questions(run: RunResults, benchmark: str, config: Mapping[str, Any]) -> Sequence[Any]:
    from llava_lab.data.questions import read_questions

    known = (config.get("data") or {}).get("benchmarks") or []
    for each in known:
        if each["name"] == benchmark:
            images = each.get("images")
            questions = read_questions(
                _found(run, each["questions"]),
                None if images is None else _found(run, images),
                each.get("held_out") or 0.0,
            )
            return questions[: each.get("limit")]
    return []


def _found(run: RunResults, name: str) -> Path:
    """A file that a configuration names, from here or from a folder that the run lies in."""
    places = [Path(name), *(folder / name for folder in run.path.resolve().parents)]
    return next((place for place in places if place.exists()), Path(name))


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
