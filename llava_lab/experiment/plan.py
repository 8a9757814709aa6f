"""Plan: what an experiment would build and cost, from its YAML alone, before anything is spent.

Parts are built on the meta device: shapes without numbers, so that a 110B model takes seconds and
no weights, data or GPU are needed. Every figure stands with its formula.
"""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llava_lab.cli.fit import LabCLI, run_cli
from llava_lab.cli.verb import verb_parser
from llava_lab.data.geometry import Layout, ViewSpec
from llava_lab.data.modules.image import ImageDataModule, StageDataModule
from llava_lab.data.rows import choose, read_rows
from llava_lab.data.views.base import Views
from llava_lab.data.views.video import TEXT_TOKENS as VIDEO_TEXT
from llava_lab.data.views.video import Frames
from llava_lab.model.llava import PARTS, Llava
from llava_lab.report.grid import Grid
from llava_lab.report.table import PAPER, published_grids, show
from llava_lab.train.preference import PreferenceLoss
from llava_lab.train.record import part_costs
from llava_lab.train.stage import Stage
from llava_lab.train.steps import Step

SIZES = (
    *("336x336", "300x200", "333x500", "500x375", "640x480", "480x640", "1024x683", "1920x1080"),
    *("1080x1920", "672x672", "2000x500", "500x2000"),
)
FRAMES, STRIDES, LENGTHS = (4, 8, 16, 32, 56, 64), (1, 2, 3, 4, 6), (4096, 8192)
GIBI = 2**30
TEXT_TOKENS = 256
# Peak of dense bf16 products in FLOP/s (NVIDIA's data sheets), and the share of it that training
# reaches: that of LLaVA-1.5-7B's published first stage.
PEAKS = {"A100": 312e12, "H100": 989e12}
UTILIZATION = 0.3
# Rows of the published files, where a file itself is not at hand.
PUBLISHED_ROWS = {
    "LLaVA-CC3M-Pretrain-595K/chat.json": 595_375,
    "LLaVA-Pretrain/blip_laion_cc_sbu_558k.json": 558_128,
    "llava_instruct_150k.json": 157_712,
    "llava_v1_5_mix665k.json": 665_298,
    "LLaVA-NeXT-Data/llava_next_raw_format_processed.json": 779_289,
}
# Bytes a weight in mixed precision with AdamW: itself; its gradient and two moments if it trains.
FROZEN_BYTES, TRAINED_BYTES = 4, 16
# Bytes that a block computes for its backward pass, a token and unit of width, in 16-bit precision
# and without attention scores (Korthikanti et al. 2022, arXiv:2205.05198, equation 2 less its last
# term), and how many of them are kept by each way of `gradient_checkpointing`: all; its input and
# what attention and its products gave, but the narrowing ones; its input. The rest is there one
# block at a time.
BLOCK_BYTES = 34
KEPT_BYTES = {False: BLOCK_BYTES, "products": 20, True: 2}


class PlanCLI(LabCLI):
    """Builds an experiment's model from its configuration and tells what it would take."""

    trace: Sequence[str] | None = None
    text_tokens: Mapping[str, int] = {}
    devices, utilization = 8, UTILIZATION

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
        if unknown := sorted(self.text_tokens.keys() - steps.keys() - {""}):
            known = ", ".join(steps)
            raise ValueError(f"--text-tokens: no stage {unknown[0]!r}; stages are {known}")
        rates = {name: step.recipe.rates for name, step in steps.items()}
        grids = [parts_grid(model, rates)]
        size = (self.trace or ["640x480"])[0]
        for name, step in steps.items():
            step.data.check_views(model)
            layout = step.data.views.layout(_size(size), model.view_spec)
            text = self.text_tokens.get(name, self.text_tokens.get("", TEXT_TOKENS))
            kept = list(activations(model, layout, step, text, self.devices))
            rows = [
                *stage_rows(model, layout, step.recipe, text, step.data.batch_size),
                *hours_rows(model, layout, step, text, self.utilization),
                *memory_rows(model, step.recipe, kept, self.devices),
                *reference_rows(model, step.recipe),
            ]
            title = f"Stage {name}; a row is {size} pixels and {text} text tokens"
            grids.append(Grid(title, ["what", "value", "formula"], rows))
        self.datamodule.check_views(model)
        tables = published_grids(self.options.experiment, PAPER)
        grids += [grid for grid in tables if grid.title.endswith(": training compute")]
        if self.trace is not None:
            grids.append(trace_grid(model, self.datamodule.views, self.trace or SIZES))
        if isinstance(self.datamodule.views, Frames):
            grids.append(frames_grid(model, self.datamodule.views))
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
    model: Llava, layout: Layout, recipe: Stage, text: int, batch: int
) -> Iterator[list[str]]:
    """Tokens and FLOPs of a row."""
    views, tokens = layout.views, layout.tokens
    yield ["views", f"{views}", "of the views"]
    yield ["visual tokens", f"{tokens:,}", "of the layout, newlines included"]
    yield ["tokens of a step", f"{batch * (tokens + text):,}", f"{batch} rows x (visual + text)"]
    seen = tokens_seen(model, layout, text)
    for name, cost in part_costs(seen, recipe.rates, recipe.lora is not None).items():
        size = model.size(name)
        formula = f"{cost // seen[name]} x {size:,} x {seen[name]:,} tokens"
        yield [f"FLOPs, {name}", f"{cost * size:.3g}", formula]
    total = row_flops(model, layout, recipe, text)
    yield ["FLOPs of a row", f"{total:.3g}", "their sum; attention scores and recomputation apart"]


def tokens_seen(model: Llava, layout: Layout, text: int) -> dict[str, int]:
    """Tokens of a row that each part sees."""
    llm = layout.tokens + text
    return {"encoder": layout.encoded, "connector": layout.connected, "llm": llm}


def row_flops(model: Llava, layout: Layout, recipe: Stage, text: int) -> int:
    """FLOPs of training on a row, forward and backward."""
    seen = tokens_seen(model, layout, text)
    costs = part_costs(seen, recipe.rates, recipe.lora is not None)
    return sum(cost * model.size(name) for name, cost in costs.items())


def hours_rows(
    model: Llava, layout: Layout, step: Step, text: int, utilization: float
) -> Iterator[list[str]]:
    """Hours of one device that the whole stage takes, all its rows being like this one."""
    rows, formula = samples(step.data)
    if rows is None:
        yield ["samples", "unknown", formula]
        return
    yield ["samples", f"{rows:,}", formula]
    flops = row_flops(model, layout, step.recipe, text) * rows
    for device, peak in PEAKS.items():
        formula = f"FLOPs of a row x samples / ({peak / 1e12:.0f} TFLOP/s x {utilization:g})"
        yield [f"{device}-hours", f"{flops / (peak * utilization) / 3600:,.1f}", formula]


def samples(data: StageDataModule) -> tuple[int | None, str]:
    """Rows that a stage trains on, and how the number was come by; None where a file is unknown."""
    if not isinstance(data, ImageDataModule):
        return None, "of another kind of file"
    rows, known = 0, []
    for source in data.sources:
        path = Path(source.path)
        published = PUBLISHED_ROWS.get(f"{path.parent.name}/{path.name}")
        published = published or PUBLISHED_ROWS.get(path.name)
        if path.is_file():
            rows += len(choose(read_rows(path), source.sampling, "", path))
        elif published is None or source.sampling != "all":
            return None, f"{path} is not here"
        else:
            rows += published
            known.append(f"{path.name} as published")
    formula = "; ".join([f"{rows:,} rows x {data.epochs} epoch{'s'[: data.epochs > 1]}", *known])
    if data.max_steps and data.max_steps * data.batch_size < rows * data.epochs:
        return data.max_steps * data.batch_size, f"{data.max_steps} steps x {data.batch_size}"
    return rows * data.epochs, formula


def activations(
    model: Llava, layout: Layout, step: Step, text: int, devices: int
) -> Iterator[tuple[str, int, str]]:
    """Parts, bytes that their blocks keep for the backward pass, formulas; of a micro-batch."""
    rows = step.data.micro_batch_size or max(1, step.data.batch_size // devices)
    tokens, config = tokens_seen(model, layout, text), model.llm.model.config
    sizes = {"llm": (config.hidden_size, config.num_hidden_layers)}
    if "encoder" in step.recipe.rates:
        width = model.encoder.width
        sizes["encoder"] = (width, round(model.size("encoder") / (12 * width**2)))
    for part, (width, blocks) in sizes.items():
        kept = KEPT_BYTES[step.recipe.gradient_checkpointing if part == "llm" else False]
        size = rows * tokens[part] * width * (kept * blocks + BLOCK_BYTES - kept)
        bytes_ = f"({kept} x {blocks} blocks + {BLOCK_BYTES - kept})"
        formula = f"{rows} rows at once x {tokens[part]:,} tokens x {width:,} x {bytes_}"
        yield part, size, formula


def memory_rows(
    model: Llava,
    recipe: Stage,
    kept: Sequence[tuple[str, int, str]],
    devices: int,
) -> Iterator[list[str]]:
    """Weights, gradients, AdamW's moments and activations on each device."""
    trained = recipe.size(model)
    adapters = recipe.lora.size(model.llm) if recipe.lora else 0
    frozen = sum(model.size(name) for name in PARTS) + adapters - trained
    states = TRAINED_BYTES * trained + FROZEN_BYTES * frozen
    active = sum(size for _, size, _ in kept)
    formula = f"{TRAINED_BYTES} x {trained:,} trained + {FROZEN_BYTES} x {frozen:,} frozen bytes"
    yield ["GiB of states", f"{states / GIBI:,.1f}", formula]
    for part, size, formula in kept:
        yield [f"GiB of activations, {part}", f"{size / GIBI:,.1f}", formula]
    formula = "states + activations; attention scores and logits apart"
    yield ["GiB a device, DDP", f"{(states + active) / GIBI:,.1f}", formula]
    value, formula = states / devices + active, f"states over {devices} devices + activations"
    yield [f"GiB a device, FSDP2 or ZeRO-3 on {devices}", f"{value / GIBI:,.1f}", formula]


def reference_rows(model: Llava, recipe: Stage) -> Iterator[list[str]]:
    """What a preference stage would take more with its reference in memory."""
    if isinstance(recipe.loss, PreferenceLoss):
        whole = 0 if recipe.lora else sum(model.size(n) for n in PARTS if n in recipe.rates)
        formula = f"{FROZEN_BYTES} x {whole:,} bytes of parts that train; here its numbers are kept"
        more = f"{FROZEN_BYTES * whole / GIBI:,.1f}"
        yield ["GiB more with a reference in memory", more, formula]


def trace_grid(model: Llava, views: Views, sizes: Sequence[str]) -> Grid:
    """What becomes of pictures of several sizes, leg by leg."""
    view_spec, rows = model.view_spec, []
    for name in sizes:
        layout = views.layout(_size(name), view_spec)
        last = layout.blocks[-1]
        features = layout.encoded // layout.views
        rows.append(
            [
                name,
                f"{last.tiles[1]}x{last.tiles[0]}",
                f"[{layout.views}, 3, {view_spec.image_size}, {view_spec.image_size}]",
                f"[{layout.views}, {features}, {model.encoder.width}]",
                f"{last.seen[0]}x{last.seen[1]}",
                str(layout.newlines),
                f"{layout.tokens:,}",
            ]
        )
    heads = ["picture", "tiles", "pixels", "features", "map seen", "newlines", "visual tokens"]
    return Grid(f"Trace: {type(views).__name__}, width x height", heads, rows)


def frames_grid(model: Llava, views: Frames) -> Grid:
    """Visual tokens of a video by frames and pooling stride, and how many frames an LM can read."""
    view_spec = model.view_spec
    choices = [
        views.with_numbers(views.frames, stride)
        for stride in STRIDES
        if stride <= min(view_spec.grid)
    ]
    choices = [each for each in choices if _fits(each, view_spec)]
    rows = [[str(n), *(f"{each.tokens(n, view_spec):,}" for each in choices)] for n in FRAMES]
    for length in LENGTHS:
        most = [str(each.most_frames(view_spec, length)) for each in choices]
        rows.append([f"most in {length:,}", *most])
    heads = ["frames", *(f"stride {each.stride}" for each in choices)]
    return Grid(
        f"Visual tokens of a video; text takes {VIDEO_TEXT} of the LM's length", heads, rows
    )


def _fits(views: Frames, view_spec: ViewSpec) -> bool:
    """Whether pool and connector can take a frame's features."""
    try:
        views.tokens(1, view_spec)
    except ValueError:
        return False
    return True


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or "0" in found.groups():
        raise ValueError(f"{text!r} is no size; write width x height, such as 640x480")
    return int(found[1]), int(found[2])


def _text_tokens(text: str) -> tuple[str, int]:
    """A stage, or "" for all, and its text tokens."""
    stage, _, number = text.rpartition("=")
    if not number.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither N nor STAGE=N")
    return stage, int(number)


def main(arguments: Sequence[str]) -> None:
    """`plan`: parts, tokens, FLOPs and memory of an experiment, without running it."""
    parser = verb_parser(
        "plan", "Say what an experiment would build and cost. Other options are those of fit."
    )
    parser.add_argument("--trace", nargs="*", metavar="WxH", help="follow pictures of these sizes")
    words = f"text tokens of a row, of a stage or of all; {TEXT_TOKENS} by default"
    parser.add_argument(
        "--text-tokens", type=_text_tokens, nargs="+", default=[], metavar="[STAGE=]N", help=words
    )
    reached = "share of a device's peak that training reaches"
    parser.add_argument("--utilization", type=float, default=UTILIZATION, help=reached)
    parser.add_argument("--devices", type=int, default=8, help="devices that share the memory")
    options, more = parser.parse_known_args(arguments)
    PlanCLI.trace = options.trace
    PlanCLI.text_tokens = dict(options.text_tokens)
    PlanCLI.devices, PlanCLI.utilization = options.devices, options.utilization
    run_cli(PlanCLI, ["fit", *more])
