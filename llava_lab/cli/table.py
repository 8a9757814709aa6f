"""`table`: runs, a sweep or a published table, for people and for scripts."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from llava_lab.cli.arguments import split
from llava_lab.cli.verb import one_message, refuse_idle, verb_parser
from llava_lab.experiment.sweep import Layers, Sweep
from llava_lab.report.committed import is_results, read_results
from llava_lab.report.foreign import read_all
from llava_lab.report.formats import FORMATS, show
from llava_lab.report.page.configurations import configurations, rows_in
from llava_lab.report.paper_table import list_grid, paper_grids
from llava_lab.report.placed import Group
from llava_lab.report.plot import plot
from llava_lab.report.published import published
from llava_lab.report.runs import RunResults
from llava_lab.report.sweep import (
    difference_grids,
    finished_groups,
    held_out_grids,
    published_with,
    sweep_grids,
)
from llava_lab.report.sweep import labelled as labelled_points
from llava_lab.report.table import grouped, labelled, show_runs
from llava_lab.report.trajectories import AT, at_grids, plot_along

LIST = ""  # --paper without an id


def main(arguments: Sequence[str]) -> None:
    """Run the verb; a mistake is one message and exit status 2."""
    parser = _parser()
    with one_message():
        options, more = split(parser, arguments)
        given = options.runs_or_sweep
        swept = bool(given) and given[0].suffix == ".yaml"
        if more and not swept:
            parser.error(f"unrecognized arguments: {' '.join(map(str, more))}")
        if not given and options.paper is None:
            parser.error("name runs, a sweep file, or a published table: --paper llava15/table2")
        _refuse_idle(parser, options, swept)
        if options.paper == LIST and not given:
            show([list_grid()], options.format)
        elif options.at is not None:
            along_table(options, more)
        elif options.paper is not None:
            paper_table(options, more)
        elif swept:
            sweep_table(options, more)
        else:
            show_runs(_read(options), options.format)


def _refuse_idle(parser: ArgumentParser, options: Namespace, swept: bool) -> None:
    given, paper, at = options.runs_or_sweep, options.paper is not None, options.at is not None
    of_answers = ["--questions", "--images", "--metric"]
    if not given:
        idle = ["--at", "--runs", *of_answers]
        idle += ["--against", "--scores"] if options.paper == LIST else []
        refuse_idle(parser, options, idle, "it is of runs, or of a sweep: name them")
    if swept:
        refuse_idle(parser, options, of_answers, "it is of answer files, not of a sweep")
    else:
        idle = ["--runs", *([] if paper else ["--against"]), *([] if at else ["--plot"])]
        refuse_idle(parser, options, idle, "it is of a sweep: give its file")
    if options.questions is None:
        refuse_idle(parser, options, of_answers, "it is of answer files: name their --questions")
    if paper:
        why = "--paper prints a published table"
        refuse_idle(parser, options, ["--at", "--plot"], why)
    elif at:
        refuse_idle(parser, options, ["--against"], "--at compares all runs with the first")
    elif not options.plot:
        why = "it is of a --plot, of --paper or of --at"
        refuse_idle(parser, options, ["--scores"], why)
    if at or not options.plot:
        refuse_idle(parser, options, ["--x"], "it is of the --plot of a sweep, without --at")


def _parser() -> ArgumentParser:
    parser = verb_parser(
        "table",
        "Print runs as tables: one by itself, several seeds as their mean, or a sweep; or a "
        "published table, with runs in the rows that they are.",
    )
    what = (
        "run folder, results.json, folder of runs, or one sweep file; log of lmms-eval "
        "(DATE_results.json, or its folder); file made by `answer` (.jsonl); with --paper, also "
        "the folder results, of runs that verdicts are made from"
    )
    parser.add_argument("runs_or_sweep", metavar="RUN", nargs="*", type=Path, help=what)
    formats = "csv and json have figures as numbers (scores as fractions)"
    parser.add_argument("--format", choices=FORMATS, default="rich", help=formats)
    paper = "published table to print, such as llava15/table2; without an ID list all"
    parser.add_argument("--paper", nargs="?", const=LIST, metavar="ID", help=paper)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the sweep ran")
    against = (
        "also print differences of a sweep's points to this one: '1x1'; with --paper, of its rows "
        "to this row, instead of to the row before"
    )
    parser.add_argument("--against", metavar="POINT", help=against)
    parser.add_argument(
        "--plot", type=Path, help="picture of the sweep, or of --at, to draw: .png or .pdf"
    )
    chosen = (
        "scores to plot, or to print with --paper, instead of accuracies: presence/hallucination"
    )
    parser.add_argument("--scores", nargs="+", default=[], metavar="SCORE", help=chosen)
    equal = (
        "compare runs on their way, at equal samples, tokens or FLOPs: of stages with an "
        "evaluate_every; --plot draws it"
    )
    parser.add_argument("--at", choices=AT, help=equal)
    along = "score to plot against instead of visual tokens, such as dpo/kl of held-out rows"
    parser.add_argument("--x", metavar="SCORE", help=along)
    asked = "question file with the right answers, which answer files (.jsonl) are scored against"
    parser.add_argument("--questions", type=Path, metavar="FILE", help=asked)
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of its images")
    rule = "how they are scored: a metric's class, such as ExactMatch or YesNo"
    parser.add_argument("--metric", default="VQAAccuracy", metavar="CLASS", help=rule)
    return parser


def along_table(options: Namespace, more: Layers) -> None:
    """Print runs, or the points of a sweep, at equal samples, tokens or FLOPs; draw the plot.

    Args:
        options: Of the command line.
        more: Files and overrides that the sweep was run with.
    """
    groups = _groups(options, more)
    if options.runs_or_sweep[0].suffix != ".yaml":  # called by what sets them apart
        groups = [each.group for each in configurations([run for _, of in groups for run in of])]
    if foreign := [label for label, runs in groups if "origin" in runs[0].results]:
        raise ValueError(f"--at: {foreign[0]} has no stages, so that it is not known what it spent")
    show(at_grids(groups, options.at, options.scores), options.format)
    if options.plot:
        plot_along(groups, options.at, options.plot, options.scores)


def paper_table(options: Namespace, more: Layers) -> None:
    """Print a published table, with runs or the points of a sweep in their rows.

    Args:
        options: Of the command line.
        more: Files and overrides that the sweep was run with.
    """
    if options.paper == LIST:
        raise ValueError("--paper: which table? `table --paper` lists them; name one behind it")
    shown = published(options.paper)
    given = options.runs_or_sweep
    if len(given) == 1 and is_results(given[0]):
        groups = rows_in(shown, read_results(given[0]))
    else:
        groups = _groups(options, more)
    show(paper_grids(shown, groups, options.scores, options.against), options.format)


def _groups(options: Namespace, more: Layers) -> list[Group]:
    given = options.runs_or_sweep
    if given and given[0].suffix == ".yaml":
        return labelled_points(finished_groups(Sweep.read(given[0]), options.runs, more))
    return labelled(grouped(_read(options))) if given else []


def _read(options: Namespace) -> list[RunResults]:
    given = options.runs_or_sweep
    return read_all(given, options.questions, options.images, options.metric)


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
    grids += published_with(sweep, path, found)
    show(grids, options.format)
    if options.plot:
        plot(sweep, found, options.plot, options.scores, options.x, options.against)
