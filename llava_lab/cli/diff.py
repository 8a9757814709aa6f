"""diff: what differs between two experiments, runs or points of sweeps."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava_lab.cli.arguments import experiment_parser, read_experiment, split
from llava_lab.cli.fit import quiet
from llava_lab.cli.verb import one_message
from llava_lab.core.shipped import here_or_shipped
from llava_lab.experiment.compose import differences, write_value
from llava_lab.experiment.sweep import Sweep
from llava_lab.report.formats import FORMATS, show
from llava_lab.report.grid import Figure, Grid

if TYPE_CHECKING:  # torch takes seconds, and --help needs none of it
    from llava_lab.experiment.experiment import Experiment


def main(arguments: Sequence[str]) -> None:
    """Print what differs."""
    with one_message():
        options, layers = split(_parser(), arguments)
        quiet()
        names = (options.left, options.right)
        both = [find(name, layers) for name in names]
        show([differences_grid(*names, *both)], options.format)


def _parser() -> argparse.ArgumentParser:
    parser = experiment_parser(
        "diff",
        "Say in which options two experiments differ, all references resolved and all defaults "
        "filled in. Other options and -c files are added to both.",
    )
    what = "experiment file, run folder, or SWEEP.yaml:POINT such as 'sweeps/grid_size.yaml:2x2'"
    parser.add_argument("left", metavar="A", help=what)
    parser.add_argument("right", metavar="B", help="the same")
    parser.add_argument("--format", choices=FORMATS, default="rich", help="of the table")
    return parser


def find(name: str, more: Sequence[Path | str]) -> "Experiment":
    """The experiment that a name on the command line stands for.

    Args:
        name: An experiment file, a run folder, or a sweep file with a point's name behind it.
        more: Files and overrides that are added.

    Raises:
        ValueError: If there is none of this name.
    """
    file, _, point = name.partition(".yaml:")
    if point:
        return _point(here_or_shipped(Path(f"{file}.yaml")), point, more)
    path = Path(name)
    path = path / "config.yaml" if path.is_dir() else path
    return read_experiment([path, *more])


def _point(path: Path, wanted: str, more: Sequence[Path | str]) -> "Experiment":
    sweep = Sweep.read(path)
    points = {", ".join(each.labels.values()): each for each in reversed(sweep.points())}
    if wanted not in points:
        known = ", ".join(map(repr, reversed(points)))
        raise ValueError(f"{path}: there is no point {wanted!r}; its points are {known}")
    return read_experiment(sweep.layers(points[wanted], more))


def differences_grid(left: str, right: str, ours: "Experiment", theirs: "Experiment") -> Grid:
    """A row for each option that differs."""
    rows = [
        [key, Figure(write_value(a), a), Figure(write_value(b), b)]
        for key, a, b in differences(ours.config, theirs.config)
    ]
    notes = [] if rows else ["They are the same experiment."]
    return Grid("Differences", ["option", left, right], rows, notes=notes, about={"table": "diff"})
