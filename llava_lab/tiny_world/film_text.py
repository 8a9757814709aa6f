"""Film text: a Film -> questions about it, a true description, and one with a hallucination."""

import random
import re
from dataclasses import replace

from llava_lab.tiny_world.film import LINES, Film
from llava_lab.tiny_world.question import QA, article, ask_existence
from llava_lab.tiny_world.scene import (
    COLORS,
    GLYPHS,
    SHAPES,
    SceneObject,
)

# How often the false detail is another object, rather than a property of the one that is there.
INVENTED_SHARE = 0.4
STORY_REQUEST = "Describe the video."
TIMES = ("", "once", "twice", "three times", "four times")
# An object in a sentence: its article, and its name as a group.
NAMED = re.compile(rf"[Aa]n? ((?:{'|'.join(COLORS)}) (?:{'|'.join(SHAPES)}))")


def ask_all(film: Film, rng: random.Random) -> list[QA]:
    """Ask all questions about the film and about the colors of its objects, in random order.

    The order is random so that every question comes first in some rows: evaluation asks one at a
    time.
    """
    every = (*map(ask_color, film.items), *film.questions)
    unique = {question.text: question for question in every}
    return rng.sample(list(unique.values()), len(unique))


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
    """Ask which of two objects appears first, naming them in random order."""
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
    """Describe everything that happens, one sentence an act."""
    return " ".join(question.sentence for question in film.questions)


def all_true(film: Film) -> list[str]:
    """List all true sentences of the kinds in a story, those of the story first.

    Several sentences may be true of one object: that it appears once, and for a moment.
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
    """Ask whether an object is in the film, as in POPE; half of the objects are absent.

    The words are those of questions about images, which training has: a tiny model says yes to any
    object "in the video". The detail `kind` of a present object is one whose absent objects are
    named in the same way.
    """
    question = ask_existence(replace(film.empty, items=film.items), rng)
    kind = question.detail["kind"]
    if kind == "positive":
        kind = "adversarial" if " " in question.key else rng.choice(("random", "popular"))
    return replace(question, detail={"kind": kind})


def say_order(first: str, second: str) -> str:
    """State the order of two objects."""
    return f"{article(first).capitalize()} is there first, then {article(second)}."


def say_count(name: str, times: int) -> str:
    """State how often an object appears."""
    return f"There is {article(name)} {TIMES[times]}."


def say_detail(name: str) -> str:
    """State that an object appears for a moment."""
    return f"For a moment there is {article(name)}."


def hallucinated(film: Film, rng: random.Random) -> str:
    """Write the story with one false detail: a color, count, direction, order or object.

    It has as many sentences of the same kinds as the story, so that it cannot be told by its form.
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
    """Replace an object in a sentence by one of a shape that the film does not show."""
    shown = {item.shape for item in film.items}
    shape = rng.choice([shape for shape in SHAPES if shape not in shown])
    name = article(f"{rng.choice(COLORS)} {shape}")
    name = name.capitalize() if named.start() == 0 else name
    return sentence[: named.start()] + name + sentence[named.end() :]


def _untrue(question: QA, rng: random.Random) -> str:
    """Write the question's sentence with a wrong answer."""
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
