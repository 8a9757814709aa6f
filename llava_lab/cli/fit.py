"""fit, validate, test and predict: an experiment's stages and benchmarks."""

import argparse
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llava_lab.cli.arguments import experiment_parser, read_experiment, split
from llava_lab.cli.verb import add_flag, one_message
from llava_lab.core import ranks
from llava_lab.core.progress import say

if TYPE_CHECKING:  # torch takes seconds, and --help needs none of it
    from llava_lab.experiment.fitting import Fitting
    from llava_lab.experiment.run import Run

VERBS = {
    "fit": "Train an experiment's stages, evaluate it, write its run; again: finish or reuse it.",
    "validate": "Loss of a finished run on the rows that its last stage held out.",
    "test": "Ask the benchmarks of a finished run again.",
    "predict": "Answer the benchmarks' questions of a finished run, without scores.",
}
FRESH = "train every stage anew, from the first step also where such a fit was interrupted"
# What Lightning tells its developers and a researcher need not read at every start.
QUIET = (
    ".*args parameter is intended",
    ".*in eval mode at the start of training",
    ".*Skipping val loop",
    ".*does not have many workers",
    ".*LeafSpec",
    ".*Total length of `list` across ranks",
    ".*Trying to infer the `batch_size`",
    ".*The number of training batches",
    ".*The `srun` command is available",  # on a login node, or beside torchrun
)


def main(arguments: Sequence[str]) -> None:
    """Run one of the verbs; a mistake of the user ends in one message."""
    with one_message():
        verb, *rest = arguments
        options, layers = split(_parser(verb), rest)
        quiet()
        experiment = read_experiment(layers)
        if options.print_config:
            print(experiment.text(), end="")
            return
        ranks.check_tasks(experiment.config["trainer"])
        fitting = experiment.fitting(options.runs, options.fresh, options.checkpoint_seconds)
        RUN[verb](fitting, options)


def quiet() -> None:
    """Leave out what Lightning says to its developers; its import sets its loggers up."""
    import lightning.pytorch  # noqa: F401

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in QUIET:
        warnings.filterwarnings("ignore", message)


def _parser(verb: str) -> argparse.ArgumentParser:
    parser = experiment_parser(verb, VERBS[verb])
    parser.add_argument("--runs", default="runs", help="folder of all runs")
    parser.add_argument(
        "--print_config", action="store_true", help="print all options with their values"
    )
    parser.set_defaults(fresh=False, checkpoint_seconds=60.0)
    if verb == "fit":
        parser.add_argument("--stage", metavar="NAME", help="stop after this stage")
        add_flag(parser, "--fresh", action="store_true", help=FRESH)
        add_flag(
            parser,
            "--dry-run",
            action="store_true",
            help="say what would be trained and what reused",
        )
        add_flag(
            parser,
            "--checkpoint-seconds",
            type=float,
            default=60.0,
            help="time between checkpoints",
        )
    return parser


def fit(fitting: "Fitting", options: argparse.Namespace) -> None:
    """Train what is not finished, evaluate, show the results."""
    if options.dry_run:
        say(f"run {fitting.run.folder}")
        found = fitting.preview(options.stage)
        for line in stage_lines(found.stages, found.endings):
            say(line)
        say(f"results: {found.results}" if found.results else "benchmarks: to ask")
        return
    if options.fresh:
        say(f"--fresh: {FRESH}")
    run = fitting.fit(options.stage)
    if options.stage is None:
        show(run)


def stage_lines(stages: Mapping[str, Any], endings: Mapping[str, str]) -> Iterator[str]:
    """What would become of each stage.

    Args:
        stages: Of each the folder of a finished one that would be reused, or None.
        endings: Of each what would end it, where that may surprise; else nothing.
    """
    for name, folder in stages.items():
        to_train = ", ".join(filter(None, ("to train", endings[name])))
        yield f"stage {name}: " + (f"would be reused from {folder}" if folder else to_train)


def test(fitting: "Fitting", _: argparse.Namespace) -> None:
    """Ask the benchmarks again, show the results."""
    show(fitting.test())


def predict(fitting: "Fitting", _: argparse.Namespace) -> None:
    """Answer the questions, say where the answers are."""
    from llava_lab.report.table import run_notes

    for note in run_notes({"answered": fitting.predict()}):
        say(note)
    say(f"answers: {fitting.run.folder / 'predictions'}")


def validate(fitting: "Fitting", _: argparse.Namespace) -> None:
    """Say the held-out loss."""
    name, loss = fitting.validate()
    say(f"held-out loss of stage {name}: {loss:.4f}")


RUN = {"fit": fit, "validate": validate, "test": test, "predict": predict}


def show(run: "Run") -> None:
    """The results as a table, and where they are; by the first process of a job."""
    if not ranks.first():
        return
    from rich.console import Console

    from llava_lab.report.runs import read
    from llava_lab.report.table import results_tables

    console = Console()
    for table in results_tables(read(run.results_file)):
        console.print(table)
    say(f"results: {run.results_file}")
    say(f"curves and samples: tensorboard --logdir {run.folder / 'stages'}")
