"""12. Asked: questions of one or two runs, those first where a right answer became wrong."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llava_lab.convert.load import load_model
from llava_lab.data.image_folder import VideoPath
from llava_lab.data.questions import Question
from llava_lab.evaluate.groups import by_images
from llava_lab.evaluate.prompts import question_loader
from llava_lab.model.generate import QuestionBatch
from llava_lab.report.look.attention import Attention, attention_of
from llava_lab.report.look.pictures import Map, maps_of, unnormalised
from llava_lab.report.page.configurations import Configuration, configurations
from llava_lab.report.page.samples import Asked, Line, Look
from llava_lab.report.runs import RunResults

Flip = Literal["gained", "lost", "both right", "both wrong", "right", "wrong", "not scored"]


@dataclass(frozen=True)
class Looked:
    """Where one run's answer looks, on the views as its model gets them."""

    label: str
    attention: Attention
    images: list[list[Map]]


@dataclass(frozen=True)
class Answered:
    """One question and what the runs answered.

    Attributes:
        benchmark: Name of the benchmark.
        place: Its place in the benchmark's file, from 0.
        line: What the first run's predictions say of it.
        flip: How the second run's answer differs from the first one's.
        answers: Label and predictions of each run.
        looks: How its pictures were shown; empty where they are not there.
        looked: Where answers look; only of questions that were named.
    """

    benchmark: str
    place: int
    line: Line
    flip: Flip
    answers: list[tuple[str, Line]]
    looks: list[Look]
    looked: list[Looked] = field(default_factory=list)


@dataclass(frozen=True)
class Questions:
    """Questions to show, of all that the runs were asked.

    Attributes:
        labels: What the runs are called.
        places: Their folders.
        counts: How many questions flipped how, by benchmark.
        shown: The questions.
        notes: What could not be shown.
    """

    labels: list[str]
    places: list[str]
    counts: dict[str, Counter[str]]
    shown: list[Answered]
    notes: list[str]


def questions_of(
    runs: Sequence[RunResults],
    ids: Sequence[str] = (),
    flipped: str = "flipped",
    most: int = 24,
    layer: int | None = None,
    trusted: Sequence[str] = (),
) -> Questions:
    """Questions with the answers of one run, or of two side by side.

    Args:
        runs: One run or two.
        ids: Ids of questions, whose answers' attention is drawn; none for those that flipped.
        flipped: Which questions: `flipped`, `gained`, `lost` or `all`; of a single run, `lost` and
            `flipped` are those answered wrong.
        most: Most questions to show.
        layer: Layer whose heads are told apart, from 1; or None.
        trusted: Modules beside this package whose classes a run may name.

    Raises:
        ValueError: If a question is not there, or the runs share none.
    """
    labels = _labels(runs)
    asked = [
        Asked(Configuration(label, "", [run]), trusted)
        for label, run in zip(labels, runs, strict=True)
    ]
    every = list(_every(asked))
    if not every:
        raise ValueError(
            f"{' and '.join(labels)}: no question has predictions of "
            f"{'both' if len(runs) > 1 else 'it'}; `test` writes them anew"
        )
    counts: dict[str, Counter[str]] = {}
    for benchmark, _, lines in every:
        counts.setdefault(benchmark, Counter())[_flip(lines)] += 1
    if ids:
        chosen = _named(every, ids)
    else:
        chosen = list(_in_turn([each for each in every if _wanted(_flip(each[2]), flipped)]))[:most]
    shown = [_answered(asked, *each) for each in chosen]
    for number, each in enumerate(asked) if ids else ():
        _attend(each, shown, number, layer)
    notes = list(dict.fromkeys(note for each in asked for note in each.notes))
    places = [str(run.path.parent) for run in runs]
    return Questions(labels, places, counts, shown, notes)


def _labels(runs: Sequence[RunResults]) -> list[str]:
    """What each run is called: by what differs, or by its folder where that is the seed alone."""
    found = configurations(runs)
    places = [run.path.parent.name for run in runs]
    if len(found) == len(runs) > 1:
        labels = {id(each.runs[0]): each.label for each in found}
        return [labels[id(run)] for run in runs]
    same = len(set(places)) < len(places)
    return [str(run.path.parent) if same else name for run, name in zip(runs, places, strict=True)]


Found = tuple[str, int, list[Line]]  # benchmark, place in its file, each run's line


def _every(asked: Sequence[Asked]) -> Iterator[Found]:
    """Questions that all runs have answered."""
    for benchmark, lines in asked[0].predictions.items():
        for place, line in enumerate(lines):
            others = [each.at(benchmark, place, line) for each in asked]
            known = [each for each in others if each is not None]
            if len(known) == len(asked):
                yield benchmark, place, known


def _flip(lines: Sequence[Line]) -> Flip:
    if any("correct" not in line for line in lines):
        return "not scored"
    right = [line["correct"] >= 0.5 for line in lines]
    if len(right) == 1:
        return "right" if right[0] else "wrong"
    if right[0] == right[1]:
        return "both right" if right[0] else "both wrong"
    return "gained" if right[1] else "lost"


def _wanted(flip: Flip, flipped: str) -> bool:
    kinds = {"flipped": ("gained", "lost", "wrong"), "lost": ("lost", "wrong")}
    kinds |= {"gained": ("gained", "right")}
    return flipped == "all" or flip in kinds[flipped]


def _named(every: Sequence[Found], ids: Sequence[str]) -> list[Found]:
    """Questions by their ids, which may repeat, or by benchmark and id."""
    found: list[Found] = []
    for name in ids:
        own = [e for e in every if name in (str(e[2][0]["id"]), f"{e[0]}/{e[2][0]['id']}")]
        if not own:
            known = ", ".join(f"{e[0]}/{e[2][0]['id']}" for e in every[:5])
            raise ValueError(f"--question {name}: no run was asked it; there are {known}, ...")
        found += own
    return found


def _in_turn(every: Sequence[Found]) -> Iterator[Found]:
    """One question of each category after another."""
    kinds: dict[Any, list[Found]] = {}
    for each in every:
        kinds.setdefault((each[0], each[2][0].get("category")), []).append(each)
    for turn in range(max(map(len, kinds.values()), default=0)):
        yield from (each[turn] for each in kinds.values() if turn < len(each))


def _answered(asked: Sequence[Asked], benchmark: str, place: int, lines: list[Line]) -> Answered:
    looks: dict[Any, Look] = {}
    for each, line in zip(asked, lines, strict=True):
        if look := each.look(benchmark, place, line):
            key = (look.tokens, *(tiles for _, tiles in look.pictures))
            looks.setdefault(key, look).labels.append(each.label)
    answers = [(each.label, line) for each, line in zip(asked, lines, strict=True)]
    return Answered(benchmark, place, lines[0], _flip(lines), answers, list(looks.values()))


def _attend(asked: Asked, shown: Sequence[Answered], number: int, layer: int | None) -> None:
    """Add where a run's answers look, if its weights are there."""
    try:
        model, views = load_model(asked.run.path.parent, trusted=asked.trusted)
    except (OSError, ValueError) as problem:
        asked.notes.append(f"{asked.label}: where its answers look is not drawn: {problem}")
        return
    for each in shown:
        place = f"{each.benchmark}/{each.line['id']}"
        try:
            question = asked.question(each.benchmark, each.place, each.line)
            if not question.images:
                raise ValueError("it has no picture")
            (batch,) = _prompt(model, views, asked, each.benchmark, question)
        except Exception as problem:
            asked.note(f"{place}: where its answer looks is not drawn", problem)
            continue
        found = attention_of(model, batch, layer)
        said = each.answers[number][1]["prediction"]
        if found.text != said:
            asked.notes.append(
                f"{asked.label}: {place}: the answer drawn is "
                f"{found.text!r}; the predictions, of another machine or sampled, say {said!r}"
            )
        maps = _maps(batch, model.view_spec, question)
        each.looked.append(Looked(asked.label, found, maps))


def _prompt(model: Any, views: Any, asked: Asked, name: str, question: Question) -> Any:
    """A loader of one question, asked as in the run."""
    (data, _), benchmark = asked.built, asked.benchmark(name)
    return question_loader(
        model,
        by_images([question], data.image_position),
        views,
        position=data.image_position,
        prompt=benchmark.prompt,
        template=data.template,
        max_new_tokens=benchmark.max_new_tokens or data.max_new_tokens,
    )


def _maps(batch: QuestionBatch, spec: Any, question: Question) -> list[list[Map]]:
    """Views of each image of a question, put together by block."""
    packed, found = batch.batch, []
    views = [] if packed.views is None else unnormalised(packed.views, spec)
    for path, layout in zip(question.images, packed.layouts, strict=True):
        what = "frame" if isinstance(path, VideoPath) else "view"
        found.append(maps_of(layout, views[: layout.views], spec, what))
        views = views[layout.views :]
    return found
