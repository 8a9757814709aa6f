"""check: every bad row of an experiment's data, before anything is spent."""

from collections.abc import Sequence

from llava_lab.cli.arguments import experiment_parser, read_experiment, split
from llava_lab.cli.fit import quiet
from llava_lab.cli.verb import one_message
from llava_lab.report.formats import FORMATS, show


def main(arguments: Sequence[str]) -> None:
    """Print what is wrong with the data of an experiment; a fault that `fit` refuses ends in 2."""
    parser = experiment_parser("check", "Look at every row, picture and question, without weights.")
    parser.add_argument("--format", choices=FORMATS, default="rich", help="of the tables")
    with one_message():
        options, layers = split(parser, arguments)
        quiet()
        from llava_lab.report.check import check

        found = check(read_experiment(layers))
        show(found.grids, options.format)
        if found.refused:
            raise ValueError(f"{found.refused:,} rows or files are refused; they are listed above")
