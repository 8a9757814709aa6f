"""Film text: a Film -> questions about it, its story, and a story that is not true."""

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

# How often a lie is another object rather than something else about the one that is there.
INVENTED_SHARE = 0.4
TIMES = ("", "once", "twice", "three times", "four times")
# An object as a sentence names it: its article, and its name as a group.
NAMED = re.compile(rf"[Aa]n? ((?:{'|'.join(COLORS)}) (?:{'|'.join(SHAPES)}))")


def ask_all(film: Film, rng: random.Random) -> list[QA]:
    """The film's questions and the colors of all its objects, in any order.

    Any question may come first, since those who ask of a film later ask one alone.
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
