"""`table`: runs or a sweep as tables, for people and for scripts."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from llava_lab.cli.arguments import split
from llava_lab.cli.verb import one_message, verb_parser
from llava_lab.experiment.sweep import Layers, Sweep
from llava_lab.report.grid import show
from llava_lab.report.plot import plot
from llava_lab.report.sweep import (
    difference_grids,
    finished_groups,
    held_out_grids,
    published_with,
    sweep_grids,
)
from llava_lab.report.table import PAPER, table

FORMATS = ("rich", "md", "csv", "json")


def main(arguments: Sequence[str]) -> None:
    """Run the verb; a mistake is one message and exit status 2."""
    parser = verb_parser(
        "table", "Print runs as tables: one by itself, several seeds as their mean, or a sweep."
    )
    what = "run folder, results.json, folder of runs, or one sweep file"
    parser.add_argument("runs_or_sweep", metavar="RUN", nargs="+", type=Path, help=what)
    formats = "json: an array of tables, with figures as numbers (scores as fractions)"
    parser.add_argument("--format", choices=FORMATS, default="rich", help=formats)
    parser.add_argument("--paper", type=Path, default=PAPER, help="folder of published numbers")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the sweep ran")
    parser.add_argument(
        "--against",
        metavar="POINT",
        help="also print differences of a sweep's points to this one: '1x1'",
    )
    parser.add_argument("--plot", type=Path, help="picture of the sweep to draw, .png or .pdf")
    drawn = "scores to plot instead of the first benchmark's accuracies: presence/hallucination"
    parser.add_argument("--scores", nargs="+", default=[], metavar="SCORE", help=drawn)
    against = "score to plot against instead of visual tokens, such as dpo/kl of held-out rows"
    parser.add_argument("--x", metavar="SCORE", help=against)
    with one_message():
        options, more = split(parser, arguments)
        if options.runs_or_sweep[0].suffix == ".yaml":
            sweep_table(options, more)
            return
        if more:
            parser.error(f"unrecognized arguments: {' '.join(map(str, more))}")
        if options.against or options.plot:
            parser.error("--against and --plot are of a sweep: give its file")
        table(options.runs_or_sweep, options.format, options.paper)


def sweep_table(options: Namespace, more: Layers) -> None:
    """Print a sweep's table and the published ones, and draw its plot.

    Args:
        options: Of the command line.
        more: Files and overrides that the sweep was run with.
    """
    path = options.runs_or_sweep[0]
    sweep = Sweep.read(path)
    found = finished_groups(sweep, options.runs, more)
    grids = [*sweep_grids(sweep, found), *held_out_grids(sweep, found)]
    if options.against is not None:
        grids += difference_grids(sweep, found, options.against)
    grids += published_with(sweep, path, options.paper)
    show(grids, options.format)
    if options.plot:
        plot(sweep, found, options.plot, options.scores, options.x, options.against)
