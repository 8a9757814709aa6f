"""What all verbs share: how a mistake, a fault or a signal ends them, and their parser."""

import argparse
import errno
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from omegaconf.errors import OmegaConfBaseException

from llava_lab.core import ranks, signals

MODEL_HELP = "run folder, imported folder, checkpoint folder or hub id"
TEMPLATE_HELP = (
    "chat template: v1, mistral_instruct, qwen_1_5, ...; by default the model's own, or the one "
    "that writes exactly what a checkpoint's own does"
)
MISTAKE = 2  # exit status: the message says what to change
FAULT = 70  # exit status: an error in llava_lab itself
LOST = "another process of this job has ended, and so does this one; the same command goes on"
SPACE = "Free some space, or choose another place; the same command goes on."
WAYS_OUT = {
    errno.ENOSPC: SPACE,
    errno.EDQUOT: SPACE,
    errno.EROFS: "Choose a place that can be written.",
    errno.EACCES: "Choose a place that you may read and write.",
    errno.EPERM: "Choose a place that you may read and write.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or use fewer workers.",
}


class Stop(SystemExit):
    """The end of a verb whose message is on the terminal already.

    Args:
        status: Exit status.
        message: What was said.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.code = status


def verb_parser(verb: str, description: str) -> argparse.ArgumentParser:
    """The parser of one verb."""
    return argparse.ArgumentParser(prog=f"python -m llava_lab {verb}", description=description)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options of every verb that takes a MODEL."""
    parser.add_argument("--template", metavar="NAME", help=TEMPLATE_HELP)
    parser.add_argument(
        "--trust-code",
        metavar="MODULE",
        action="append",
        default=[],
        help="module beside llava_lab whose classes the MODEL folder may name; may be repeated. "
        "Its code runs: name only what you know",
    )


def listed(lines: Sequence[str], most: int) -> str:
    """The first lines of a list for a message, each on a line of its own, and whether more come."""
    return "\n  ".join([*lines[:most], *(["..."] if len(lines) > most else [])])


def positive(text: str) -> int:
    """A whole number from 1 on, of a command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


@contextmanager
def one_message() -> Iterator[None]:
    """End a verb in one message and an exit status; `LLAVA_LAB_DEBUG=1` shows the traceback.

    A mistake of the user or a refusal of the machine ends with 2, a signal with 75: the same
    command goes on. Anything else is a fault of this package: its traceback goes into a file.
    """
    try:
        with signals.taken(), _quiet_threads():
            yield
    except signals.Interrupted as stopped:
        signals.leave_last()
        _stop(signals.AGAIN, f"llava_lab: {stopped}" if str(stopped) else "")
    except KeyboardInterrupt:
        _stop(signals.AGAIN, f"llava_lab: {signals.MESSAGE}")
    except BrokenPipeError:  # whoever read the output has gone: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise Stop(128 + 13, "nobody reads the output") from None
    except Exception as error:
        if signals.came():  # such as a lost connection to a rank that the same signal ended
            _stop(signals.AGAIN, f"llava_lab: {signals.MESSAGE}")
        message = explained(error)
        if os.environ.get("LLAVA_LAB_DEBUG"):
            raise
        if ranks.lost(error):
            _stop(signals.AGAIN, f"llava_lab: {LOST}")
        if message is not None:
            _stop(MISTAKE, f"error: {message}")
        _stop(FAULT, f"error: {_report(error)}")


def explained(error: Exception) -> str | None:
    """What to tell a user of an error; None where it is not the user's or the machine's."""
    if isinstance(error, OSError):
        return _of_file(error)
    if isinstance(error, RecursionError):
        return "an option or a file is nested too deeply to be read"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        said = str(error).split(". ")[0] or "out of memory"
        return f"{said}. Choose a smaller micro_batch_size, images_per_batch or model."
    if isinstance(error, OmegaConfBaseException):
        key = (error.full_key or "").partition(".")[2]  # behind the verb
        said = str(error).splitlines()[0]
        return f"{key}: {said}. A reference to another option is ${{its.name}}".removeprefix(": ")
    user = (ValueError, yaml.YAMLError)
    if isinstance(error, user) or type(error).__name__ == "MisconfigurationException":
        return str(error).strip() or type(error).__name__
    return None


def _of_file(error: OSError) -> str:
    """An error of the operating system: the file, what is wrong and the way out."""
    if error.errno is None or error.strerror is None:
        return str(error) or type(error).__name__
    name = error.filename if isinstance(error.filename, (str, os.PathLike)) else None
    if name is not None and error.errno in (errno.EEXIST, errno.ENOTDIR):
        path = Path(os.fspath(name))
        for folder in (path, *path.parents):
            if folder.is_file():
                return f"{folder} is a file where a folder belongs. Move it, or choose another name"
    where = f"{os.fspath(name)}: " if name is not None else ""
    way_out = WAYS_OUT.get(error.errno)
    return f"{where}{error.strerror}{f'. {way_out}' if way_out else ''}"


def _stop(status: int, message: str) -> None:
    if message:
        print(message, file=sys.stderr, flush=True)
    raise Stop(status, message) from None


def _report(error: Exception) -> str:
    """Write the traceback to a file and say where it is."""
    text = "".join(traceback.format_exception(error))
    told = f"{type(error).__name__}: {error}".splitlines()[0]
    message = f"a fault of llava_lab, not of yours ({told}). "
    try:
        handle, name = tempfile.mkstemp(prefix="llava_lab-", suffix=".traceback.txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        return f"{message}LLAVA_LAB_DEBUG=1 shows the traceback"
    return f"{message}The traceback is in {name}; please report it"


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """An error in a thread beside the verb, such as a logger's, is one line too."""

    def told(failed: threading.ExceptHookArgs) -> None:
        if failed.exc_type is not SystemExit:
            said = f"{failed.exc_type.__name__}: {failed.exc_value}"
            print(f"llava_lab: a thread ended early ({said})", file=sys.stderr, flush=True)

    before = threading.excepthook
    if not os.environ.get("LLAVA_LAB_DEBUG"):
        threading.excepthook = told
    try:
        yield
    finally:
        threading.excepthook = before
