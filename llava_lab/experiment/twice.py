"""Twice: an option that one mapping sets in two spellings, `a.b: 1` and `a: {b: 2}`, is refused."""

from collections.abc import Iterator, Mapping
from typing import Any


def refuse_twice(trees: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse an option that a later spelling would replace in silence.

    A class and options of it may stand beside each other, and so may a list and its entries.

    Args:
        trees: What each of a mapping's own keys says, nested.

    Raises:
        ValueError: Names the option with both values.
    """
    before: dict[tuple[str, ...], tuple[str, Any]] = {}
    for key, tree in trees.items():
        mine = dict(_leaves(tree))
        for place, value in mine.items():
            ways = [place[:length] for length in range(1, len(place) + 1)]
            inside = [each for each in before if each[: len(place)] == place]
            # A number has no options: one of them would stand in its place.
            inside += [w for w in ways if w in before and isinstance(before[w][1], int | float)]
            if inside:
                other, old = before[inside[0]]
                where = ".".join(max(place, inside[0], key=len))
                raise ValueError(
                    f"{where}: stands there twice, in two spellings: {old!r:.80} under {other} and "
                    f"{value!r:.80} under {key}; leave one of them"
                )
        before |= {place: (key, value) for place, value in mine.items()}


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Places and values of a tree."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from (((name, *place), leaf) for place, leaf in _leaves(value))
        else:
            yield (name,), value
