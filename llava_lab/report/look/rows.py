"""12. Rows: one training row -> its views, tokens, labels and positions, as the model gets them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llava_lab.data.geometry import ViewSpec
from llava_lab.data.image_folder import VideoPath
from llava_lab.data.packing import Batch, EncodedSample
from llava_lab.data.tokens import IGNORE, VISUAL
from llava_lab.experiment.build import make_worlds
from llava_lab.experiment.experiment import Experiment
from llava_lab.report.look.pictures import Map, maps_of, unnormalised
from llava_lab.report.page.samples import PIXELS, Picture, shrunk
from llava_lab.report.page.tiles import Tiles, tiles_of
from llava_lab.report.plan import unloaded


@dataclass(frozen=True)
class Token:
    """A token of text, or the visual tokens of blocks of an image that are alike.

    Attributes:
        text: How it is shown.
        position: Position of the (first) token.
        id: The token's id; of visual tokens, how many there are.
        target: Whether its label is itself, so that the token before it is trained to say it.
        visual: Whether it stands for visual tokens.
    """

    text: str
    position: int
    id: int
    target: bool
    visual: bool = False


@dataclass(frozen=True)
class Part:
    """A segment of a row: the whole conversation; or a prompt, and each answer to it.

    Attributes:
        name: What it is.
        tokens: Its tokens, visual ones by block.
    """

    name: str
    tokens: list[Token]


@dataclass(frozen=True)
class Shown:
    """An image of a row.

    Attributes:
        name: What it is.
        maps: Its views, put together by block.
        picture: The picture itself; None of a video.
        tiles: Where its views lie on it.
    """

    name: str
    maps: list[Map]
    picture: Picture | None = None
    tiles: Tiles | None = None


@dataclass(frozen=True)
class Row:
    """One training row of a stage.

    Attributes:
        stage: Name of the stage.
        number: Its number among the stage's rows, from 1.
        rows: How many these are.
        source: File and row.
        id: Its id.
        messages: Role and text of every message, as the file has them.
        template: Chat template.
        images: Its images.
        parts: Its segments.
        counts: Tokens, visual ones, targets.
    """

    stage: str
    number: int
    rows: int
    source: str
    id: str
    messages: list[list[str]]
    template: str
    images: list[Shown]
    parts: list[Part]
    counts: dict[str, int]


def row_of(stage: Any, model: Any, number: int) -> Row:
    """A row as its stage gives it to the model.

    Args:
        stage: The stage.
        model: The model, whose weights are not used.
        number: Number of the row among the stage's training rows, from 1.

    Raises:
        ValueError: If there is no such row, or it cannot be trained on.
    """
    data = stage.data
    if not hasattr(data, "encoded"):
        raise ValueError(
            f"stages.{stage.name}: {type(data).__name__} has pictures and phrases, no rows of "
            "tokens for the LM; name another --stage"
        )
    data.read()
    if not 1 <= number <= len(data.samples):
        raise ValueError(
            f"--row {number}: stages.{stage.name} has {len(data.samples)} rows to train on"
        )
    sample = data.samples[number - 1]
    encoded = data.encoded([sample], model)[0]
    row: EncodedSample = getattr(encoded, "row", encoded)
    template = sample.template or data.template or model.llm.template
    images = list(_images(sample.images, row, data.views, model.view_spec))
    parts, targets = _parts(row, model.llm.tokenizer, [each.maps for each in images])
    counts = {
        "tokens": sum(len(segment.ids) for segment in row.segments),
        "visual": sum(layout.tokens for layout in row.layouts),
        "targets": targets,
    }
    place = (stage.name, number, len(data.samples), sample.source, sample.id)
    return Row(*place, sample.messages, template, images, parts, counts)


def _images(
    paths: Sequence[Any], row: EncodedSample, views: Any, spec: ViewSpec
) -> Iterator[Shown]:
    """Each image with its views; of a picture also where these lie on it."""
    rest = [] if row.views is None else unnormalised(row.views, spec)
    for path, layout in zip(paths, row.layouts, strict=True):
        own, rest = rest[: layout.views], rest[layout.views :]
        video = isinstance(path, VideoPath)
        maps = maps_of(layout, own, spec, "frame" if video else "view")
        if video:
            yield Shown(f"video {path.name}", maps)
            continue
        picture = views.load(path)
        tiles = tiles_of(getattr(views, "image", views), picture.size, spec.image_size)
        name = f"picture {path.name}, {picture.width} x {picture.height}"
        yield Shown(name, maps, shrunk(picture, PIXELS), tiles)


def _parts(
    row: EncodedSample, tokenizer: Any, images: Sequence[Sequence[Map]]
) -> tuple[list[Part], int]:
    """The segments with their tokens, and how many of these are targets."""
    batch = Batch.pack([row])
    forest, wanted = batch.forest, 0
    blocks = ((number, each) for number, maps in enumerate(images, 1) for each in maps)
    answers = ["chosen", "rejected"] if len(row.segments) == 3 else []
    parts = []
    for index, segment in enumerate(row.segments):
        start, end = forest.starts[index], forest.end(index)
        asked = [
            label != IGNORE and int(forest.previous[place]) >= 0
            for place, label in zip(range(start, end), segment.labels, strict=True)
        ]
        wanted += sum(asked)
        name = "conversation" if len(row.segments) == 1 else "prompt"
        if segment.parent is not None:
            name = answers[index - 1] if answers else f"answer {index}"
        positions = forest.positions[start:end].tolist()
        parts.append(Part(name, list(_tokens(segment.ids, asked, positions, tokenizer, blocks))))
    assert wanted == len(batch.targets), "the page and the batch agree on what is trained"
    return parts, wanted


def _tokens(
    ids: Sequence[int],
    asked: Sequence[bool],
    positions: Sequence[int],
    tokenizer: Any,
    blocks: Iterator[tuple[int, Map]],
) -> Iterator[Token]:
    """Tokens of one segment; the visual ones of blocks that are alike are one."""
    place = 0
    while place < len(ids):
        if ids[place] != VISUAL:
            text = token_text(ids[place], tokenizer)
            yield Token(text, positions[place], ids[place], asked[place])
            place += 1
            continue
        alike = [next(blocks)]
        end = place + alike[0][1].tokens
        while end < len(ids) and ids[end] == VISUAL:
            following = next(blocks)
            if (following[0], following[1].said) != (alike[0][0], alike[0][1].said):
                yield _visual(alike, positions[place])
                place, alike = end, []
            alike.append(following)
            end += following[1].tokens
        yield _visual(alike, positions[place])
        place = end


def _visual(alike: Sequence[tuple[int, Map]], position: int) -> Token:
    """The visual tokens of blocks of one image that are alike, which follow one another."""
    number, first = alike[0]
    names, each = first.name, first.said
    if len(alike) > 1:
        names, each = f"{first.name} to {alike[-1][1].name}", f"{len(alike)} times {first.said}"
    total = sum(block.tokens for _, block in alike)
    return Token(f"image {number}, {names}: {each} visual tokens", position, total, False, True)


def token_text(id: int, tokenizer: Any) -> str:
    """A token as it is shown: a dot for a space in front, an arrow for a line break.

    Args:
        id: The token's id.
        tokenizer: The LM's.
    """
    raw = str(tokenizer.convert_ids_to_tokens(id))
    text = raw.replace("▁", " ")
    if text == raw and not raw.startswith("<"):
        text = str(tokenizer.convert_tokens_to_string([raw]))
    text = raw if "\ufffd" in text or not text else text
    return text.replace(" ", "·").replace("\n", "↵")


def rows_of(experiment: Experiment, stage: str | None, number: int) -> list[Row]:
    """A row of one stage, or of every stage that has so many.

    Args:
        experiment: The experiment; its weights are not read.
        stage: Name of the stage, or None for all.
        number: Number of the row among a stage's training rows, from 1.

    Raises:
        ValueError: If there is no such stage, or no stage has such a row.
    """
    make_worlds(experiment.options)
    with torch.device("meta"):
        model, stages, _, _ = unloaded(experiment).build()
    if stage is not None and stage not in stages:
        raise ValueError(f"--stage: there is no stage {stage!r} among {', '.join(stages)}")
    found, faults = [], []
    for name, each in stages.items():
        if stage in (None, name):
            try:
                found.append(row_of(each, model, number))
            except ValueError as fault:
                faults.append(fault)
    if not found:
        raise faults[0] if faults else ValueError("the experiment has no stages")
    return found
