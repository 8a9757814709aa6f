"""Text: a Scene -> captions, conversations and phrases, as rows of LLaVA-format files."""

import itertools
import random
from collections.abc import Iterable, Iterator
from typing import Any

from llava_lab.data.fields import IMAGE_PLACEHOLDER
from llava_lab.tiny_world.question import (
    NUMBERS,
    QA,
    TRAINING_TYPES,
    article,
    ask_several,
    ask_where,
    plural,
    position,
    relation_of,
    relation_phrase,
)
from llava_lab.tiny_world.reasoning import ask_reasoning
from llava_lab.tiny_world.scene import COLORS, POSITIONS, SHAPES, Scene, SceneObject

SHORT_ANSWER = "Answer the question using a single word or phrase."
CAPTION_REQUESTS = (
    "Describe the picture briefly.",
    "What is in this picture?",
    "Write a short caption for the picture.",
    "Say in one sentence what you see.",
    "Give a brief description of the picture.",
    "Summarize the picture in a sentence.",
)
DETAIL_REQUESTS = (
    "Describe the picture in detail.",
    "Tell me everything that you see in the picture.",
    "Write a thorough description of the picture.",
)
# Questions of a row of facts, and the types that it asks twice as often.
FACTS, HARD_TYPES = 16, ("relation", "count")
NOTES_REQUEST = "Take notes."
TEXT_INTRODUCTIONS = (
    "A picture shows",
    "Imagine a picture of",
    "The picture has",
    "Someone sees a picture of",
)


def caption(scene: Scene, rng: random.Random) -> str:
    """Write one sentence that names everything, in random order."""
    things = [
        f"{article(f'{item.size} {item.name}')} {position(item.cell)}" for item in scene.items
    ]
    rng.shuffle(things)
    if scene.sign:
        place = rng.randint(0, len(things))
        things.insert(place, f"a sign that reads {scene.sign.glyph} {position(scene.sign.cell)}")
    return f"{', '.join(things[:-1])} and {things[-1]}."


def detail(scene: Scene, rng: random.Random) -> str:
    """Write a description of several sentences."""
    items = rng.sample(scene.items, len(scene.items))
    return " ".join(_details(scene, items, itertools.pairwise(items)))


def all_true(scene: Scene) -> list[str]:
    """List all true sentences of the kinds in a description."""
    return list(_details(scene, scene.items, itertools.permutations(scene.items, 2)))


def _details(
    scene: Scene,
    items: Iterable[SceneObject],
    pairs: Iterable[tuple[SceneObject, SceneObject]],
) -> Iterator[str]:
    sign = " and a sign" if scene.sign else ""
    yield f"The picture shows {NUMBERS[len(scene.items)]} objects{sign}."
    for item in items:
        named = article(f"{item.size} {item.name}")
        yield f"{named[0].upper()}{named[1:]} is {position(item.cell)}."
    if scene.sign:
        yield f"The sign {position(scene.sign.cell)} reads {scene.sign.glyph}."
    for first, second in pairs:
        relation = relation_of(first, second)
        if relation and first.name != second.name:
            stand = relation_phrase(relation)
            yield f"One can see the {first.name} {stand} the {second.name}."


def phrases(scene: Scene) -> list[str]:
    """List every short phrase that is true of the scene, sorted."""
    found: set[str] = set()
    for item in scene.items:
        place = position(item.cell)
        found |= {item.color, item.name, f"{item.size} {item.shape}", f"{item.shape} {place}"}
        found |= {f"{item.color} {place}", f"{item.size} {item.name} {place}"}
        for other in scene.items:
            relation = relation_of(item, other) if item is not other else None
            if relation in ("left", "above") and item.shape != other.shape:
                found.add(f"{item.shape} {relation_phrase(relation)} {other.shape}")
    found.add(f"{len(scene.items)} objects")
    shapes = [item.shape for item in scene.items]
    colors = [item.color for item in scene.items]
    found |= {f"{shapes.count(s)} {plural(s)}" for s in SHAPES if shapes.count(s) > 1}
    found |= {f"{colors.count(c)} {c} objects" for c in COLORS if colors.count(c) > 1}
    if scene.sign:
        glyph = scene.sign.glyph
        found |= {glyph, f"sign reads {glyph}", f"sign {position(scene.sign.cell)}"}
    return sorted(found)


def caption_row(row_id: str, image: str, scene: Scene, rng: random.Random) -> dict[str, Any]:
    """Ask for a caption in one of several ways, as LCS-558K does."""
    request = rng.choice(CAPTION_REQUESTS)
    return as_row(row_id, [(_with_image(request, rng), caption(scene, rng))], image=image)


def conversation_row(row_id: str, image: str, scene: Scene, rng: random.Random) -> dict[str, Any]:
    """Conversation of two to four turns in full sentences, without a format prompt."""
    turns = _sentence_turns(scene, rng, rng.randint(2, 4))
    return as_row(row_id, _image_first_turn(turns, rng), image=image)


def reasoning_row(row_id: str, image: str, scene: Scene, rng: random.Random) -> dict[str, Any]:
    """Conversation of one or two questions of two steps, whose answers show both."""
    turns = _reasoned_turns(scene, rng, rng.randint(1, 2))
    return as_row(row_id, _image_first_turn(turns, rng), image=image)


def detail_row(row_id: str, image: str, scene: Scene, rng: random.Random) -> dict[str, Any]:
    """Ask for a long description."""
    turns = [(rng.choice(DETAIL_REQUESTS), detail(scene, rng))]
    return as_row(row_id, _image_first_turn(turns, rng), image=image)


def short_answer_row(
    row_id: str, image: str, scene: Scene, rng: random.Random, number: int, *types: str
) -> dict[str, Any]:
    """Merge several questions about one image; only the first has the format prompt."""
    turns = short_turns(ask_several(scene, rng, number, *types))
    return as_row(row_id, _image_first_turn(turns, rng), image=image)


def notes(scene: Scene, rng: random.Random) -> str:
    """Answer many questions in key words: "color of star: red; stars: 1; sign: N"."""
    # Types that need two objects at once are asked more often.
    questions = ask_several(scene, rng, 20, *TRAINING_TYPES, "where", "what", "relation")
    return in_notes(questions)


def in_notes(questions: list[QA]) -> str:
    """Write questions and answers in key words."""
    return "; ".join(f"{question.key}: {question.answer}" for question in questions)


def text_row(row_id: str, scene: Scene, rng: random.Random) -> dict[str, Any]:
    """Text-only row: a scene in words, then notes, questions or a rewording.

    Notes hold more questions in fewer words than conversations: with them an LM learns to look an
    object up by its name in a tenth of the steps.
    """
    way = rng.random()
    if way < 0.65:
        turns = [(NOTES_REQUEST, notes(scene, rng))]
    elif way < 0.9:
        turns = short_turns(ask_several(scene, rng, rng.randint(7, 10)))
    elif way < 0.93:
        turns = _sentence_turns(scene, rng, rng.randint(3, 5))
    elif way < 0.96:
        turns = _reasoned_turns(scene, rng, rng.randint(2, 4))
    elif way < 0.99:
        turns = [(rng.choice(DETAIL_REQUESTS), detail(scene, rng))]
    else:
        turns = [(rng.choice(CAPTION_REQUESTS), caption(scene, rng))]
    told = f"{rng.choice(TEXT_INTRODUCTIONS)} {caption(scene, rng)}"
    return as_row(row_id, described(turns, told))


def described(turns: list[tuple[str, str]], description: str) -> list[tuple[str, str]]:
    """Turns about something in words: its description is before the first question."""
    (question, answer), *others = turns
    return [(f"{description}\n{question}", answer), *others]


def facts_row(row_id: str, scene: Scene, rng: random.Random) -> dict[str, Any]:
    """Caption of a scene, then questions about everything in it in key words.

    If the answer follows the key directly, an LM learns within a thousand steps to look up an
    object; with a turn's header between the two it does not in six thousand.
    """
    facts: list[tuple[str, str]] = []
    while len(facts) < FACTS:
        question = TRAINING_TYPES[rng.choice((*TRAINING_TYPES, *HARD_TYPES))](scene, rng)
        if question:
            facts.append((question.key, question.answer))
    return _facts(row_id, f"{caption(scene, rng)}\n", facts)


def list_row(row_id: str, scene: Scene, rng: random.Random) -> dict[str, Any]:
    """The same for a bare list of objects of different shapes, an easier start."""
    items = rng.sample(scene.items, len(scene.items))
    facts = []
    for item in rng.choices(items, k=FACTS):
        place = POSITIONS[item.cell]
        of_item = [
            (f"color of {item.shape}", item.color),
            (f"color at {place}", item.color),
            (f"at {place}", item.shape),
            (f"place of {item.shape}", place),
        ]
        facts.append(rng.choice(of_item))
    lines = [f"{item.color} {item.shape} {POSITIONS[item.cell]}\n" for item in items]
    return _facts(row_id, "".join(lines), facts)


def _facts(row_id: str, description: str, facts: list[tuple[str, str]]) -> dict[str, Any]:
    (key, answer), *others = facts
    return as_row(row_id, [(f"{description} {key}", answer), *others])


def with_format_prompt(question: QA) -> str:
    """Append the response-format prompt, as the short-answer data and benchmarks do."""
    return f"{question.text}\n{SHORT_ANSWER}"


def short_turns(questions: list[QA]) -> list[tuple[str, str]]:
    """Questions with answers in a word; the first has the format prompt."""
    turns = [(question.text, question.answer) for question in questions]
    turns[0] = (with_format_prompt(questions[0]), questions[0].answer)
    return turns


def _sentence_turns(scene: Scene, rng: random.Random, number: int) -> list[tuple[str, str]]:
    questions = ask_several(scene, rng, number)
    turns = [(question.text, question.sentence) for question in questions]
    where = ask_where(scene, rng)
    if where and rng.random() < 0.5:
        turns[rng.randrange(len(turns))] = (where.text, where.sentence)
    return turns


def _reasoned_turns(scene: Scene, rng: random.Random, number: int) -> list[tuple[str, str]]:
    asked = [ask_reasoning(scene, rng) for _ in range(number)]
    return list({question.text: (question.text, question.sentence) for question in asked}.values())


def _image_first_turn(turns: list[tuple[str, str]], rng: random.Random) -> list[tuple[str, str]]:
    return [(_with_image(turns[0][0], rng), turns[0][1]), *turns[1:]]


def _with_image(text: str, rng: random.Random) -> str:
    # The released files have the placeholder at either end of the first turn: LLaVA docs/Data.md.
    if rng.random() < 0.5:
        return f"{IMAGE_PLACEHOLDER}\n{text}"
    return f"{text}\n{IMAGE_PLACEHOLDER}"


def album(row_id: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One text-only row of the turns of several, for an LM that reads at longer distances."""
    return {"id": row_id, "conversations": [turn for row in rows for turn in row["conversations"]]}


def as_row(row_id: str, turns: list[tuple[str, str]], **media: str) -> dict[str, Any]:
    """Make a LLaVA-format row of questions and answers about an `image` or `video`."""
    messages = [
        {"from": speaker, "value": value}
        for turn in turns
        for speaker, value in zip(("human", "gpt"), turn, strict=True)
    ]
    return {"id": row_id, **media, "conversations": messages}
