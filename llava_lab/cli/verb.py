"""What all verbs share: their parsers and flags, and how a mistake, a bug or a signal ends them."""

import argparse
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_lab.core import ranks, signals
from llava_lab.core.cost import Prices
from llava_lab.core.messages import explained

if TYPE_CHECKING:
    from llava_lab.serve.remote import RemoteModel

MODEL_HELP = (
    "run folder, weights that it kept (stages/NAME/kept/step-*.safetensors), imported folder, "
    "checkpoint folder or hub id"
)
ENGINES_MODEL = "with --engine-url, the engine's name of its model"
TEMPLATE_HELP = (
    "chat template: v1, mistral_instruct, qwen_1_5, ...; by default the model's own, or the one "
    "that writes exactly what a checkpoint's own does"
)
MISTAKE = 2  # exit status: the message says what to change
FAULT = 70  # exit status: an error in llava_lab itself
PRICES = ("--price-prompt", "--price-completion")
LOST = "another process of this job has ended, and so does this one; the same command goes on"


class Stop(SystemExit):
    """Exit of a verb whose message has been printed already.

    Args:
        status: Exit status.
        message: The message that was printed.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.code = status


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says the default of a flag that has one; what has lines of its own keeps them."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        empty = default is None or default is False or default == []
        return action.help if empty else super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Parser(argparse.ArgumentParser):
    """A verb's parser, and those of what it is divided into."""

    def __init__(self, *arguments: Any, **options: Any):
        options.setdefault("formatter_class", _Help)
        super().__init__(*arguments, **options)


def verb_parser(verb: str, description: str) -> argparse.ArgumentParser:
    """Make the parser of one verb, whose help says defaults."""
    return _Parser(prog=f"python -m llava_lab {verb}", description=description)


def add_flag(parser: argparse.ArgumentParser, flag: str, /, **options: Any) -> argparse.Action:
    """Add a flag such as `--max-new-tokens`; `--max_new_tokens` is read too, but not shown.

    Args:
        parser: A parser of argparse or jsonargparse.
        flag: The documented spelling, with dashes.
        options: Those of `add_argument`.
    """
    other = "--" + flag.removeprefix("--").replace("-", "_")
    if other == flag:
        return parser.add_argument(flag, **options)
    action = parser.add_argument(flag, other, **options)
    # Help and error messages list these; the parser finds an option by a table of its own.
    action.option_strings = [flag]
    return action


def add_model(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Add the MODEL that a verb works on, and the flags that say how to open it."""
    parser.add_argument("model", help=MODEL_HELP + more)
    add_model_flags(parser)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how to open a MODEL."""
    add_flag(parser, "--template", metavar="NAME", help=TEMPLATE_HELP)
    add_trust_flag(parser, "the MODEL folder")


def add_trust_flag(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the flag that lets a saved model or run name classes of other modules."""
    add_flag(
        parser,
        "--trust-code",
        metavar="MODULE",
        action="append",
        default=[],
        help=f"module beside llava_lab whose classes {what} may name; may be repeated. "
        "Its code runs: name only what you know",
    )


def add_question_file(parser: argparse.ArgumentParser) -> None:
    """Add a question file, the folder of its images, and the file to write."""
    parser.add_argument("questions", type=Path, help="JSONL of {question_id, image or video, text}")
    add_flag(parser, "--images", type=Path, help="folder of the images and videos")
    add_flag(parser, "--out", type=Path, required=True, help="JSONL to write")


def add_video_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how a video is shown."""
    add_flag(parser, "--frames", type=positive, help="frames of a video; as trained, or else 16")
    add_flag(parser, "--stride", type=positive, help="pooling of a frame; as trained, or else 2")


def add_generation_flags(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    """Add the flags of answers: their most tokens, and how many images are computed at once."""
    longest = "tokens that an answer has at most"
    add_flag(parser, "--max-new-tokens", type=positive, default=max_new_tokens, help=longest)
    at_once = "images whose answers are computed at once"
    add_flag(parser, "--images-per-batch", type=positive, default=8, help=at_once)


def add_price_flags(parser: argparse.ArgumentParser) -> None:
    """Add the prices of an engine's tokens."""
    unit = "price of a million tokens, in any currency, that the engine"
    for flag, what in zip(PRICES, ("reads", "writes"), strict=True):
        add_flag(parser, flag, type=float, metavar="PRICE", help=f"{unit} {what}")


def read_prices(options: argparse.Namespace) -> Prices:
    """The prices of a verb's options."""
    return Prices(options.price_prompt, options.price_completion)


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of an engine that works in place of the local model."""
    add_flag(parser, "--engine-url", help="any OpenAI-compatible engine: http://127.0.0.1:8000/v1")
    add_flag(parser, "--in-flight", type=positive, default=32, help="requests to it at once")
    stop = "text that ends an engine's answers, such as '###' of the template v0"
    add_flag(parser, "--stop", help=stop)


def refuse_idle(
    parser: argparse.ArgumentParser, options: argparse.Namespace, flags: Sequence[str], why: str
) -> None:
    """Refuse flags that change nothing beside the others that are given.

    Args:
        parser: The verb's parser.
        options: What it has read.
        flags: Those that change nothing here, such as "--one-look".
        why: What they are for, and what to give or to leave out.
    """
    for flag in flags:
        place = parser._option_string_actions[flag].dest
        if getattr(options, place) != parser.get_default(place):
            parser.error(f"{flag} changes nothing here: {why}")


def refuse_others_flags(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse flags of the local model beside an engine, and an engine's beside the local model."""
    if options.engine_url:
        local = ["--frames", "--stride", "--template", "--trust-code", "--images-per-batch"]
        refuse_idle(parser, options, local, "it is the local model's; an engine has its own")
    else:
        engines = ["--stop", "--in-flight"]
        engines += [each for each in PRICES if each in parser._option_string_actions]
        refuse_idle(parser, options, engines, "it is an engine's, and --engine-url is not given")


def remote_model(options: argparse.Namespace) -> "RemoteModel":
    """The model behind the engine that the flags name."""
    from llava_lab.serve.remote import RemoteModel

    length, in_flight = options.max_new_tokens, options.in_flight
    return RemoteModel(options.engine_url, options.model, length, in_flight, options.stop)


def positive(text: str) -> int:
    """Read a whole number of at least 1 from a command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


@contextmanager
def one_message() -> Iterator[None]:
    """Turn any exception of a verb into one message and an exit status.

    A mistake of the user or a refusal of the machine exits with 2. A signal exits with 75: the same
    command goes on. Anything else is a bug of this package and exits with 70; its traceback is
    written to a file. `LLAVA_LAB_DEBUG=1` shows the traceback.
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


def _stop(status: int, message: str) -> None:
    if message:
        print(message, file=sys.stderr, flush=True)
    raise Stop(status, message) from None


def _report(error: Exception) -> str:
    """Write the traceback to a file; returns a message that names it."""
    text = "".join(traceback.format_exception(error))
    summary = f"{type(error).__name__}: {error}".splitlines()[0]
    message = f"a fault of llava_lab, not of yours ({summary}). "
    try:
        handle, name = tempfile.mkstemp(prefix="llava_lab-", suffix=".traceback.txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        return f"{message}LLAVA_LAB_DEBUG=1 shows the traceback"
    return f"{message}The traceback is in {name}; please report it"


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Print one line, not a traceback, for an exception in another thread, such as a logger's."""

    def report(failed: threading.ExceptHookArgs) -> None:
        if failed.exc_type is not SystemExit:
            summary = f"{failed.exc_type.__name__}: {failed.exc_value}"
            print(f"llava_lab: a thread ended early ({summary})", file=sys.stderr, flush=True)

    before = threading.excepthook
    if not os.environ.get("LLAVA_LAB_DEBUG"):
        threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = before
