"""Places: options -> the ways to all that they set, by which two layers are compared."""

from collections.abc import Iterator, Mapping, Set
from typing import Any

from llava_lab.experiment.compose import CLASS, EXTENDS, is_class_name, read_options

Place = tuple[str, ...]  # the names on the way to an option


def places(options: Mapping[str, Any], whole: bool = False) -> Iterator[Place]:
    """Where options set a value, whatever their spelling; an option that is appended to has a +.

    Args:
        options: Options by their names, which may be dotted.
        whole: Also where they begin anew, with another class or with `extends`.
    """
    waiting: list[tuple[Place, Any]] = [((), read_options(options))]
    while waiting:
        place, value = waiting.pop()
        if is_class_name(value) and place[-1] != CLASS:
            value = {CLASS: value}
        inside = value if isinstance(value, dict) else {}
        if place and (not inside or (whole and {CLASS, EXTENDS} & inside.keys())):
            yield place
        waiting += [((*place, key), each) for key, each in inside.items()]


def settled(place: Place) -> Place:
    """A place without the + of a list that is appended to."""
    return tuple(part.removesuffix("+") for part in place)


def lost(place: Place, later: Set[Place]) -> bool:
    """Whether what is set later replaces a place, or what it is in."""
    return any(place[:length] in later for length in range(1, len(place) + 1))
