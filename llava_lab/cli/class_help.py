"""Class help: `--CLASS.help` prints what a class takes that a configuration may name."""

import argparse
import importlib
import pkgutil
from collections.abc import Sequence
from contextlib import suppress

# Where the classes are that a configuration names: help lists those that have been imported.
PARTS = ("llava_lab.data", "llava_lab.evaluate", "llava_lab.model", "llava_lab.train")
EXAMPLE = "llava_lab.model.connector.mlp.MLP"


def print_class_help(name: str, value: str | None = None) -> None:
    """Print the arguments of a class.

    Args:
        name: What stands before .help: an option that has one class, a class of the package, or
            MODULE.CLASS.
        value: What stands behind it, which says nothing.

    Raises:
        ValueError: If there is no such help, or a value.
    """
    # Here, since torch takes seconds, and --help needs none of it.
    from lightning.pytorch import Trainer

    from llava_lab.experiment.options import DEFAULT_CLASSES, Paths
    from llava_lab.experiment.parser import LabParser
    from llava_lab.tiny_world.generate import TinyWorld
    from llava_lab.tiny_world.videos import TinyVideos
    from llava_lab.train.precision import CHOICES, Precisions

    worlds = {"tiny_world": TinyWorld, "tiny_videos": TinyVideos}
    keys = {**DEFAULT_CLASSES, "trainer": Trainer, "paths": Paths, **worlds}
    shown = keys.get(name) or _class(name, list(keys))
    if value is not None:
        raise ValueError(f"--{name}.help takes no value; --{value}.help has what {value} takes")
    _import_parts()
    parser = LabParser(prog=f"class_path: {name}")
    own = {"precision"} if shown is Trainer else set()
    parser.add_class_arguments(shown, sub_configs=True, skip=own)
    if own:  # as experiments have it
        parser.add_argument("--precision", type=Precisions | None, default=None, help=CHOICES)
    for action in parser._actions:  # of a parser of one class, which no command has
        if action.dest.endswith(".help"):
            action.help = argparse.SUPPRESS
    parser.print_help()


def _class(name: str, keys: Sequence[str]) -> type:
    """The class of a name, short or whole."""
    from jsonargparse._util import import_object

    from llava_lab.core.trust import guarded, modules_with

    found = [f"{module}.{name}" for module in modules_with(name)] or [name]
    if len(found) > 1:
        raise ValueError(f"--{name}.help: which of {', '.join(found)}? Write its whole name")
    try:
        return guarded(import_object)(found[0])
    except ImportError as error:
        options = ", ".join(f"--{key}.help" for key in keys)
        short = EXAMPLE.rpartition(".")[2]
        raise ValueError(
            f"--{name}.help: there is no such help. There are {options}, and that of any class by "
            f"its name: --{short}.help, --{EXAMPLE}.help"
        ) from error


def _import_parts() -> None:
    """Import the modules in which classes of configurations are, so that all of them are listed."""
    for part in PARTS:
        for module in pkgutil.walk_packages(importlib.import_module(part).__path__, f"{part}."):
            with suppress(ImportError):  # a class whose library is not installed is of no use here
                importlib.import_module(module.name)
