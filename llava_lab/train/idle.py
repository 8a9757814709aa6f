"""10. Idle: options of a stage that do nothing beside its others -> refused, or said in a line.

Refused is what no file of the package sets; a line says what a scale or an experiment's file may be
the cause of, as where the tiny scale freezes an encoder that the recipe trains.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from llava_lab.data.chat import TEMPLATES, Template
from llava_lab.data.modules.image import ImageDataModule
from llava_lab.train.muon import has_matrices

if TYPE_CHECKING:
    from llava_lab.model.llava import Llava
    from llava_lab.train.stage import Stage


def templates_of(stage: "Stage", model: "Llava") -> list[Template]:
    """Templates that a stage's rows are written with; none where its data have no turns."""
    if not isinstance(stage.data, ImageDataModule):
        return []
    own = stage.data.template or model.llm.template
    names = dict.fromkeys(source.template or own for source in stage.data.sources)
    return [TEMPLATES[name] for name in names if name in TEMPLATES]


def refuse_idle(stage: "Stage", model: "Llava") -> None:
    """Refuse options of a stage that change nothing, before anything is spent.

    Raises:
        ValueError: Names the option, without `stages.NAME.` before it, and the way out.
    """
    templates = templates_of(stage, model)
    position = getattr(stage.data, "image_position", "first")
    moved = templates and position in ("last", "first_or_last")  # an experiment's file may keep it
    if moved and all(each.images_only for each in templates):
        raise ValueError(
            f"data.image_position: {position} does nothing beside template {templates[0].name}, "
            "which keeps of a question its images alone; leave it out, or take another template"
        )
    if stage.weight_decay and not _has_matrix(stage, model):
        raise ValueError(
            f"weight_decay: {stage.weight_decay} does nothing: no matrix trains, and vectors, such "
            "as norms and biases, are never decayed; leave it out"
        )
    if stage.lora is not None:
        _refuse_unadapted(stage, model, {f"{name}.weight" for name in stage.lora.layers(model)})


def _refuse_unadapted(stage: "Stage", model: nn.Module, adapted: set[str]) -> None:
    """Refuse a key of rates none of whose weights trains, itself or by an adapter."""
    selection = stage.selection
    for key, weights in selection.weights_by_key(model, stage.loss).items():
        names = [names for _, names in weights]
        if names and all(selection.adapts(*each) and adapted.isdisjoint(each) for each in names):
            raise ValueError(
                f"lr.{key} does nothing: none of its weights gets an adapter, and all else that "
                "lora.parts chooses is frozen; leave it out, or choose less in lora.parts, such as "
                "llm.layers, beside which these weights train themselves"
            )


def idle_lines(stage: "Stage", model: "Llava") -> Iterator[str]:
    """What a stage's options say and do not do, a line each."""
    yield from _idle_rates(stage, model)
    if stage.optimizer == "muon" and not has_matrices(stage, model):
        yield (
            f"stage {stage.name}: optimizer=muon does nothing: no matrix of a linear layer trains, "
            "and AdamW trains all else"
        )
    masking, templates = getattr(stage.data, "masking", "correct"), templates_of(stage, model)
    if masking != "correct" and templates and all(each.as_correct(masking) for each in templates):
        names = ", ".join(each.name for each in templates)
        yield (
            f"stage {stage.name}: data.masking={masking} does nothing: with template {names} it "
            "trains on what correct trains on"
        )


def _idle_rates(stage: "Stage", model: nn.Module) -> Iterator[str]:
    """Rates of weights that are frozen, all of them."""
    frozen = stage.selection.frozen
    for key, weights in stage.selection.weights_by_key(model, stage.loss).items():
        by = {frozen.of(*names) for _, names in weights}
        if not by or None in by:
            continue
        left = ", ".join(each for each in frozen.words if each not in by)
        yield (
            f"stage {stage.name}: lr.{key} does nothing: {' and '.join(sorted(map(str, by)))} is "
            f"frozen; stages.{stage.name}.frozen=[{left}] trains it"
        )


def _has_matrix(stage: "Stage", model: nn.Module) -> bool:
    """Whether a weight of two dimensions or more trains, or gets an adapter."""
    selection = stage.selection
    every = selection.weights_by_key(model, stage.loss).values()
    return any(w.ndim > 1 and selection.key(*names) for each in every for w, names in each)
