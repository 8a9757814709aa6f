"""Mix: rows of published question files, and rules -> conversations in LLaVA-1.5's formats.

arXiv:2310.03744, Table 7 (prompts) and appendix A.2 (how questions become conversations).
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from llava_lab.data.cells import cell, filled, is_template
from llava_lab.data.choices import options_of, written
from llava_lab.data.official import read_official
from llava_lab.data.rows import BadRow, BadRows, FileRow, Refused
from llava_lab.make_data.coco import normalized
from llava_lab.make_data.rules import Rule
from llava_lab.make_data.written import Turns, row_of

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass
class Counts:
    """How a source became rows.

    Attributes:
        read: Rows that the rule takes.
        bad: Rows that are not usable.
        made: Conversations.
        turns: Their questions.
    """

    read: int = 0
    bad: list[BadRow] = field(default_factory=list)
    made: int = 0
    turns: int = 0


class Mixer:
    """Makes conversations of one file by one rule.

    Args:
        name: Name of the rule, with which the rows' ids begin.
        rule: The rule.
        file: The file, or a pattern of several.
        labels: The file of labels, if the rule has one.
        images: Folder of the pictures, for sizes that rows lack.
        seed: Decides what is drawn.
    """

    def __init__(
        self,
        name: str,
        rule: Rule,
        file: str,
        labels: str | None = None,
        images: Path | None = None,
        seed: int = 0,
    ):
        if (rule.labels is None) != (labels is None):
            says = "needs" if labels is None else "has no"
            raise ValueError(f"rule {name} {says} labels: --labels {name}=FILE")
        self.name, self.rule, self.file, self.images, self.seed = name, rule, file, images, seed
        self.label_file, self.counts = labels, Counts()

    def rows(self, on_bad_row: str = "error") -> list[dict[str, Any]]:
        """All conversations, those of one picture where its first row stands.

        Args:
            on_bad_row: "error" lists rows that are not usable; "skip" leaves them out, counted.

        Raises:
            BadRows: If rows are not usable and `on_bad_row` is "error", or none is usable.
            ValueError: If the rule takes none of the file's rows.
        """
        groups: dict[tuple[str, int], Turns] = {}
        for at, (image, copies) in enumerate(self._each()):
            for copy, turn in enumerate(copies):
                key = (image, copy) if self.rule.merged else (image, at * len(LETTERS) + copy)
                groups.setdefault(key, []).append(turn)
        bad = self.counts.bad
        if not self.counts.read and self.rule.where:
            raise ValueError(f"rule {self.name}: {self.file} has no row where {self.rule.where}")
        if bad and (on_bad_row == "error" or not groups):
            raise BadRows(Path(self.file), bad, self.counts.read)
        conversations = [
            (image, part)
            for (image, copy), turns in groups.items()
            for part in self._parts(turns, f"{image}/{copy}")
        ]
        chosen = _drawn(range(len(conversations)), self.rule.most_rows, f"{self.seed}/{self.name}")
        rows = [
            row_of(f"{self.name}-{number:06d}", image, self._prompted(turns))
            for number, (image, turns) in enumerate(conversations[at] for at in chosen)
        ]
        self.counts.made = len(rows)
        self.counts.turns = sum(len(row["conversations"]) // 2 for row in rows)
        return rows

    def _each(self) -> Iterator[tuple[str, Turns]]:
        """The picture of each row, and its question with an answer; several where it is rotated."""
        labels = self._labels()
        for row in read_official(self.file, self.rule.under):
            for value in _exploded(row, self.rule.each):
                if any(cell(value, key) != each for key, each in (self.rule.where or {}).items()):
                    continue
                self.counts.read += 1
                try:
                    if self.rule.labels:
                        key = filled(self.rule.labels.of, value)
                        if key not in labels:
                            raise Refused(f"its label, {key!r}, is not in {self.label_file}")
                        value = {**value, "label": labels[key].value}
                    image = filled(self.rule.image, value)
                    turns = self._turns(value, image)
                    row_of("", image, turns)  # what training could not read is refused here
                    yield image, turns
                except Refused as problem:
                    self.counts.bad.append(BadRow(row.place, str(row.number), str(problem)))

    def _labels(self) -> dict[str, FileRow]:
        found: dict[str, FileRow] = {}
        if self.rule.labels is None or self.label_file is None:
            return found
        for row in read_official(self.label_file, self.rule.labels.under):
            try:
                key = filled(self.rule.labels.key, row.value)
            except Refused as problem:
                raise ValueError(f"{row.place}: {problem}") from None
            if found.setdefault(key, row) is not row:
                raise ValueError(f"{row.place}: a second label for {key!r}; {found[key].place}")
        return found

    def _turns(self, value: Mapping[str, Any], image: str) -> Turns:
        rule = self.rule
        if rule.box is not None:
            return [self._region(value, image)]
        assert rule.question is not None
        if rule.choices is None:
            return [(_text(rule.question, value), self._answer(value))]
        options = options_of(value, rule.choices)
        right = cell(value, rule.correct or "")
        if type(right) is not int or not 0 <= right < len(options) <= len(LETTERS):
            raise Refused(f"its right option is {right!r} of {len(options)}")
        turns: Turns = []
        for shift in range(len(options) if rule.rotated else 1):
            moved = options[shift:] + options[:shift]
            shown = {**value, "choices": written(moved)}
            letter = LETTERS[(right - shift) % len(options)]
            turns.append((_text(rule.question, shown), letter))
        return turns

    def _answer(self, value: Mapping[str, Any]) -> str:
        answer = self.rule.answer or ""
        if is_template(answer):
            return _text(answer, value)
        found = cell(value, answer)
        said = [
            each.get("answer") if isinstance(each, Mapping) else each
            for each in (found if isinstance(found, list) else [found])
        ]
        counted = Counter(each for each in said if isinstance(each, str) and each.strip())
        if not counted:
            raise Refused(f"{answer!r} has no answer")
        return counted.most_common(1)[0][0]  # of equally frequent ones the first

    def _region(self, value: Mapping[str, Any], image: str) -> tuple[str, str]:
        rule = self.rule
        names = rule.box if isinstance(rule.box, tuple) else (rule.box or "",)
        found = [cell(value, name) for name in names]
        size = self._size(value, image)
        sides = normalized(found[0] if len(found) == 1 else found, size)
        if rule.padded:
            sides = padded(sides, size)
        box = f"[{', '.join(str(round(side, rule.decimals)) for side in sides)}]"
        phrase = _text(rule.phrase or "", value)
        cells = {**value, "box": box, "phrase": phrase}
        draw = random.Random(f"{self.seed}/{self.name}/{image}/{box}/{phrase}").random()
        if draw < 0.5:
            return _text(rule.to_phrase or "", cells), phrase
        return _text(rule.to_box or "", cells), box

    def _size(self, value: Mapping[str, Any], image: str) -> tuple[float, float]:
        if self.rule.size is not None:
            width, height = (cell(value, name) for name in self.rule.size)
            if not all(isinstance(side, int | float) and side > 0 for side in (width, height)):
                raise Refused(f"its picture is {width!r}x{height!r} pixels")
            return width, height
        if self.images is None:
            raise Refused("has no size of its picture; --images names the folder to read it from")
        try:
            with Image.open(self.images / image) as opened:
                return opened.size
        except (OSError, UnidentifiedImageError) as problem:
            raise Refused(f"image {image!r} cannot be read ({problem})") from None

    def _parts(self, turns: Turns, key: str) -> Iterator[Turns]:
        """A picture's questions, cut into conversations."""
        chosen = _drawn(
            range(len(turns)), self.rule.most_per_picture, f"{self.seed}/{self.name}/{key}"
        )
        kept = [turns[at] for at in chosen]
        step = self.rule.most_turns or len(kept)
        return (kept[start : start + step] for start in range(0, len(kept), step))

    def _prompted(self, turns: Turns) -> Turns:
        prompt = self.rule.prompt
        if prompt is None:
            return turns
        last = len(turns) if self.rule.prompt_at == "each" else 1
        return [
            (f"{asked}\n{prompt}" if at < last else asked, answer)
            for at, (asked, answer) in enumerate(turns)
        ]


def padded(sides: Sequence[float], size: tuple[float, float]) -> tuple[float, ...]:
    """A box in shares of the square that a picture is padded to, the picture in its middle.

    Args:
        sides: Left, top, right and bottom as shares of the picture's own sides.
        size: Width and height of the picture.
    """
    square = max(size)
    moved = ((square - size[at % 2]) / 2 + side * size[at % 2] for at, side in enumerate(sides))
    return tuple(side / square for side in moved)


def _exploded(row: FileRow, each: str | tuple[str, ...] | None) -> Iterator[Mapping[str, Any]]:
    """The rows inside of a row.

    Raises:
        ValueError: If a column holds no list, or lists are of several lengths.
    """
    if each is None:
        yield row.value
        return
    names = each if isinstance(each, tuple) else (each,)
    lists = [cell(row.value, name) for name in names]
    if not all(isinstance(found, list) for found in lists) or len(set(map(len, lists))) > 1:
        raise ValueError(f"{row.place}: {', '.join(names)}: no lists of one length")
    for values in zip(*lists, strict=True):
        inner = values[0] if len(names) == 1 and isinstance(values[0], dict) else {}
        yield {**row.value, **dict(zip(names, values, strict=True)), **inner}


def _text(template: str, value: Mapping[str, Any]) -> str:
    text = filled(template, value).strip()
    if not text:
        raise Refused(f"{template!r} is empty")
    return text


def _drawn(numbers: Iterable[int], most: int | None, seed: str) -> list[int]:
    """A random choice of at most so many, in their order."""
    every = list(numbers)
    if most is None or len(every) <= most:
        return every
    rng = random.Random(seed)
    keys = {number: rng.random() for number in every}
    return sorted(sorted(every, key=keys.__getitem__)[:most])
