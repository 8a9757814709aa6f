"""`report`: one page of findings or of runs; with --run, the runs that findings lack."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava_lab.cli.arguments import split
from llava_lab.cli.verb import (
    add_trust_flag,
    one_message,
    positive,
    refuse_idle,
    verb_parser,
)
from llava_lab.core import verdict_worlds
from llava_lab.experiment.sweep import Layers
from llava_lab.report.claims import Claims, read_claims
from llava_lab.report.claims_grid import claims_grid
from llava_lab.report.docs import write_docs
from llava_lab.report.finding_file import chosen, read_findings
from llava_lab.report.formats import FORMATS, show
from llava_lab.report.runs import find, read

RESULTS = Path("results")

if TYPE_CHECKING:  # torch takes seconds, and results/ are read without
    from llava_lab.report.running import Running


def main(arguments: Sequence[str]) -> None:
    """Run the verb; a mistake is one message and exit status 2."""
    with one_message():
        made = parser()
        options, more = split(made, arguments)
        if more and options.results is None:
            raise ValueError(
                "runs with other files or options than the findings' own have results of their "
                "own: name a folder with --results"
            )
        if more and options.run is None and options.plan is None:
            made.error(f"unrecognized arguments: {' '.join(map(str, more))}")
        _refuse_idle(made, options)
        if options.run is None and options.plan is None:
            _look_for_results(options)
        own = not options.given or options.results is not None
        options.results = options.results or RESULTS
        if options.plan is not None:
            plan(options, more)
            return
        if options.run is not None:
            run(options, more)
        with verdict_worlds.opened():  # samples show their pictures
            page(options, read_claims(read_findings(), options.results, more) if own else None)


def _look_for_results(options: Namespace) -> None:
    """Refuse a folder of results that was named and is not there; say that the usual one is not."""
    if options.results is not None and not options.results.is_dir():
        raise ValueError(f"--results {options.results}: there is no such folder")
    if options.results is None and not options.given and not RESULTS.is_dir():
        line = f"llava_lab: there is no folder {RESULTS} here, so that no finding has runs"
        print(f"{line}; --results names another", file=sys.stderr)


def _refuse_idle(made: ArgumentParser, options: Namespace) -> None:
    if options.given:
        why = "runs are for the page alone"
        refuse_idle(made, options, ["--run", "--plan", "--docs"], why)
    if options.plan is not None:
        why = "--plan says what --run would do, and does nothing"
        refuse_idle(made, options, ["--run", "--docs", "--out", "--trust-code"], why)
    elif options.run is None:
        why = "it is of the runs to make: give --run or --plan"
        refuse_idle(made, options, ["--every-point", "--jobs", "--runs"], why)
    if options.run is None:
        refuse_idle(made, options, ["--one-look"], "it says how far --run goes: give it, too")
    if options.docs is not None:
        why = "docs are written in place of a page"
        refuse_idle(made, options, ["--out", "--trust-code"], why)


def page(options: Namespace, claims: Claims | None) -> None:
    """Write the page, or docs/, and print the table of findings.

    Args:
        options: Of the command line.
        claims: Findings with the runs under results/; None for a page of runs alone.
    """
    if claims is not None:
        show([claims_grid(claims, list(claims.findings))], options.format)
    if claims is not None and options.docs is not None:
        changed = write_docs(options.docs, claims)
        lines = (f"{'written' if path.exists() else 'removed'}: {path}" for path in changed)
        print("\n".join(lines) or f"{options.docs}: nothing changes", file=sys.stderr)
        return
    # Here, since a page's libraries take a second, and --help needs none of them.
    from llava_lab.report.page.write import write_page

    runs = [read(path) for path in find(options.given)]
    write_page(runs, claims, options.out, options.trust_code)
    print(f"written: {options.out}", file=sys.stderr)


def parser() -> ArgumentParser:
    """The parser of the verb."""
    made = verb_parser(
        "report",
        "Write one HTML page: of RUNs, or of what the runs under results/ say of the papers' "
        "claims, with rule, effect and verdict of each finding of configs/findings. With --run, "
        "first make the runs that findings lack, in worlds that nothing else may read; other "
        "options and -c files are handed to every run, and --results has to name a folder for what "
        "they give.",
    )
    made.allow_abbrev = False
    what = "run folder, results.json or folder of runs to show in place of findings"
    made.add_argument("given", metavar="RUN", nargs="*", type=Path, help=what)
    page = "the page"
    made.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help=page)
    docs = "in place of a page, write every table, plot and verdict of a folder of docs"
    made.add_argument("--docs", nargs="?", const=Path("docs"), type=Path, help=docs)
    made.add_argument("-c", "--config", metavar="FILE", help="YAML file for every run; repeatable")
    what = "make the runs that findings such as F3 lack, by default all; interrupted, it goes on"
    made.add_argument("--run", nargs="*", metavar="ID", help=what)
    what = "say how many runs these are, what they share, and about how long they take"
    made.add_argument("--plan", nargs="*", metavar="ID", help=what)
    what = "with --run or --plan, also points of their sweeps that no finding compares"
    made.add_argument("--every-point", action="store_true", help=what)
    what = "with --run, stop once the next look of each finding is taken, decided or not"
    made.add_argument("--one-look", action="store_true", help=what)
    made.add_argument(
        "--results", type=Path, metavar="FOLDER", help="by default results; with RUNs, both"
    )
    runs = "folder of all runs, for --run"
    made.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help=runs)
    jobs = "runs at once; by default one a GPU, or one where there are none"
    made.add_argument("--jobs", type=positive, help=jobs)
    made.add_argument("--format", choices=FORMATS, default="rich", help="of the table")
    add_trust_flag(made, "a run whose questions are shown")
    return made


def run(options: Namespace, more: Layers) -> None:
    """Make the runs that are lacking.

    Args:
        options: Of the command line.
        more: Files and overrides for all runs.
    """
    running, ids = _running(options, options.run, more)
    running.run(ids)


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
    found = effort(list(running.to_make(ids, claims)), claims.runs, more)
    show([effort_grid(found, options.jobs or 1, running.most(ids, claims))], options.format)


def _running(options: Namespace, named: Sequence[str], more: Layers) -> tuple["Running", list[str]]:
    """What makes runs, and the findings that it is asked for."""
    from llava_lab.cli.fit import quiet
    from llava_lab.report.running import Running

    findings = read_findings()
    ids = [each.id for each in chosen(findings, named)]
    quiet()
    given = (options.results, options.runs, options.jobs, more)
    how_far = (options.every_point, options.one_look)
    return Running(findings, *given, *how_far), ids
