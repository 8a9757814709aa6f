"""Plan: what an experiment would build and cost, from its YAML alone, before anything is spent.

Parts are built on the meta device: shapes without numbers, so that a 110B model takes seconds and
no weights, data or GPU are needed. Every figure stands with its formula.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llava_lab.data.geometry import Layout, ViewSpec
from llava_lab.data.views.base import Views
from llava_lab.data.views.video import TEXT_TOKENS as VIDEO_TEXT
from llava_lab.data.views.video import Frames
from llava_lab.experiment.experiment import Experiment
from llava_lab.model.llava import Llava
from llava_lab.report.budget import Budget
from llava_lab.report.grid import Grid, figure
from llava_lab.report.paper_table import compute_grids
from llava_lab.report.plan_costs import hours_rows, stage_rows, tokens_seen
from llava_lab.report.plan_memory import memory_rows, reference_rows
from llava_lab.train.parts import parts_of
from llava_lab.train.stage import Stage

FRAMES, STRIDES, LENGTHS = (4, 8, 16, 32, 56, 64), (1, 2, 3, 4, 6), (4096, 8192)


def unloaded(experiment: Experiment) -> Experiment:
    """The same experiment with random weights, on one CPU: nothing is loaded or looked for."""
    options: dict[str, Any] = {
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.strategy": "auto",
    }
    for name, part in experiment.config["model"].items():
        known = part if isinstance(part, dict) else {}
        given = {"pretrained": False, "weights": None}
        options |= {f"model.{name}.{key}": given[key] for key in given if key in known}
        states = known.get("tokenizer") and "model_type" in (known.get("config") or {})
        if known.get("pretrained") and states:  # beside which no random LM has a name
            options[f"model.{name}.name"] = None
    if isinstance(experiment.config["model"].get("newline"), str):
        options["model.newline"] = True
    return experiment.changed({**options, "model.connector_weights": None})


def plan(
    experiment: Experiment, budget: Budget, trace: Sequence[tuple[int, int]] | None = None
) -> list[Grid]:
    """What an experiment would build and cost, as tables.

    Args:
        experiment: The experiment.
        budget: What is assumed of rows and devices.
        trace: Sizes of pictures that are followed leg by leg, or None.

    Raises:
        ValueError: If views do not fit the model, or a row does not hold so many frames.
    """
    with torch.device("meta"):
        model, stages, benchmarks, _ = unloaded(experiment).build()
    if unknown := sorted(budget.text_tokens.keys() - stages.keys() - {""}):
        known = ", ".join(stages)
        raise ValueError(f"--text-tokens: no stage {unknown[0]!r}; stages are {known}")
    grids = [parts_grid(model, {name: stage.lr for name, stage in stages.items()})]
    precision = experiment.config["trainer"].get("precision")
    grids += [stage_grid(model, stage, budget, precision) for stage in stages.values()]
    benchmarks.check_views(model)
    grids += compute_grids(experiment.name)
    if trace is not None:
        grids.append(trace_grid(model, benchmarks.views, trace))
    if isinstance(benchmarks.views, Frames):
        grids.append(frames_grid(model, benchmarks.views))
    return grids


def stage_grid(model: Llava, stage: Stage, budget: Budget, precision: Any) -> Grid:
    """Tokens, FLOPs, hours and memory of a stage."""
    stage.check_keys(model)
    stage.data.check_views(model)
    size, text = budget.size(stage.data.views), budget.text(stage.name)
    layout = stage.data.views.layout(size, model.view_spec)
    check_length(model, stage, layout, text, budget)
    rows = [
        *stage_rows(model, layout, stage, text),
        *hours_rows(model, layout, stage, text, budget.utilization),
        *memory_rows(model, stage, tokens_seen(model, layout, text), budget, precision),
        *reference_rows(model, stage, precision),
    ]
    shown = "x".join(map(str, size[:2])) + " pixels"
    shown = f"{size[2]} frames of {shown}" if len(size) == 3 else shown
    title = f"Stage {stage.name}; a row is {shown} and {text} text tokens"
    return Grid(
        title, ["what", "value", "formula"], rows, about={"table": "plan", "stage": stage.name}
    )


def check_length(model: Llava, stage: Stage, layout: Layout, text: int, budget: Budget) -> None:
    """Refuse a video of more frames than a row of the stage holds; say how many it does.

    Raises:
        ValueError: With both numbers.
    """
    views, length = stage.data.views, model.llm.length(getattr(stage.data, "max_length", None))
    if budget.frames is None or not isinstance(views, Frames) or layout.tokens + text <= length:
        return
    most = views.most_frames(model.view_spec, length, text)
    raise ValueError(
        f"stages.{stage.name}: {budget.frames} frames are {layout.tokens:,} visual tokens; with "
        f"{text} of text {layout.tokens + text:,}, and a row has {length:,}. At most {most} fit"
    )


def parts_grid(model: Llava, stages: Mapping[str, Mapping[str, float]]) -> Grid:
    """Parts, their sizes and where they train."""
    rows = []
    for name in parts_of(model):
        if size := model.size(name):
            trains = [
                f"{stage}{'' if key == name else f', {key}'} at {rate:g}"
                for stage, rates in stages.items()
                for key, rate in rates.items()
                if key.split(".")[0] == name
            ]
            rows.append([name, figure(size), ", ".join(trains) or "frozen"])
    rows.append(["all", figure(sum(map(model.size, parts_of(model)))), ""])
    about = {"table": "parts"}
    return Grid("Parts", ["part", "parameters", "trains in"], rows, about=about)


def trace_grid(model: Llava, views: Views, sizes: Sequence[tuple[int, int]]) -> Grid:
    """What becomes of pictures of several sizes, leg by leg."""
    view_spec, rows = model.view_spec, []
    for size in sizes:
        layout = views.layout(size, view_spec)
        last = layout.blocks[-1]
        features = layout.encoded // layout.views
        rows.append(
            [
                f"{size[0]}x{size[1]}",
                f"{last.tiles[1]}x{last.tiles[0]}",
                f"[{layout.views}, 3, {view_spec.image_size}, {view_spec.image_size}]",
                f"[{layout.views}, {features}, {model.encoder.width}]",
                f"{last.seen[0]}x{last.seen[1]}",
                figure(layout.newlines),
                figure(layout.tokens),
            ]
        )
    heads = ["picture", "tiles", "pixels", "features", "map seen", "newlines", "visual tokens"]
    title = f"Trace: {type(views).__name__}, width x height"
    return Grid(title, heads, rows, about={"table": "trace"})


def frames_grid(model: Llava, views: Frames) -> Grid:
    """Visual tokens of a video by frames and pooling stride, and how many frames an LM can read."""
    view_spec = model.view_spec
    choices = [
        views.with_numbers(views.frames, stride)
        for stride in STRIDES
        if stride <= min(view_spec.grid)
    ]
    choices = [each for each in choices if _fits(each, view_spec)]
    rows = [[str(n), *(figure(each.tokens(n, view_spec)) for each in choices)] for n in FRAMES]
    for length in LENGTHS:
        most = [figure(each.most_frames(view_spec, length)) for each in choices]
        rows.append([f"most in {length:,}", *most])
    heads = ["frames", *(f"stride {each.stride}" for each in choices)]
    title = f"Visual tokens of a video; text takes {VIDEO_TEXT} of the LM's length"
    return Grid(title, heads, rows, about={"table": "frames"})


def _fits(views: Frames, view_spec: ViewSpec) -> bool:
    """Whether pool and connector can take a frame's features."""
    try:
        views.tokens(1, view_spec)
    except ValueError:
        return False
    return True
