"""11. Sheet: images with question, answer and prediction -> one picture to look through."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from llava_lab.data.image_folder import VideoPath
from llava_lab.data.media.clip import load_clip
from llava_lab.data.media.picture import load_image

PAPER, CARD, FRAME = "#e9ebee", "#ffffff", "#f4f5f7"
INK, QUIET, RIGHT, WRONG = "#1f2328", "#6a737d", "#1a7f37", "#cf222e"
LABELS = ("answer", "model")
MAX_LINES = {"question": 4, "answer": 2, "model": 4}

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class SheetItem:
    """One question to show.

    Attributes:
        image: The picture, or where it lies.
        question: What was asked.
        answer: What was expected.
        prediction: What was generated.
        correct: Whether the benchmark's rule accepts the prediction.
        upright: Whether a picture that is loaded is turned as its EXIF orientation says.
    """

    image: Image.Image | Path
    question: str
    answer: str
    prediction: str
    correct: bool
    upright: bool = False


@dataclass(frozen=True)
class SheetStyle:
    """Sizes derived from the width of a card, in pixels."""

    width: int
    margin: int
    font: Font
    step: int
    indent: int

    @property
    def inner(self) -> int:
        """Width inside of the margins: the side of the picture's box."""
        return self.width - 2 * self.margin


@dataclass(frozen=True)
class Card:
    """One item with its texts wrapped."""

    item: SheetItem
    question: list[str]
    expected: list[str]
    predicted: list[str]

    def height(self, style: SheetStyle) -> int:
        """Height that the card needs, in pixels."""
        lines = len(self.question) + len(self.expected) + len(self.predicted)
        return style.inner + 3 * style.margin + lines * style.step + style.step // 2


def sheet(
    items: Sequence[SheetItem],
    columns: int = 4,
    cell_pixels: int = 256,
    font: Path | None = None,
) -> Image.Image:
    """Draw one card for each question: picture, question, expected answer, the model's answer.

    The model's answer is green with a tick where it is correct, red with a cross where it is not.
    Cards of one row are equally high; text too long for its lines ends in an ellipsis.

    Args:
        items: The questions, in reading order.
        columns: Cards in a row.
        cell_pixels: Width of a card; text and margins grow with it.
        font: A TrueType file for scripts that Pillow's own font lacks; it has ASCII only.
    """
    if not items:
        raise ValueError("a sheet needs at least one item, got none")
    if columns < 1 or cell_pixels < 128:
        raise ValueError(f"{columns} columns of {cell_pixels} pixels; the least is 1 of 128")
    style = _style(cell_pixels, font)
    cards = [_card(item, style) for item in items]
    columns = min(columns, len(cards))
    rows = [cards[start : start + columns] for start in range(0, len(cards), columns)]
    heights = [max(card.height(style) for card in row) for row in rows]
    gap = style.margin
    size = (gap + columns * (cell_pixels + gap), gap + sum(height + gap for height in heights))
    picture = Image.new("RGB", size, PAPER)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            drawn = _draw(card, height, style)
            picture.paste(drawn, (gap + column * (cell_pixels + gap), top))
        top += height + gap
    return picture


def _style(width: int, file: Path | None) -> SheetStyle:
    size = max(11, width // 17)
    font = ImageFont.truetype(file, size) if file else ImageFont.load_default(size)
    margin = max(8, width // 20)
    top, bottom = font.getbbox("Ayg|")[1::2]
    step = round(1.35 * (bottom - top))
    indent = round(max(font.getlength(label) for label in LABELS)) + step + margin // 4
    return SheetStyle(width, margin, font, step, indent)


def _card(item: SheetItem, style: SheetStyle) -> Card:
    beside_label = style.inner - style.indent
    return Card(
        item,
        question=wrap(item.question, style.font, style.inner, MAX_LINES["question"]),
        expected=wrap(item.answer, style.font, beside_label, MAX_LINES["answer"]),
        predicted=wrap(item.prediction, style.font, beside_label, MAX_LINES["model"]),
    )


def wrap(text: str, font: Font, width: float, max_lines: int) -> list[str]:
    """Wrap a text into at most `max_lines` lines of at most `width` pixels."""
    lines: list[str] = []
    rest = " ".join(text.split()) or "(empty)"
    while rest and len(lines) < max_lines:
        # No more characters than pixels, so that a text without end costs no more than it shows.
        lengths = range(1, min(len(rest), int(width)) + 1)
        fits = max(1, bisect_right(lengths, width, key=lambda end: font.getlength(rest[:end])))
        # Break at the last space that fits; a word wider than the line is cut where it must be.
        space = rest.rfind(" ", 0, fits + 1) if fits < len(rest) else -1
        fits = space if space > 0 else fits
        lines.append(rest[:fits].rstrip())
        rest = rest[fits:].lstrip()
    if rest:
        last = lines[-1]
        while last and font.getlength(f"{last.rstrip()}...") > width:
            last = last[:-1]
        lines[-1] = f"{last.rstrip()}..."
    return lines


def _draw(card: Card, height: int, style: SheetStyle) -> Image.Image:
    picture = Image.new("RGB", (style.width, height), CARD)
    picture.paste(_framed(card.item, style.inner), (style.margin, style.margin))
    draw = ImageDraw.Draw(picture)
    color = RIGHT if card.item.correct else WRONG
    left, top = style.margin, 2 * style.margin + style.inner
    for line in card.question:
        draw.text((left, top), line, fill=INK, font=style.font)
        top += style.step
    top += style.step // 2
    texts = ((card.expected, INK), (card.predicted, color))
    for label, (lines, ink) in zip(LABELS, texts, strict=True):
        draw.text((left, top), label, fill=QUIET, font=style.font)
        if ink == color:
            badge = _badge(color, card.item.correct, side=style.step * 4 // 5)
            picture.paste(badge, (left + style.indent - style.step, top + style.step // 9), badge)
        for line in lines:
            draw.text((left + style.indent, top), line, fill=ink, font=style.font)
            top += style.step
    return picture


def _frames(video: Path, upright: bool) -> Image.Image:
    """Four evenly spaced frames of a video in two rows."""
    clip = load_clip(
        video, lambda count, _: np.linspace(0, count - 1, 4, dtype=int).tolist(), upright
    )
    width, height, _ = clip.size
    picture = Image.new("RGB", (2 * width, 2 * height))
    for place, frame in enumerate(clip.frames):
        picture.paste(frame, (place % 2 * width, place // 2 * height))
    return picture


def _framed(item: SheetItem, side: int) -> Image.Image:
    """The picture, scaled to fit, centred in a square of `side` pixels."""
    image = item.image
    if isinstance(image, VideoPath):
        image = _frames(image, item.upright)
    if isinstance(image, Path):
        image = load_image(image, item.upright)
    inside = ImageOps.contain(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    framed = Image.new("RGB", (side, side), FRAME)
    framed.paste(inside, ((side - inside.width) // 2, (side - inside.height) // 2))
    return framed


def _badge(color: str, correct: bool, side: int) -> Image.Image:
    """A tick or a cross in a disc, for colour-blind readers."""
    # Drawn four times as large and shrunk: ImageDraw's own lines have jagged edges.
    scale = 4 * side
    badge = Image.new("RGBA", (scale, scale), "#ffffff00")
    draw = ImageDraw.Draw(badge)
    draw.ellipse((0, 0, scale - 1, scale - 1), fill=color)
    tick = [[(0.26, 0.52), (0.43, 0.69), (0.75, 0.33)]]
    cross = [[(0.31, 0.31), (0.69, 0.69)], [(0.69, 0.31), (0.31, 0.69)]]
    for stroke in tick if correct else cross:
        points = [(x * scale, y * scale) for x, y in stroke]
        draw.line(points, fill=CARD, width=scale // 8, joint="curve")
    return badge.resize((side, side), Image.Resampling.LANCZOS)
