"""Plan: what an experiment would build and cost, from its YAML alone, before anything is spent.

Parts are built on the meta device: shapes without numbers, so that a 110B model takes seconds and
no weights, data or GPU are needed. Every figure stands with its formula.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from llava_lab.cli import LabCLI, run_cli
from llava_lab.data.image import Policy
from llava_lab.data.layout import Layout
from llava_lab.model.llava import PARTS, Llava
from llava_lab.report.grid import Grid
from llava_lab.report.table import show
from llava_lab.train.record import part_costs
from llava_lab.verbs import verb_parser

SIZES = (
    *("336x336", "300x200", "333x500", "500x375", "640x480", "480x640", "1024x683", "1920x1080"),
    *("1080x1920", "672x672", "2000x500", "500x2000"),
)
GIBI = 2**30
# Bytes a weight in mixed precision with AdamW: itself; its gradient and two moments if it trains.
FROZEN_BYTES, TRAINED_BYTES = 4, 16


class PlanCLI(LabCLI):
    """Builds an experiment's model from its configuration and tells what it would take."""

    trace: Sequence[str] | None = None
    text_tokens, devices = 256, 8

    def before_instantiate_classes(self) -> None:
        """Nothing is loaded, made or looked for on devices."""
        options = self.options
        options.model.connector_weights = None
        for part in (options.model.encoder, options.model.llm):
            part.init_args.pretrained = False
            part.init_args.weights = None
        trainer = options.trainer
        trainer.accelerator, trainer.devices, trainer.strategy = "cpu", 1, "auto"

    def instantiate_classes(self) -> None:
        """Build everything on the meta device."""
        with torch.device("meta"):
            super().instantiate_classes()

    def fit(self, model: Llava, **_: Any) -> None:
        """Print the plan."""
        steps = self.steps()
        rates = {name: step.recipe.rates for name, step in steps.items()}
        grids = [parts_grid(model, rates)]
        size = (self.trace or ["640x480"])[0]
        for name, step in steps.items():
            policy, batch = step.data.policy, step.data.batch_size
            layout = policy.layout(_size(size), model.encoder.vision)
            rows = [
                *stage_rows(model, layout, rates[name], self.text_tokens, batch),
                *memory_rows(model, rates[name], self.devices),
            ]
            title = f"Stage {name}; a row is {size} pixels and {self.text_tokens} text tokens"
            grids.append(Grid(title, ["what", "value", "formula"], rows))
        if self.trace is not None:
            grids.append(trace_grid(model, self.datamodule.policy, self.trace or SIZES))
        show(grids, "rich")


def parts_grid(model: Llava, steps: dict[str, dict[str, float]]) -> Grid:
    """Parts, their sizes and where they train."""
    rows = []
    for name in PARTS:
        if size := model.size(name):
            trains = [
                f"{stage} at {rates[name]:g}" for stage, rates in steps.items() if name in rates
            ]
            rows.append([name, f"{size:,}", ", ".join(trains) or "frozen"])
    rows.append(["all", f"{sum(model.size(name) for name in PARTS):,}", ""])
    return Grid("Parts", ["part", "parameters", "trains in"], rows)


def stage_rows(
    model: Llava, layout: Layout, rates: dict[str, float], text: int, batch: int
) -> Iterator[list[str]]:
    """Tokens and FLOPs of a row."""
    views, tokens = layout.views, layout.tokens
    patches = model.encoder.vision.grid[0] * model.encoder.vision.grid[1] * views
    yield ["views", f"{views}", "of the policy"]
    yield ["visual tokens", f"{tokens:,}", "of the layout, newlines included"]
    yield ["tokens of a step", f"{batch * (tokens + text):,}", f"{batch} rows x (visual + text)"]
    seen = {"encoder": patches, "connector": patches, "llm": tokens + text}
    total = 0
    for name, cost in part_costs(seen, rates).items():
        size, flops = model.size(name), cost * model.size(name)
        total += flops
        formula = f"{cost // seen[name]} x {size:,} x {seen[name]:,} tokens"
        yield [f"FLOPs, {name}", f"{flops:.3g}", formula]
    yield ["FLOPs of a row", f"{total:.3g}", "their sum; attention scores and recomputation apart"]


def memory_rows(model: Llava, rates: dict[str, float], devices: int) -> Iterator[list[str]]:
    """Weights, gradients and AdamW's moments on each device; activations apart."""
    trained = sum(model.size(name) for name in PARTS if name in rates)
    frozen = sum(model.size(name) for name in PARTS) - trained
    whole = TRAINED_BYTES * trained + FROZEN_BYTES * frozen
    formula = f"{TRAINED_BYTES} x {trained:,} trained + {FROZEN_BYTES} x {frozen:,} frozen bytes"
    yield ["GiB a device, DDP", f"{whole / GIBI:,.1f}", formula]
    yield [
        f"GiB a device, FSDP2 or ZeRO-3 on {devices}",
        f"{whole / devices / GIBI:,.1f}",
        f"the same over {devices} devices",
    ]


def trace_grid(model: Llava, policy: Policy, sizes: Sequence[str]) -> Grid:
    """What becomes of pictures of several sizes, leg by leg."""
    vision, rows = model.encoder.vision, []
    for name in sizes:
        layout = policy.layout(_size(name), vision)
        last = layout.blocks[-1]
        features = last.grid[0] * last.grid[1] + last.cls
        rows.append(
            [
                name,
                f"{last.tiles[1]}x{last.tiles[0]}",
                f"[{layout.views}, 3, {vision.image_size}, {vision.image_size}]",
                f"[{layout.views}, {features}, {model.encoder.width}]",
                f"{last.seen[0]}x{last.seen[1]}",
                str(layout.newlines),
                f"{layout.tokens:,}",
            ]
        )
    heads = ["picture", "tiles", "pixels", "features", "map seen", "newlines", "visual tokens"]
    return Grid(f"Trace: {type(policy).__name__}, width x height", heads, rows)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or "0" in found.groups():
        raise ValueError(f"{text!r} is no size; write width x height, such as 640x480")
    return int(found[1]), int(found[2])


def main(arguments: Sequence[str]) -> None:
    """`plan`: parts, tokens, FLOPs and memory of an experiment, without running it."""
    parser = verb_parser(
        "plan", "Say what an experiment would build and cost. Other options are those of fit."
    )
    parser.add_argument("--trace", nargs="*", metavar="WxH", help="follow pictures of these sizes")
    parser.add_argument("--text-tokens", type=int, default=256, help="text tokens of a row")
    parser.add_argument("--devices", type=int, default=8, help="devices that share the memory")
    options, more = parser.parse_known_args(arguments)
    PlanCLI.trace = options.trace
    PlanCLI.text_tokens, PlanCLI.devices = options.text_tokens, options.devices
    run_cli(PlanCLI, ["fit", *more])
