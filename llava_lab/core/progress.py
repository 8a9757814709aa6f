"""Progress: how far long work is, shown by time; of the first process of a job alone.

On a terminal a bar, which moves every second or so; on a pipe or in a file a line every ten
seconds. What is done within two seconds shows nothing.
"""

import io
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

from llava_lab.core import ranks

_Item = TypeVar("_Item")

PATIENCE = 2.0  # seconds before anything is shown
BAR_SECONDS, LINE_SECONDS = 1.0, 10.0
FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


def say(message: str) -> None:
    """Write a line for the user, by the first process of a job; bars make room for it."""
    if ranks.first():
        tqdm.write(f"llava_lab: {message}", file=sys.stdout)
        sys.stdout.flush()


def progress(what: str, total: int | None = None, **options: Any) -> tqdm:
    """A bar of work that may take long, or what stands for one where there is no terminal.

    Args:
        what: What is done, such as "features".
        total: How many there are to do; None where it is not known yet.
        options: More options of tqdm.

    Returns:
        A bar with tqdm's methods: `update` by how many were done, `close`; it may be a context.
    """
    kind = tqdm if sys.stdout.isatty() else Lines
    chosen: dict[str, Any] = {
        "delay": PATIENCE,
        "mininterval": BAR_SECONDS,
        "miniters": 1,
        "leave": False,
        "dynamic_ncols": True,
        "smoothing": 0,
        "bar_format": FORMAT,
        "file": sys.stdout,
        "disable": not ranks.first(),
    }
    return kind(desc=what, total=total, **{**chosen, **options})


def shown(items: Sequence[_Item], what: str) -> Iterator[_Item]:
    """The items one after another, with how many of them are done.

    Args:
        items: What is worked on.
        what: What is done to them, such as "pictures drawn".
    """
    with progress(what, len(items)) as bar:
        for item in items:
            yield item
            bar.update()


class Lines(tqdm):
    """A bar that writes lines, for pipes and files."""

    def __init__(self, *arguments: Any, **options: Any):
        self.last, self.written = time.monotonic(), 0
        options["file"] = io.StringIO()  # what tqdm itself would write
        super().__init__(*arguments, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line, unless one was written a short time ago."""
        if msg is None and self.n and time.monotonic() - self.last >= LINE_SECONDS:
            self._write()

    def close(self) -> None:
        """Say that the work is done, if anything was said of it."""
        if not self.disable and 0 < self.written < self.n == self.total:
            self._write()
        super().close()

    def _write(self) -> None:
        self.last, self.written = time.monotonic(), self.n
        say(line(self.format_dict))


def line(state: Mapping[str, Any]) -> str:
    """Where the work of a bar stands, in words.

    Args:
        state: A bar's `format_dict`.
    """
    done, total, elapsed = state["n"], state["total"], state["elapsed"]
    counted = f"{done:,}" + (f" of {total:,}" if total else "")
    fresh = done - state["initial"]
    prefix = state["prefix"].removesuffix(": ")  # which tqdm adds to some descriptions
    if total and done >= total:
        when = f"in {tqdm.format_interval(elapsed)}"
    elif total and fresh > 0:
        when = f"{tqdm.format_interval(elapsed * (total - done) / fresh)} left"
    else:
        when = f"since {tqdm.format_interval(elapsed)}"
    return ", ".join(filter(None, (f"{prefix}: {counted}", when, state["postfix"])))
