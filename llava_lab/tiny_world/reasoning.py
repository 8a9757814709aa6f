"""Reasoning: a Scene -> a question of two steps, and an answer that shows both.

The first step finds an object or counts a kind of object, the second uses what was found. The
answer's last sentence alone answers the question.
"""

import random
from collections import Counter
from collections.abc import Callable

from llava_lab.tiny_world.question import (
    NUMBERS,
    QA,
    distinct_names,
    plural,
    position,
    relation_of,
    relation_phrase,
)
from llava_lab.tiny_world.scene import SHAPES, Scene, SceneObject


def ask_neighbor(scene: Scene, rng: random.Random) -> QA | None:
    """Ask the color of the only object in some relation to a uniquely named one."""
    names = distinct_names(scene)
    found: list[tuple[str, SceneObject, str, SceneObject]] = []
    for item, name in names.items():
        beside: dict[str, list[SceneObject]] = {}
        for other in scene.items:
            if other is not item and (relation := relation_of(other, item)):
                beside.setdefault(relation, []).append(other)
        found += [(name, item, how, all_[0]) for how, all_ in beside.items() if len(all_) == 1]
    if not found:
        return None
    name, item, relation, other = rng.choice(found)
    stands = relation_phrase(relation)
    sentence = (
        f"The {name} is {position(item.cell)}. The object {stands} it is {position(other.cell)}. "
        f"It is {other.color}."
    )
    return _reasoned(
        f"What color is the object {stands} the {name}?",
        other.color,
        sentence,
        f"color {relation} {name}",
        "neighbor",
    )


def ask_same_color(scene: Scene, rng: random.Random) -> QA | None:
    """Ask how many objects have the color of one with a unique shape, itself among them."""
    shapes = Counter(item.shape for item in scene.items)
    unique = [item for item in scene.items if shapes[item.shape] == 1]
    if not unique:
        return None
    item = rng.choice(unique)
    count = sum(other.color == item.color for other in scene.items)
    return _reasoned(
        f"How many objects have the color of the {item.shape}?",
        str(count),
        f"The {item.shape} is {item.color}. {_there_are(count, f'{item.color} object')}",
        f"color of {item.shape}, objects",
        "same color",
    )


def ask_more(scene: Scene, rng: random.Random) -> QA | None:
    """Ask whether there are more of one shape than of another; half of the answers are yes."""
    counts = Counter(item.shape for item in scene.items)
    first, second = rng.sample(SHAPES, 2) if rng.random() < 0.2 else (rng.choice(list(counts)), "")
    second = second or rng.choice([shape for shape in SHAPES if shape != first])
    if (counts[first] > counts[second]) != (rng.random() < 0.5):
        first, second = second, first
    answer = "yes" if counts[first] > counts[second] else "no"
    numbers = f"{_there_are(counts[first], first)} {_there_are(counts[second], second)}"
    return _reasoned(
        f"Are there more {plural(first)} than {plural(second)}?",
        answer,
        f"{numbers} So the answer is {answer}.",
        f"more {plural(first)} than {plural(second)}",
        "more",
    )


def ask_reasoning(scene: Scene, rng: random.Random) -> QA:
    """Ask a question of two steps."""
    kinds: list[Callable[[Scene, random.Random], QA | None]]
    kinds = [ask_neighbor, ask_same_color, ask_more]
    rng.shuffle(kinds)
    return next(question for kind in kinds if (question := kind(scene, rng)))


def _reasoned(text: str, answer: str, sentence: str, key: str, by: str) -> QA:
    return QA("reasoning", text, answer, sentence, key, {"by": by})


def _there_are(count: int, one: str) -> str:
    many = f"{one}s" if " " in one else plural(one)
    return f"There is one {one}." if count == 1 else f"There are {NUMBERS[count]} {many}."
