"""3. Grids: candidates of tiles as papers and releases write them -> (width, height) of each."""

import re
from collections.abc import Iterator, Sequence

Size = tuple[int, int]
NUMBERS = r"(\d+|\{[\d,\s]+\})"
TERM = re.compile(rf"\(?\s*{NUMBERS}\s*[x×]\s*{NUMBERS}\s*\)?")
RANGE = re.compile(r"\(?(\d+)[x×](\d+)\)?[\s,]*(?:…|\.{2,})[\s,]*\(?(\d+)[x×](\d+)\)?")


def parse_grids(grids: str | Sequence[str] | Sequence[Sequence[int]]) -> list[Size]:
    """Candidates as (width, height), in tiles, or in pixels where they were pairs.

    Raises:
        ValueError: If there is none, or something is not read; names it.
    """
    found: list[Size] = []
    for part in [grids] if isinstance(grids, str) else grids:
        found += _terms(part) if isinstance(part, str) else [_pair(part)]
    found = list(dict.fromkeys(found))
    if not found or any(min(pair) < 1 for pair in found):
        raise ValueError(f"grids {grids!r}: no grid of at least one tile")
    return found


def _pair(part: Sequence[int]) -> Size:
    if len(part) != 2:
        raise ValueError(f"grids: {part!r} is not a pair of width and height in pixels")
    return part[0], part[1]


def _terms(text: str) -> Iterator[Size]:
    if found := RANGE.fullmatch(text.strip()):
        first, last = (int(found[1]), int(found[2])), (int(found[3]), int(found[4]))
        for width in range(first[0], last[0] + 1):
            yield from ((width, height) for height in range(first[1], last[1] + 1))
        return
    rest = re.sub(r"^\s*\{(?=.*[x×])(.*)\}\s*$", r"\1", text)
    if TERM.sub("", rest).strip(", \n"):
        raise ValueError(f"grids {text!r}: expected such as '2x2, 1x{{2,3,4}}' or '(1x1)...(6x6)'")
    for left, right in TERM.findall(rest):
        for width in map(int, re.findall(r"\d+", left)):
            yield from ((width, int(height)) for height in re.findall(r"\d+", right))
