"""Numbers: what an option that is a number may be; never one that is infinite or no number."""

import math


class OutOfRange(ValueError):
    """An option is a number that it cannot be.

    Args:
        where: What stands before its name: "data.", "Frames: "; or nothing.
        name: The option.
        value: Its value.
        may_be: What it may be, in words.
    """

    def __init__(self, where: str, name: str, value: float, may_be: str):
        super().__init__(f"{where}{name} is {value}; it is {may_be}")
        self.name, self.value, self.may_be = name, value, may_be


def at_least(least: float, where: str = "", /, **options: float | None) -> None:
    """Refuse options below a number; None is let through.

    Raises:
        OutOfRange: Names the first.
    """
    for name, value in options.items():
        if value is not None and not least <= value < math.inf:
            raise OutOfRange(where, name, value, f"{least} or more")


def above(least: float, where: str = "", /, **options: float | None) -> None:
    """Refuse options that are not above a number; None is let through.

    Raises:
        OutOfRange: Names the first.
    """
    for name, value in options.items():
        if value is not None and not least < value < math.inf:
            raise OutOfRange(where, name, value, f"above {least}")


def shares(where: str = "", /, *, below: float = math.inf, **options: float) -> None:
    """Refuse options that are no share of a whole, from 0 to 1.

    Args:
        where: What stands before their names.
        below: A number that they do not reach.
        options: The options.

    Raises:
        OutOfRange: Names the first.
    """
    for name, value in options.items():
        if not (0 <= value <= 1 and value < below):
            most = f"to below {below}" if below <= 1 else "to 1"
            raise OutOfRange(where, name, value, f"from 0 {most}")
