"""plan: parts, tokens, FLOPs and memory of an experiment, without running it."""

import argparse
import re
from collections.abc import Sequence

from llava_lab.cli.arguments import experiment_parser, read_experiment, split
from llava_lab.cli.fit import quiet
from llava_lab.cli.verb import add_flag, one_message, positive
from llava_lab.report.budget import (
    DEVICES,
    MEMORY,
    SIZES,
    TEXT_TOKENS,
    UTILIZATION,
    Budget,
    devices_of,
)
from llava_lab.report.formats import FORMATS, show


def main(arguments: Sequence[str]) -> None:
    """Print the plan of an experiment."""
    with one_message():
        options, layers = split(_parser(), arguments)
        quiet()
        from llava_lab.report.plan import plan

        experiment = read_experiment(layers)
        devices, nodes = devices_of(experiment.config)
        budget = Budget(
            options.image_size,
            options.frames,
            dict(options.text_tokens),
            options.devices or devices,
            options.nodes or nodes,
            options.memory,
            options.utilization,
        )
        trace = options.trace if options.trace is None else options.trace or SIZES
        show(plan(experiment, budget, trace), options.format)


def _parser() -> argparse.ArgumentParser:
    parser = experiment_parser("plan", "Say what an experiment would build and cost.")
    add_flag(
        parser,
        "--image-size",
        type=_size,
        default="640x480",
        metavar="WxH",
        help="size in pixels of the picture, or of the video's frames, that a row shows",
    )
    parser.add_argument(
        "--frames", type=positive, metavar="N", help="a row shows a video of so many frames"
    )
    parser.add_argument(
        "--trace",
        type=_size,
        nargs="*",
        metavar="WxH",
        help="follow pictures of these sizes, by default of the usual ones",
    )
    add_flag(
        parser,
        "--text-tokens",
        type=_text_tokens,
        nargs="+",
        default=[],
        metavar="[STAGE=]N",
        help=f"text tokens of a row, of a stage or of all; {TEXT_TOKENS} by default",
    )
    parser.add_argument(
        "--utilization",
        type=float,
        default=UTILIZATION,
        help="share of a device's peak that training reaches",
    )
    devices = (
        "devices, on all nodes; by default the experiment's trainer.devices times its "
        f"trainer.num_nodes, or {DEVICES} a node where it takes the devices that it finds; fewer "
        "where a batch has fewer rows"
    )
    parser.add_argument("--devices", type=positive, metavar="N", help=devices)
    nodes = "nodes that they stand in; by default the experiment's trainer.num_nodes"
    parser.add_argument("--nodes", type=positive, metavar="N", help=nodes)
    parser.add_argument("--memory", type=positive, default=MEMORY, help="GiB of a device")
    parser.add_argument("--format", choices=FORMATS, default="rich", help="of the tables")
    return parser


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or "0" in found.groups():
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size; write width x height, such as 640x480"
        )
    return int(found[1]), int(found[2])


def _text_tokens(text: str) -> tuple[str, int]:
    """A stage, or "" for all, and its text tokens."""
    stage, _, number = text.rpartition("=")
    if not number.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither N nor STAGE=N")
    return stage, int(number)
