"""Arguments of fit and its like: files and overrides in their order, and a verb's own options."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava_lab.cli.class_help import print_class_help
from llava_lab.cli.verb import verb_parser

if TYPE_CHECKING:  # torch takes seconds, and --help needs none of it
    from llava_lab.experiment.experiment import Experiment

EPILOG = """
Everything else that begins with -- is an option of the experiment, such as
--model.connector.depth=3 or --stages.instruct.data.views.grids 3x3. Files and options are applied
in the order in which they stand, and later ones win. --model.help, --stages.help, --data.help and
--trainer.help say what may stand there, and --CLASS.help what a class takes: --MLP.help
"""


def experiment_parser(verb: str, description: str) -> argparse.ArgumentParser:
    """The parser of a verb that takes an experiment."""
    parser = verb_parser(verb, description)
    parser.epilog, parser.allow_abbrev = EPILOG, False
    parser.add_argument(
        "-c", "--config", metavar="FILE", action="append", default=[], help="YAML file; repeatable"
    )
    return parser


def split(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, list[Path | str]]:
    """A verb's own options, and the files and overrides of the experiment in their order.

    Raises:
        ValueError: If an option has no value.
    """
    own: list[str] = []
    layers: list[Path | str] = []
    flags = parser._option_string_actions
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument.startswith("-c") and argument[2:3] not in ("", "="):  # -cFILE
            argument = f"-c={argument[2:]}"
        name, equals, value = argument.partition("=")
        if name.startswith("--") and name.endswith(".help"):
            behind = value if equals else waiting[0] if waiting and waiting[0][:1] != "-" else None
            print_class_help(name.removeprefix("--").removesuffix(".help"), behind)
            raise SystemExit(0)
        if name in ("-c", "--config"):
            layers.append(Path(value if equals else _value(argument, waiting)))
        elif name in flags:
            own.append(f"{name}={value}" if equals else name)
            own += [] if equals else _taken(flags[name], waiting)
        elif name.startswith("--") and len(name) > 2:
            value = value if equals else _value(argument, waiting)
            layers.append(f"{name.removeprefix('--')}={value}")
        else:
            own.append(argument)
    return parser.parse_args(own), layers


def _value(name: str, waiting: list[str]) -> str:
    """The value that stands behind an option.

    Raises:
        ValueError: If none does.
    """
    if not waiting or waiting[0].startswith("--"):
        raise ValueError(f"{name} needs a value, such as {name}=...")
    return waiting.pop(0)


def _taken(action: argparse.Action, waiting: list[str]) -> list[str]:
    """The values that a verb's own option takes of those that stand behind it."""
    taken: list[str] = []
    most = {None: 1, 0: 0}.get(action.nargs, len(waiting))  # pyrefly: ignore
    while waiting and len(taken) < most and not waiting[0].startswith("-"):
        taken.append(waiting.pop(0))
    return taken


def read_experiment(layers: Sequence[Path | str]) -> "Experiment":
    """The experiment of files and overrides.

    Raises:
        ValueError: If there is no file.
    """
    from llava_lab.experiment.experiment import Experiment

    if not any(isinstance(layer, Path) for layer in layers):
        raise ValueError("which experiment? Name one, such as -c experiments/llava15.yaml")
    return Experiment.read_layers(layers)
