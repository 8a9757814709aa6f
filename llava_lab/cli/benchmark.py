"""`benchmark`: the published benchmarks, what each needs, asks and is published with."""

from collections.abc import Sequence

from llava_lab.cli.verb import one_message, verb_parser

FORMATS = ("rich", "md", "latex", "csv", "html", "json")


def main(arguments: Sequence[str]) -> None:
    """Run the verb; a mistake is one message and exit status 2."""
    parser = verb_parser(
        "benchmark",
        "List the benchmarks of configs/benchmarks: the official files that each needs, its prompt "
        "and rule, and the published numbers of the versions that we train. A run asks one by "
        "-c configs/benchmarks/FILE.yaml behind its experiment.",
    )
    parser.add_argument("name", metavar="NAME", nargs="*", help="benchmarks to list, or files")
    parser.add_argument("--list", action="store_true", help="list these benchmarks, or all")
    formats = "csv and json have figures as numbers"
    parser.add_argument("--format", choices=FORMATS, default="rich", help=formats)
    with one_message():
        options = parser.parse_args(arguments)
        if not options.list and not options.name:
            parser.error("--list lists all; name benchmarks to list these")
        # After the parser, so that help is quick.
        from llava_lab.report.benchmarks import benchmark_grids, listed
        from llava_lab.report.formats import show

        show(benchmark_grids(listed(options.name)), options.format)
