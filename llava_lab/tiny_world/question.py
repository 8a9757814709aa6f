"""Question: a Scene -> a question with exactly one true answer.

The most frequent answer, without the image, is correct in this share of questions: color 0.13,
count 0.17 (0.31 with the best answer for each kind of object), existence 0.5, relation 0.25,
reading 0.1 (1 in 12 by guessing at random).
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from llava_lab.tiny_world.scene import COLORS, POPULAR_SHAPES, POSITIONS, SHAPES, Scene, SceneObject

NUMBERS = ("no", "one", "two", "three", "four", "five")


@dataclass(frozen=True)
class QA:
    """A question about one scene.

    Attributes:
        type: Question type, a key of TRAINING_TYPES.
        text: The question without image placeholder and format prompt.
        answer: The answer in a word.
        sentence: The same answer as a full sentence.
        key: The question in key words, as rows of notes have it.
        detail: Properties for categories of evaluation, such as the glyph's size.
    """

    type: str
    text: str
    answer: str
    sentence: str
    key: str
    detail: dict[str, str]


def position(cell: int) -> str:
    """Write the position of a cell: "at the top-left", "in the middle"."""
    return f"{'in' if POSITIONS[cell] == 'middle' else 'at'} the {POSITIONS[cell]}"


def article(words: str) -> str:
    """Put "a" or "an" before the words."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(shape: str) -> str:
    """Plural of a shape."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def relation_of(first: SceneObject, second: SceneObject) -> str | None:
    """Relation of `first` to `second` if they share a row or a column of cells, else None."""
    (row, column), (other_row, other_column) = divmod(first.cell, 3), divmod(second.cell, 3)
    if row == other_row:
        return "left" if column < other_column else "right"
    if column == other_column:
        return "above" if row < other_row else "below"
    return None


def relation_phrase(relation: str) -> str:
    """Turn "left" into "left of"; "above" and "below" stay."""
    return f"{relation} of" if relation in ("left", "right") else relation


def ask_color(scene: Scene, rng: random.Random) -> QA:
    """Ask the color of an object, named by its unique shape about as often as by its position."""
    shapes = Counter(item.shape for item in scene.items)
    unique = [item for item in scene.items if shapes[item.shape] == 1]
    # A quarter of the scenes have no unique shape.
    if unique and rng.random() < 0.6:
        item, by = rng.choice(unique), "shape"
        name, key = f"the {item.shape}", f"color of {item.shape}"
    else:
        item, by = rng.choice(scene.items), "position"
        name, key = f"the object {position(item.cell)}", f"color at {POSITIONS[item.cell]}"
    sentence = f"{name[0].upper()}{name[1:]} is {item.color}."
    detail = {"size": item.size, "by": by}
    return QA("color", f"What color is {name}?", item.color, sentence, key, detail)


def ask_count(scene: Scene, rng: random.Random) -> QA:
    """Ask how many objects there are: of a shape, of a color, or in all."""
    by = rng.choice(("shape", "color", "all"))
    if by == "all":
        count, one, many = len(scene.items), "object", "objects"
    else:
        values = [getattr(item, by) for item in scene.items]
        kinds = SHAPES if by == "shape" else COLORS
        counts = {kind: values.count(kind) for kind in kinds}
        # Rare answers get more weight, or "0" and "1" would be most of the answers.
        answers = sorted(set(counts.values()))
        (count,) = rng.choices(answers, weights=[max(1, answer) ** 2 for answer in answers])
        kind = rng.choice([kind for kind in kinds if counts[kind] == count])
        one, many = (kind, plural(kind)) if by == "shape" else (f"{kind} object", f"{kind} objects")
    things = f"is one {one}" if count == 1 else f"are {NUMBERS[count]} {many}"
    sentence = f"There {things} in the picture."
    text = f"How many {many} are there?"
    return QA("count", text, str(count), sentence, many, {"by": by})


def ask_existence(scene: Scene, rng: random.Random) -> QA:
    """Ask whether an object is there; half of the objects are absent, of POPE's three kinds.

    Random and popular: a shape that is absent. Adversarial: a shape and a color that are present,
    but not together. Present objects are named in the same two ways.
    """
    name, kind = _absent_object(scene, rng)
    answer, sentence = "no", f"No, there is no {name} in the picture."
    if rng.random() < 0.5:
        item = rng.choice(scene.items)
        name, kind = item.name if kind == "adversarial" else item.shape, "positive"
        answer, sentence = "yes", f"Yes, there is {article(name)} {position(item.cell)}."
    text = f"Is there {article(name)} in the picture?"
    return QA("existence", text, answer, sentence, name, {"kind": kind})


def _absent_object(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Name an absent object, and its kind: random, popular or adversarial."""
    names = {item.name for item in scene.items}
    shapes, colors = {item.shape for item in scene.items}, {item.color for item in scene.items}
    absent = {
        "random": [shape for shape in SHAPES if shape not in shapes],
        "popular": [shape for shape in POPULAR_SHAPES if shape not in shapes],
        "adversarial": sorted({f"{c} {s}" for c in colors for s in shapes} - names),
    }
    kind = rng.choice([kind for kind in sorted(absent) if absent[kind]])
    return rng.choice(absent[kind]), kind


def distinct_names(scene: Scene) -> dict[SceneObject, str]:
    """Name every object that is unique by its shape, or else by its color and shape."""
    shapes = Counter(item.shape for item in scene.items)
    names = Counter(item.name for item in scene.items)
    return {
        item: item.shape if shapes[item.shape] == 1 else item.name
        for item in scene.items
        if names[item.name] == 1
    }


def ask_relation(scene: Scene, rng: random.Random) -> QA | None:
    """Ask for the relation of two uniquely named objects in one row or column."""
    names = distinct_names(scene)
    pairs: dict[str, list[tuple[SceneObject, SceneObject]]] = {}
    for first in names:
        for second in names:
            relation = relation_of(first, second) if first is not second else None
            if relation:
                pairs.setdefault(relation, []).append((first, second))
    if not pairs:
        return None
    relation = rng.choice(sorted(pairs))
    first, second = (names[item] for item in rng.choice(pairs[relation]))
    text = f"Is the {first} left of, right of, above or below the {second}?"
    sentence = f"The {first} is {relation_phrase(relation)} the {second}."
    axis = "horizontal" if relation in ("left", "right") else "vertical"
    key = f"{first} and {second}"
    return QA("relation", text, relation, sentence, key, {"axis": axis})


def ask_reading(scene: Scene, rng: random.Random) -> QA | None:
    """Ask what the sign says."""
    if scene.sign is None:
        return None
    glyph = scene.sign.glyph
    text, sentence = "What does the sign say?", f"The sign says {glyph}."
    return QA("reading", text, glyph, sentence, "sign", {"size": scene.sign.size})


def ask_what(scene: Scene, rng: random.Random) -> QA:
    """Ask which object is at a position."""
    item = rng.choice(scene.items)
    where = position(item.cell)
    sentence = f"{article(item.name).capitalize()} is {where}."
    key, detail = f"at {POSITIONS[item.cell]}", {"size": item.size}
    return QA("what", f"What is {where}?", item.name, sentence, key, detail)


def ask_where(scene: Scene, rng: random.Random) -> QA | None:
    """Ask for the position of a uniquely named object."""
    names = distinct_names(scene)
    if not names:
        return None
    item, name = rng.choice(list(names.items()))
    sentence = f"The {name} is {position(item.cell)}."
    place, key, detail = POSITIONS[item.cell], f"place of {name}", {"size": item.size}
    return QA("where", f"Where is the {name}?", place, sentence, key, detail)


# Types of evaluation questions; training also asks what is where.
QUESTION_TYPES: dict[str, Callable[[Scene, random.Random], QA | None]] = {
    "color": ask_color,
    "count": ask_count,
    "existence": ask_existence,
    "relation": ask_relation,
    "reading": ask_reading,
}
TRAINING_TYPES = {**QUESTION_TYPES, "what": ask_what, "where": ask_where}
# Drawn twice as often: "what" and "where" tie shapes and colors to places, these to one another.
TWICE = ("color", "count")


def ask_several(scene: Scene, rng: random.Random, number: int, *types: str) -> list[QA]:
    """Ask 1 to `number` different questions of the given types.

    By default these are all types, those of `TWICE` twice as often.

    At least one of the types must have a question about every scene, as `count` does.
    """
    found: dict[str, QA] = {}
    tries = 0
    while not found or (len(found) < number and tries < 4 * number):
        tries += 1
        question = TRAINING_TYPES[rng.choice(types or (*TRAINING_TYPES, *TWICE))](scene, rng)
        if question:
            found.setdefault(question.text, question)
    return list(found.values())
