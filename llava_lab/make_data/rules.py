"""Rules: a YAML file -> how rows of published question files become conversations."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from llava_lab.core.yaml_file import read_mapping


@dataclass(frozen=True)
class Labels:
    """Answers in a file apart from the questions.

    Attributes:
        key: Template of a label's key.
        of: Template of the key of a row's label.
        under: Key of the labels in a JSON object; None where there is none.
    """

    key: str
    of: str
    under: str | None = None


@dataclass(frozen=True)
class Rule:
    """How the rows of one file become conversations.

    Templates name columns in braces (llava_lab.data.cells); cells of a row's label are under
    `label`.

    Attributes:
        image: Template of the picture's name in the rows that are made.
        question: Template of what is asked; `{choices}` stands for options, a line each: "A. cat".
        answer: Template of the answer; or the column of a list of answers, texts or objects with
            `answer`, of which the most frequent is taken, the first of several.
        prompt: Line behind a question that says which form of answer is wanted.
        prompt_at: "first": only behind a conversation's first question; "each": behind all, which
            needs `merged` and a `prompt`.
        under: Key of the rows in a JSON object; None where there is none.
        each: Column of a list, of whose objects each is a row of its own; or several columns of
            lists of equal length.
        where: Values that columns must have for a row to be taken.
        labels: Answers in a file of their own.
        merged: Whether all questions of a picture are one conversation.
        choices: Column of the options of a multiple choice.
        correct: Column of the right one's number, from 0.
        rotated: Whether a multiple choice is asked once for each option, in as many conversations,
            the options moved on by one each time, so that every letter is right once.
        box: Columns of a region's left, top, width and height in pixels, or the one of their list.
        phrase: Template of what a region shows.
        to_phrase: Template of the question that has the `{box}` and is answered by the phrase.
        to_box: Template of the question that has the `{phrase}` and is answered by the box. One of
            the two is drawn for each region.
        size: Columns of the picture's width and height; None reads its file.
        padded: Whether boxes are shares of the square that the picture is padded to, and not of the
            picture's own sides.
        decimals: Decimals of a box.
        most_per_picture: Rows that are drawn of each picture, at most; needs `merged`; None takes
            all.
        most_turns: Questions of one conversation; more are several conversations; needs `merged`.
        most_rows: Conversations that are drawn; None takes all.
    """

    image: str
    question: str | None = None
    answer: str | None = None
    prompt: str | None = None
    prompt_at: str = "first"
    under: str | None = None
    each: str | tuple[str, ...] | None = None
    where: dict[str, Any] | None = None
    labels: Labels | None = None
    merged: bool = False
    choices: str | None = None
    correct: str | None = None
    rotated: bool = False
    box: str | tuple[str, ...] | None = None
    phrase: str | None = None
    to_phrase: str | None = None
    to_box: str | None = None
    size: tuple[str, str] | None = None
    padded: bool = True
    decimals: int = 2
    most_per_picture: int | None = None
    most_turns: int | None = None
    most_rows: int | None = None

    def __post_init__(self) -> None:
        regions = (self.box, self.phrase, self.to_phrase, self.to_box)
        if any(regions) != all(regions):
            raise ValueError("regions need `box`, `phrase`, `to_phrase` and `to_box`")
        if (self.box is None) == (self.question is None):
            raise ValueError("either `question`, or `box` of a region")
        if (self.choices is None) != (self.correct is None):
            raise ValueError("`choices` and `correct` go together")
        if self.question is not None and (self.answer is None) == (self.choices is None):
            raise ValueError("a question has either `answer` or `choices`")
        if self.rotated and not self.choices:
            raise ValueError("`rotated` needs `choices`")
        if self.prompt_at not in ("first", "each"):
            raise ValueError(f"`prompt_at` is {self.prompt_at!r}; known are 'first' and 'each'")
        for name in ("most_per_picture", "most_turns", "most_rows"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"`{name}` is {value!r}, no whole number from 1 on")
        self._refuse_idle()

    def _refuse_idle(self) -> None:
        """Refuse options that change no row beside the others."""
        for name in ("most_per_picture", "most_turns"):
            if getattr(self, name) is not None and not self.merged:
                raise ValueError(f"`{name}` needs `merged`: questions of a picture together")
        if self.prompt_at == "each" and not (self.merged and self.prompt):
            raise ValueError("`prompt_at: each` needs `merged` and a `prompt`, to be behind all")
        for name in ("size", "padded", "decimals"):
            if self.box is None and getattr(self, name) != getattr(Rule, name):
                raise ValueError(f"`{name}` needs `box`: it is of regions alone")


def read_rules(path: Path) -> dict[str, Rule]:
    """Read the rules of a file, by name.

    Raises:
        ValueError: If a rule has unknown keys, lacks some, or contradicts itself.
    """
    return {name: _rule(f"{path}: {name}", found) for name, found in read_mapping(path).items()}


def _rule(place: str, found: Any) -> Rule:
    if not isinstance(found, dict):
        raise ValueError(f"{place}: a rule is a mapping, not {type(found).__name__}")
    options = _checked(place, Rule, found)
    if isinstance(options.get("labels"), dict):
        options["labels"] = Labels(**_checked(f"{place}.labels", Labels, options["labels"]))
    for name in ("each", "box", "size"):
        if isinstance(options.get(name), list):
            options[name] = tuple(options[name])
    try:
        return Rule(**options)
    except ValueError as problem:
        raise ValueError(f"{place}: {problem}") from None


def _checked(place: str, kind: type, found: dict[str, Any]) -> dict[str, Any]:
    """Options of a rule that it knows, and those that it needs."""
    known = [each.name for each in fields(kind)]
    if odd := [name for name in found if name not in known]:
        raise ValueError(f"{place}: no option {odd[0]!r}; known are {', '.join(known)}")
    if missing := [name for name in _needed(kind) if name not in found]:
        raise ValueError(f"{place}: needs {missing[0]!r}")
    return dict(found)


def _needed(kind: type) -> Iterator[str]:
    return (name for name in kind.__annotations__ if name not in vars(kind))
