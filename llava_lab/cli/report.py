"""`report`: what the runs say of the papers' claims; with --run, the runs that are lacking."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava_lab.cli.arguments import split
from llava_lab.cli.verb import one_message, positive, verb_parser
from llava_lab.core import verdict_worlds
from llava_lab.experiment.sweep import Layers
from llava_lab.report.claims import read_claims
from llava_lab.report.claims_grid import claims_grid
from llava_lab.report.finding_file import chosen, read_findings
from llava_lab.report.formats import FORMATS, show

if TYPE_CHECKING:  # torch takes seconds, and results/ are read without
    from llava_lab.report.running import Running


def main(arguments: Sequence[str]) -> None:
    """Run the verb; a mistake is one message and exit status 2."""
    with one_message():
        options, more = split(parser(), arguments)
        if more and options.results is None:
            raise ValueError(
                "runs with other files or options than the findings' own have results of their "
                "own: name a folder with --results"
            )
        options.results = options.results or Path("results")
        if options.run is not None:
            run(options, more)
        elif options.plan is not None:
            plan(options, more)
        else:
            with verdict_worlds.opened():  # samples show their pictures
                claims = read_claims(read_findings(), options.results)
                show([claims_grid(claims, list(claims.findings))], options.format)


def parser() -> ArgumentParser:
    """The parser of the verb."""
    made = verb_parser(
        "report",
        "Print what the runs under results/ say of the papers' claims: rule, effect and verdict of "
        "each finding of configs/findings. With --run, first make the runs that are lacking, in "
        "worlds that nothing else may read. Other options and -c files are handed to every run.",
    )
    made.allow_abbrev = False
    made.add_argument("-c", "--config", metavar="FILE", help="YAML file for every run; repeatable")
    what = "make the runs that findings such as F3, or all, lack; interrupted, it goes on"
    made.add_argument("--run", nargs="*", metavar="ID", help=what)
    what = "say how many runs these are, what they share, and about how long they take"
    made.add_argument("--plan", nargs="*", metavar="ID", help=what)
    made.add_argument("--results", type=Path, metavar="FOLDER", help="by default results")
    runs = "folder of all runs, for --run"
    made.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help=runs)
    jobs = "runs at once; by default one a GPU, or one where there are none"
    made.add_argument("--jobs", type=positive, help=jobs)
    made.add_argument("--format", choices=FORMATS, default="rich", help="of the table")
    return made


def run(options: Namespace, more: Layers) -> None:
    """Make the runs that are lacking, and print the table.

    Args:
        options: Of the command line.
        more: Files and overrides for all runs.
    """
    running, ids = _running(options, options.run, more)
    show([claims_grid(running.run(ids), ids)], options.format)


def plan(options: Namespace, more: Layers) -> None:
    """Print how many runs are lacking for the next looks, which stages they share, how long.

    Args:
        options: Of the command line.
        more: Files and overrides for all runs.
    """
    running, ids = _running(options, options.plan, more)
    from llava_lab.report.effort import effort, effort_grid

    running.rehearse(ids)
    claims = running.claims()
    found = effort(list(running.lacking(ids, claims)), claims.runs, more)
    show([effort_grid(found, options.jobs or 1)], options.format)


def _running(options: Namespace, named: Sequence[str], more: Layers) -> tuple["Running", list[str]]:
    """What makes runs, and the findings that it is asked for."""
    from llava_lab.cli.fit import quiet
    from llava_lab.report.running import Running

    findings = read_findings()
    ids = [each.id for each in chosen(findings, named)]
    quiet()
    return Running(findings, options.results, options.runs, options.jobs, more), ids
