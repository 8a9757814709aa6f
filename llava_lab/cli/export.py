"""The verb `export`: a model becomes a folder that transformers, vLLM and SGLang load."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from llava_lab.cli.verb import add_flag, add_model, one_message, verb_parser


def parser() -> ArgumentParser:
    """The verb's parser."""
    made = verb_parser("export", "Write a model for transformers, vLLM and SGLang.")
    add_model(made)
    add_flag(made, "--out", type=Path, required=True, help="folder to make")
    add_flag(
        made,
        "--no-verify",
        action="store_true",
        help="do not load it again and compare its logits",
    )
    add_flag(
        made,
        "--nearest",
        action="store_true",
        help="where no class of transformers sees as this model does, write the nearest one",
    )
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the verb."""
    options = parser().parse_args(arguments)
    with one_message():
        from llava_lab.convert.save import export_model
        from llava_lab.serve.models import open_model

        model, views = open_model(options.model, options.template, options.trust_code)
        departures = export_model(model, views, options.out, not options.no_verify, options.nearest)
        for departure in departures:
            print(f"llava_lab: NOT as it was trained: {departure}")
        print(f"llava_lab: {options.out}")
