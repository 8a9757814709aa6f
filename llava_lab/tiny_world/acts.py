"""Acts: a random generator -> a film of several acts, with a question about each."""

import random
from dataclasses import replace

from llava_lab.tiny_world.film import LINES, SIDE, Film, Shown
from llava_lab.tiny_world.film_text import ask_color, ask_order, say_count, say_detail
from llava_lab.tiny_world.question import QA, article
from llava_lab.tiny_world.scene import (
    BACKGROUNDS,
    COLORS,
    GLYPHS,
    LARGE_GLYPH_PIXELS,
    LARGE_PIXELS,
    LARGE_SIGN_SHARE,
    SHAPES,
    SMALL_GLYPH_PIXELS,
    Scene,
    SceneObject,
    Sign,
)

# Fewest and most frames; lengths are spread evenly over their logarithm.
LENGTHS = (16, 320)
ACTS = ("motion", "order", "count", "detail", "reading")
ACTS_A_FILM = 3
# Least and largest share of the film in which the evidence of an act is visible, spread evenly over
# their logarithm; each of two things in order has at most `ORDER_SHARE`.
SHARES, ORDER_SHARE = (0.01, 0.5), 0.3
MOST_TIMES = 4


def sample_film(rng: random.Random) -> Film:
    """Draw one film; the same generator state gives the same film."""
    low, high = LENGTHS
    frames = round(low * (high / low) ** rng.random())
    empty = Scene(SIDE, SIDE, rng.choice(BACKGROUNDS), rng.getrandbits(32), (), None)
    shapes = rng.sample(SHAPES, len(SHAPES))
    chosen = rng.sample(ACTS, ACTS_A_FILM)
    acts = [act for act in ACTS if act in chosen]
    shown: list[Shown] = []
    questions: list[QA] = []
    cells = list(range(9))
    if "motion" in acts:
        question, moving, line = _motion(rng, shapes.pop())
        cells = [cell for cell in cells if cell not in line]
        questions.append(question)
        shown.append(moving)
    rng.shuffle(cells)
    for act in acts:
        if act == "motion":
            continue
        if act == "order":
            pair = (shapes.pop(), shapes.pop()), (cells.pop(), cells.pop())
            question, more = _order(rng, frames, *pair)
        elif act == "count":
            question, more = _count(rng, shapes.pop(), cells.pop())
        elif act == "detail":
            question, more = _detail(rng, frames, shapes.pop(), cells.pop())
        else:
            question, more = _reading(rng, frames, cells.pop())
        questions.append(question)
        shown += more
    return Film(frames, empty, tuple(shown), tuple(questions))


def _motion(rng: random.Random, shape: str) -> tuple[QA, Shown, tuple[int, ...]]:
    way = rng.choice(sorted(LINES))
    line = rng.choice(LINES[way])
    item = _item(rng, shape, line[0])
    question = QA(
        "motion",
        f"Does the {shape} move left, right, up or down?",
        way,
        f"{article(item.name).capitalize()} moves {way}.",
        f"move of {shape}",
        {},
    )
    return question, Shown(item, 0.0, 1.0, _middle(line[-1])), line


def _order(
    rng: random.Random, frames: int, shapes: tuple[str, str], cells: tuple[int, int]
) -> tuple[QA, list[Shown]]:
    first, second = (_share(rng, frames, ORDER_SHARE) for _ in range(2))
    start = rng.uniform(0, 1 - first - second)
    then = rng.uniform(start + first, 1 - second)
    items = [_item(rng, shape, cell) for shape, cell in zip(shapes, cells, strict=True)]
    shown = [Shown(items[0], start, start + first), Shown(items[1], then, then + second)]
    return ask_order(items[0], items[1], rng), shown


def _count(rng: random.Random, shape: str, cell: int) -> tuple[QA, list[Shown]]:
    times = rng.randint(1, MOST_TIMES)
    slots = rng.sample(range(MOST_TIMES + 1), times)
    width = 1 / (MOST_TIMES + 1)
    item = _item(rng, shape, cell)
    shown = [Shown(item, (slot + 0.2) * width, (slot + 0.8) * width) for slot in slots]
    question = QA(
        "count",
        f"How many times is there a {shape}?",
        str(times),
        say_count(item.name, times),
        f"times of {shape}",
        {},
    )
    return question, shown


def _detail(rng: random.Random, frames: int, shape: str, cell: int) -> tuple[QA, list[Shown]]:
    item, share = _item(rng, shape, cell), _share(rng, frames)
    start = rng.uniform(0, 1 - share)
    question = replace(ask_color(item), sentence=say_detail(item.name))
    return question, [Shown(item, start, start + share)]


def _reading(rng: random.Random, frames: int, cell: int) -> tuple[QA, list[Shown]]:
    large = rng.random() < LARGE_SIGN_SHARE
    pixels = rng.randint(*(LARGE_GLYPH_PIXELS if large else SMALL_GLYPH_PIXELS))
    sign = Sign(rng.choice(GLYPHS), large, cell, _middle(cell), pixels)
    share = _share(rng, frames)
    start = rng.uniform(0, 1 - share)
    question = QA(
        "reading",
        "What does the sign say?",
        sign.glyph,
        f"The sign says {sign.glyph}.",
        "sign",
        {"size": sign.size},
    )
    return question, [Shown(sign, start, start + share)]


def _share(rng: random.Random, frames: int, most: float = SHARES[1]) -> float:
    """Share of the film in which something is visible, at least one frame."""
    return max(SHARES[0] * (most / SHARES[0]) ** rng.random(), 1 / frames)


def _item(rng: random.Random, shape: str, cell: int) -> SceneObject:
    pixels = rng.randint(*LARGE_PIXELS)
    return SceneObject(shape, rng.choice(COLORS), True, cell, _middle(cell), pixels)


def _middle(cell: int) -> tuple[int, int]:
    row, column = divmod(cell, 3)
    return (2 * column + 1) * SIDE // 6, (2 * row + 1) * SIDE // 6
