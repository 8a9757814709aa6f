"""The verb `import`: a released checkpoint becomes a folder of parts."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from llava_lab.cli.verb import TEMPLATE_HELP, add_flag, one_message, verb_parser


def parser() -> ArgumentParser:
    """The verb's parser."""
    made = verb_parser("import", "Turn a released checkpoint into parts that an experiment names.")
    made.add_argument(
        "checkpoint", help="folder or hub id, in the layout of transformers or the original"
    )
    add_flag(made, "--out", type=Path, required=True, help="folder to make")
    add_flag(made, "--template", metavar="NAME", help=TEMPLATE_HELP)
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the verb."""
    options = parser().parse_args(arguments)
    with one_message():
        from llava_lab.convert.released import import_checkpoint

        made = import_checkpoint(options.checkpoint, options.out, options.template)
        print(f"llava_lab: {made}")
        print(
            "llava_lab: evaluate it: python -m llava_lab fit -c experiments/llava15.yaml -c "
            f"{made} --stages.align=null --stages.instruct=null --data.benchmarks=[] "
            "-c configs/benchmarks/pope.yaml"
        )
