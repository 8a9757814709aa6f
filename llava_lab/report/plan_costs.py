"""Plan costs: tokens, FLOPs and hours of a stage, each figure with its formula."""

from collections.abc import Iterator
from pathlib import Path

from llava_lab.data.geometry import Layout
from llava_lab.data.mix import weighted
from llava_lab.data.modules.image import ImageDataModule
from llava_lab.data.modules.stage import StageDataModule
from llava_lab.data.rows import choose
from llava_lab.model.llava import Llava
from llava_lab.report.grid import Figure, figure
from llava_lab.report.plan_memory import Row
from llava_lab.train.record import part_costs
from llava_lab.train.stage import Stage

# Peak of dense bf16 products in FLOP/s (NVIDIA's data sheets).
PEAKS = {"A100": 312e12, "H100": 989e12}
# Rows of the published files, where a file itself is not at hand.
PUBLISHED_ROWS = {
    "LLaVA-CC3M-Pretrain-595K/chat.json": 595_375,
    "LLaVA-Pretrain/blip_laion_cc_sbu_558k.json": 558_128,
    "llava_instruct_150k.json": 157_712,
    "llava_v1_5_mix665k.json": 665_298,
    "llava_next_raw_format/llava_next_raw_format_processed.json": 738_590,
    "LLaVA-NeXT-Data": 779_289,
}


def stage_rows(model: Llava, layout: Layout, stage: Stage, text: int) -> Iterator[Row]:
    """Tokens and FLOPs of a row."""
    views, tokens, batch = layout.views, layout.tokens, stage.data.batch_size
    yield ["views", figure(views), "of the views"]
    yield ["visual tokens", figure(tokens), "of the layout, newlines included"]
    yield ["tokens of a step", figure(batch * (tokens + text)), f"{batch} rows x (visual + text)"]
    seen = tokens_seen(model, layout, text)
    for name, cost in part_costs(model, stage.selection, seen).items():
        size = model.size(name)
        formula = f"{cost / (seen[name] * size):.3g} x {size:,} x {seen[name]:,} tokens"
        yield [f"FLOPs, {name}", figure(round(cost), ".3g"), formula]
    total = row_flops(model, layout, stage, text)
    yield [
        "FLOPs of a row",
        figure(total, ".3g"),
        "their sum; attention scores and recomputation apart",
    ]


def tokens_seen(model: Llava, layout: Layout, text: int) -> dict[str, int]:
    """Tokens of a row that each part sees."""
    llm = layout.tokens + text
    return {"encoder": layout.encoded, "connector": layout.connected, "llm": llm}


def row_flops(model: Llava, layout: Layout, stage: Stage, text: int) -> int:
    """FLOPs of training on a row, forward and backward."""
    seen = tokens_seen(model, layout, text)
    return round(sum(part_costs(model, stage.selection, seen).values()))


def hours_rows(
    model: Llava, layout: Layout, stage: Stage, text: int, utilization: float
) -> Iterator[Row]:
    """Hours of one device that the whole stage takes, all its rows being like this one."""
    rows, formula = samples(stage.data)
    if rows is None:
        yield ["samples", Figure("unknown", None), formula]
        return
    yield ["samples", figure(rows), formula]
    flops = row_flops(model, layout, stage, text) * rows
    for device, peak in PEAKS.items():
        formula = f"FLOPs of a row x samples / ({peak / 1e12:.0f} TFLOP/s x {utilization:g})"
        yield [f"{device}-hours", figure(flops / (peak * utilization) / 3600, ",.1f"), formula]


def samples(data: StageDataModule) -> tuple[int | None, str]:
    """Rows that a stage trains on, and how the number was come by; None where a file is unknown."""
    if not isinstance(data, ImageDataModule):
        return None, "of another kind of file"
    rows, known = 0, []
    for source in data.sources:
        path = Path(source.path)
        published = PUBLISHED_ROWS.get(f"{path.parent.name}/{path.name}")
        published = published or PUBLISHED_ROWS.get(path.name)
        if path.exists():
            count = len(choose(source.rows(), source.sampling, "", path))
        elif published is None or source.sampling != "all":
            return None, f"{path} is not here"
        else:
            count = published
            known.append(f"{path.name} as published")
        rows += weighted(count, source.weight)
    counted = f"{rows:,} rows"
    if data.held_share:  # by pictures, so that the number is known when rows are read
        rows = round(rows * (1 - data.held_share))
        counted = f"about {rows:,} of {counted} ({data.held_share:.3g} held out)"
    formula = "; ".join([f"{counted} x {data.epochs} epoch{'s'[: data.epochs > 1]}", *known])
    if data.max_steps and data.max_steps * data.batch_size < rows * data.epochs:
        return data.max_steps * data.batch_size, f"{data.max_steps} steps x {data.batch_size}"
    return rows * data.epochs, formula
