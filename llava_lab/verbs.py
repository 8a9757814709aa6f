"""What the verbs outside of Lightning share: their parser, and one message for a mistake."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

MODEL_HELP = "run folder, imported folder, checkpoint folder or hub id"


def verb_parser(verb: str, description: str) -> argparse.ArgumentParser:
    """The parser of one verb."""
    return argparse.ArgumentParser(prog=f"python -m llava_lab {verb}", description=description)


def listed(lines: Sequence[str], most: int) -> str:
    """The first lines of a list for a message, each on a line of its own, and whether more come."""
    return "\n  ".join([*lines[:most], *(["..."] if len(lines) > most else [])])


def positive(text: str) -> int:
    """A whole number from 1 on, of a command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


@contextmanager
def one_message(parser: argparse.ArgumentParser) -> Iterator[None]:
    """End a mistake in one message and exit status 2, unless the traceback is asked for."""
    try:
        yield
    except (OSError, ValueError) as error:
        if os.environ.get("LLAVA_LAB_DEBUG"):
            raise
        parser.exit(2, f"error: {error}\n")
    except KeyboardInterrupt:
        sys.exit(130)
