"""Film: a random generator -> what a video shows over time, and what can be asked about it."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image

from llava_lab.tiny_world.draw import render
from llava_lab.tiny_world.question import QA, article, ask_existence
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

# Side in pixels, which no picture of the tiny world has: the two never share a scene.
SIDE = 176
FPS = 4
# Fewest and most frames; lengths are spread evenly over their logarithm.
LENGTHS = (16, 320)
ACTS = ("motion", "order", "count", "detail", "reading")
ACTS_A_FILM = 3
# How much of a film the evidence of an act is there.
ORDER_SHARE, DETAIL_SHARE, READING_SHARE = 0.2, 0.12, 0.3
# How often a lie is another object rather than something else about the one that is there.
INVENTED_SHARE = 0.4
MOST_TIMES = 4
TIMES = ("", "once", "twice", "three times", "four times")
# An object as a sentence names it: its article, and its name as a group.
NAMED = re.compile(rf"[Aa]n? ((?:{'|'.join(COLORS)}) (?:{'|'.join(SHAPES)}))")
# Cells that something moves along, by where it moves.
LINES = {
    "right": ((0, 1, 2), (3, 4, 5), (6, 7, 8)),
    "left": ((2, 1, 0), (5, 4, 3), (8, 7, 6)),
    "down": ((0, 3, 6), (1, 4, 7), (2, 5, 8)),
    "up": ((6, 3, 0), (7, 4, 1), (8, 5, 2)),
}


@dataclass(frozen=True)
class Shown:
    """An object or a sign, and when it is there.

    Attributes:
        what: What it is, and where, unless it moves.
        start: Share of the film after which it comes.
        end: Share of the film after which it is gone.
        goal: Where it moves in that time, or None.
    """

    what: SceneObject | Sign
    start: float
    end: float
    goal: tuple[int, int] | None = None

    def at(self, time: float) -> SceneObject | Sign:
        """What it is at a time while it is there."""
        if self.goal is None:
            return self.what
        share = (time - self.start) / (self.end - self.start)
        there = zip(self.what.center, self.goal, strict=True)
        x, y = (round(first + share * (last - first)) for first, last in there)
        return replace(self.what, center=(x, y))


@dataclass(frozen=True)
class Film:
    """Everything that a video shows.

    Attributes:
        frames: Number of frames, `FPS` a second.
        empty: The scene with nothing in it.
        shown: What comes and goes.
        questions: What can be asked, one question an act, each with its sentence.
    """

    frames: int
    empty: Scene
    shown: tuple[Shown, ...]
    questions: tuple[QA, ...]

    @property
    def items(self) -> tuple[SceneObject, ...]:
        """Its objects, each once, in the order of `shown`."""
        return tuple(dict.fromkeys(e.what for e in self.shown if isinstance(e.what, SceneObject)))

    def pictures(self) -> Iterator[Image.Image]:
        """The frames in order; a frame like the one before it is drawn once."""
        before: Scene | None = None
        picture = None
        for number in range(self.frames):
            scene = self.scene(number / self.frames)
            if picture is None or scene != before:
                before, picture = scene, render(scene)
            yield picture

    def scene(self, time: float) -> Scene:
        """What is there after a share of the film."""
        there = [each.at(time) for each in self.shown if each.start <= time < each.end]
        items = tuple(each for each in there if isinstance(each, SceneObject))
        signs = [each for each in there if isinstance(each, Sign)]
        return replace(self.empty, items=items, sign=signs[0] if signs else None)


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
            question, more = _order(rng, shapes.pop(), shapes.pop(), cells.pop(), cells.pop())
        elif act == "count":
            question, more = _count(rng, shapes.pop(), cells.pop())
        elif act == "detail":
            question, more = _detail(rng, shapes.pop(), cells.pop())
        else:
            question, more = _reading(rng, cells.pop())
        questions.append(question)
        shown += more
    return Film(frames, empty, tuple(shown), tuple(questions))


def ask_all(film: Film, rng: random.Random) -> list[QA]:
    """The film's questions and the colors of all its objects, in any order.

    Any question may come first, since those who ask of a film later ask one alone.
    """
    every = (*map(ask_color, film.items), *film.questions)
    asked = {question.text: question for question in every}
    return rng.sample(list(asked.values()), len(asked))


def ask_color(item: SceneObject) -> QA:
    """Ask what color an object is."""
    return QA(
        "detail",
        f"What color is the {item.shape}?",
        item.color,
        f"The {item.shape} is {item.color}.",
        f"color of {item.shape}",
        {},
    )


def ask_order(first: SceneObject, second: SceneObject, rng: random.Random) -> QA:
    """Ask which of two objects is there first, naming them in any order."""
    named = rng.sample((first.shape, second.shape), 2)
    return QA(
        "order",
        f"What is there first, the {named[0]} or the {named[1]}?",
        first.shape,
        say_order(first.name, second.name),
        f"first of {named[0]} and {named[1]}",
        {},
    )


def story(film: Film) -> str:
    """Tell everything that happens, in sentences."""
    return " ".join(question.sentence for question in film.questions)


def all_true(film: Film) -> list[str]:
    """Every sentence of a story's kinds that is true of the film, those that it tells first.

    Of an object that is there in several acts' way, such as once and for a moment, all are true.
    """
    sentences = [question.sentence for question in film.questions]
    starts: dict[str, list[float]] = {}
    moving = {each.what for each in film.shown if each.goal is not None}
    for each in film.shown:
        if isinstance(each.what, SceneObject):
            starts.setdefault(each.what.name, []).append(each.start)
            if each.what not in moving:
                sentences.append(say_detail(each.what.name))
    for name, times in starts.items():
        sentences.append(say_count(name, len(times)))
        later = [other for other in starts if min(starts[other]) > min(times)]
        sentences += [say_order(name, other) for other in later]
    return list(dict.fromkeys(sentences))


def ask_presence(film: Film, rng: random.Random) -> QA:
    """Ask whether an object is in the film: POPE's questions, half of them about absent ones.

    In the words that ask it of pictures, which is where training asks it: a tiny model says yes to
    any object "in the video". The detail `kind` is that of an absent object; one that is there has
    the kind that names its objects in the same way.
    """
    question = ask_existence(replace(film.empty, items=film.items), rng)
    kind = question.detail["kind"]
    if kind == "positive":
        kind = "adversarial" if " " in question.key else rng.choice(("random", "popular"))
    return replace(question, detail={"kind": kind})


def say_order(first: str, second: str) -> str:
    """Say what is there before what."""
    return f"{article(first).capitalize()} is there first, then {article(second)}."


def say_count(name: str, times: int) -> str:
    """Say how often something is there."""
    return f"There is {article(name)} {TIMES[times]}."


def say_detail(name: str) -> str:
    """Say that something is there, not for long."""
    return f"For a moment there is {article(name)}."


def hallucinated(film: Film, rng: random.Random) -> str:
    """The story with one thing that is not so: a color, a count, a way, an order, an object.

    It has as many sentences as the story, of the same kinds: else it would be known by those alone.
    """
    sentences = [question.sentence for question in film.questions]
    place = rng.randrange(len(sentences))
    named = list(NAMED.finditer(sentences[place]))
    if named and rng.random() < INVENTED_SHARE:
        sentences[place] = _invented(sentences[place], rng.choice(named), film, rng)
    else:
        sentences[place] = _untrue(film.questions[place], rng)
    return " ".join(sentences)


def _invented(sentence: str, named: re.Match[str], film: Film, rng: random.Random) -> str:
    """The sentence with another object, of a shape that the film does not show."""
    shown = {item.shape for item in film.items}
    shape = rng.choice([shape for shape in SHAPES if shape not in shown])
    name = article(f"{rng.choice(COLORS)} {shape}")
    name = name.capitalize() if named.start() == 0 else name
    return sentence[: named.start()] + name + sentence[named.end() :]


def _untrue(question: QA, rng: random.Random) -> str:
    """The question's sentence, with another answer."""
    sentence, answer = question.sentence, question.answer
    if question.type == "order":
        first, second = NAMED.findall(sentence)
        return say_order(second, first)
    if question.type == "count":
        times = rng.choice([each for each in TIMES[1:] if each != TIMES[int(answer)]])
        return sentence.replace(TIMES[int(answer)], times)
    every = {"motion": sorted(LINES), "detail": COLORS, "reading": GLYPHS}[question.type]
    other = rng.choice([each for each in every if each != answer])
    if question.type == "detail":
        shape = sentence.removesuffix(".").split()[-1]
        return say_detail(f"{other} {shape}")
    return f"{sentence.removesuffix(f'{answer}.')}{other}."


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
    rng: random.Random, first: str, second: str, cell: int, other: int
) -> tuple[QA, list[Shown]]:
    starts = sorted(rng.uniform(0, 1 - 2 * ORDER_SHARE) for _ in range(2))
    starts[1] += ORDER_SHARE
    items = [_item(rng, first, cell), _item(rng, second, other)]
    shown = [
        Shown(item, start, start + ORDER_SHARE) for item, start in zip(items, starts, strict=True)
    ]
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


def _detail(rng: random.Random, shape: str, cell: int) -> tuple[QA, list[Shown]]:
    item = _item(rng, shape, cell)
    start = rng.uniform(0, 1 - DETAIL_SHARE)
    question = replace(ask_color(item), sentence=say_detail(item.name))
    return question, [Shown(item, start, start + DETAIL_SHARE)]


def _reading(rng: random.Random, cell: int) -> tuple[QA, list[Shown]]:
    large = rng.random() < LARGE_SIGN_SHARE
    pixels = rng.randint(*(LARGE_GLYPH_PIXELS if large else SMALL_GLYPH_PIXELS))
    sign = Sign(rng.choice(GLYPHS), large, cell, _middle(cell), pixels)
    start = rng.uniform(0, 1 - READING_SHARE)
    question = QA(
        "reading",
        "What does the sign say?",
        sign.glyph,
        f"The sign says {sign.glyph}.",
        "sign",
        {"size": sign.size},
    )
    return question, [Shown(sign, start, start + READING_SHARE)]


def _item(rng: random.Random, shape: str, cell: int) -> SceneObject:
    pixels = rng.randint(*LARGE_PIXELS)
    return SceneObject(shape, rng.choice(COLORS), True, cell, _middle(cell), pixels)


def _middle(cell: int) -> tuple[int, int]:
    row, column = divmod(cell, 3)
    return (2 * column + 1) * SIDE // 6, (2 * row + 1) * SIDE // 6
