"""Film rows: a Film in words -> text-only rows, in which an LM meets the words of questions."""

import random
from typing import Any

from llava_lab.tiny_world.film import Film
from llava_lab.tiny_world.film_text import STORY_REQUEST, ask_all, ask_presence, story
from llava_lab.tiny_world.question import QA
from llava_lab.tiny_world.text import (
    NOTES_REQUEST,
    as_row,
    described,
    in_notes,
    short_turns,
)

INTRODUCTIONS = ("A video shows this.", "Imagine a video.", "Someone sees a video.")
# Questions about what is there, beside those about acts and colors.
PRESENCE = 2


def film_row(row_id: str, film: Film, rng: random.Random) -> dict[str, Any]:
    """A film in words, then notes, questions or the story once more."""
    way = rng.random()
    if way < 0.6:
        turns = [(NOTES_REQUEST, in_notes(_asked(film, rng)))]
    elif way < 0.95:
        turns = short_turns(_asked(film, rng))
    else:
        turns = [(STORY_REQUEST, story(film))]
    return as_row(row_id, described(turns, f"{rng.choice(INTRODUCTIONS)} {_told(film, rng)}"))


def _asked(film: Film, rng: random.Random) -> list[QA]:
    """Questions about acts, colors and presence, in random order."""
    every = ask_all(film, rng) + [ask_presence(film, rng) for _ in range(PRESENCE)]
    unique = {question.text: question for question in every}
    return rng.sample(list(unique.values()), len(unique))


def _told(film: Film, rng: random.Random) -> str:
    """The sentences of the story, in random order."""
    sentences = [question.sentence for question in film.questions]
    return " ".join(rng.sample(sentences, len(sentences)))
