"""Own: what the user's files and overrides set, and what layers behind them replace of it."""

from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from llava_lab.experiment.compose import (
    CLASS,
    EXTENDS,
    Tree,
    expand_keys,
    leaves,
    merge,
    read_options,
    short,
)
from llava_lab.experiment.places import Place, lost, places, settled

NAMES = (EXTENDS, "experiment", "scale")  # what a file says of itself
MOST = 8  # options that a line names


class Own(NamedTuple):
    """What one file says itself, whatever it extends; or one override.

    Attributes:
        name: What it is called in messages.
        options: Its options, as they are written.
        file: The file; None for an override.
    """

    name: str
    options: Tree
    file: Path | None = None

    @property
    def tree(self) -> Tree:
        """Its options, but for what a file says of itself."""
        return read_options({key: each for key, each in self.options.items() if key not in NAMES})

    @property
    def keys(self) -> dict[str, Any]:
        """Values by their whole keys; a class in a file is the name of that file."""
        return dict(leaves(expand_keys(short(self.options))))


class _Set(NamedTuple):
    """An option that is set: by what, to what; and what has replaced it, if anything has."""

    own: Own
    value: Any
    by: str = ""


def replaced(
    sets: Sequence[Sequence[Own]], names: Sequence[str], layers: Sequence[Sequence[Tree]]
) -> Iterator[str]:
    """Lines that say which options a scale or an experiment replaces of what stands before it.

    Nothing is said where what the user names or sets himself wins.

    Args:
        sets: Of each file or override what it sets.
        names: What each is called that is of a scale or an experiment; nothing for any other.
        layers: The layers of each.
    """
    last = max((number for number, name in enumerate(names) if name), default=0)
    there: dict[Place, _Set] = {}
    for number, (mine, name, here) in enumerate(zip(sets, names, layers, strict=True)):
        if there:
            over = {settled(place) for own in mine for place in places(own.options, whole=True)}
            there = {place: each for place, each in there.items() if not lost(place, over)}
            there |= _behind(there, name, reduce(merge, here, {})) if name else {}
        if number < last:
            for own in mine:
                there |= _places(own)
    gone: dict[tuple[str, str], list[str]] = {}
    for place, each in there.items():
        if each.by:
            gone.setdefault((each.by, each.own.name), []).append(".".join(place))
    for (by, name), keys in gone.items():
        more = f" and {len(keys) - MOST} more" if len(keys) > MOST else ""
        what = "stand at any scale" if by.endswith(" scale") else "win"
        yield (
            f"{by} replaces {', '.join(sorted(keys)[:MOST])}{more} of {name}; what should {what} "
            "goes behind it, into a -c file or onto the command line"
        )


def _places(own: Own) -> Iterator[tuple[Place, _Set]]:
    """What is set, by its place; what is appended to a list is no value that may stand there."""
    tree = own.tree
    for place in places(tree):
        appended = place[-1].endswith("+")
        yield settled(place), _Set(own, object() if appended else _value(tree, place))


def _behind(there: dict[Place, _Set], name: str, tree: Tree) -> dict[Place, _Set]:
    """What a layer of a scale or an experiment replaces of what stands before it."""
    theirs = {settled(place) for place in places(tree, whole=True)}
    found = {place: each for place, each in there.items() if lost(place, theirs)}
    together = {each.own.name: merge(each.own.tree, tree) for each in found.values()}
    return {
        place: each._replace(by=each.by or name)
        for place, each in found.items()
        if _value(together[each.own.name], place) != each.value
    }


def _value(tree: Any, place: Place) -> Any:
    """What stands at a place; None where nothing does."""
    for part in place:
        if isinstance(tree, str) and part == CLASS:
            return tree
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
