"""10. Split: an optimizer step on several devices, in several micro-batches, or refused."""

from typing import TYPE_CHECKING, Any

from torch import nn

from llava_lab.core.progress import say
from llava_lab.train.parts import parts_of
from llava_lab.train.sharded import Sharded

if TYPE_CHECKING:
    from llava_lab.train.stage import Stage


def check_split(stage: "Stage", model: nn.Module, trainer: Any) -> None:
    """Refuse to split a step where its loss would depend on how, before anything is spent.

    Args:
        stage: The stage.
        model: The model.
        trainer: Whose devices share a step.

    Raises:
        ValueError: Names the option, and what to set instead.
    """
    data, world, place = stage.data, trainer.world_size, f"stages.{stage.data.name}"
    if isinstance(trainer.strategy, Sharded):
        trainer.strategy.check(stage.name, stage.lora.quantize if stage.lora else None)
        for name in stage.idle:
            if getattr(stage, name) is not None:
                raise ValueError(
                    f"{place}.{name}: no device has the whole model while trainer.strategy shares "
                    "its weights out; leave it out, or set trainer.strategy=ddp"
                )
    micro = data.accumulate(world) * world
    if stage.normalization == "micro_batch" and data.batch_size % micro:
        raise ValueError(
            f"{place}: batch_size {data.batch_size} is not a multiple of the "
            f"{micro} micro-batches of a step, so that rows would not count alike under "
            "normalization=micro_batch; change batch_size or micro_batch_size, or set "
            "normalization to step"
        )
    if stage.normalization == "micro_batch" and micro == 1 and stage.loss.rows_apart:
        _whole_step(stage)
    if stage.normalization != "step" or micro == 1:
        return
    if not stage.loss.rows_apart:
        raise ValueError(
            f"{place}: {type(stage.loss).__name__} compares the rows of a step with "
            f"one another, and this step is split into {micro} micro-batches ({world} "
            "devices); train on one device with micro_batch_size=null, or set "
            "normalization=micro_batch, where each is compared within itself"
        )
    # Devices may share the statistics of batch norm (`sync_batchnorm`), micro-batches not.
    synced = getattr(trainer.strategy, "_layer_sync", None) is not None and micro == world
    if not synced and (name := _batch_norm(stage, model)) is not None:
        raise ValueError(
            f"{place}: the {name} has batch norm, whose statistics are those of "
            f"a micro-batch, and this step is split into {micro} ({world} devices); train "
            "on one device with micro_batch_size=null, or on GPUs with it and "
            "trainer.sync_batchnorm=true, or set normalization=micro_batch"
        )


def _whole_step(stage: "Stage") -> None:
    """Refuse to normalise micro-batches of steps that nothing splits; say so of a size given."""
    key = f"stages.{stage.name}.data.micro_batch_size"
    if stage.data.micro_batch_size is None:
        raise ValueError(
            f"stages.{stage.name}.normalization: micro_batch is what step is while a step is one "
            f"micro-batch, as here; set {key} below batch_size, or leave it out"
        )
    say(
        f"stage {stage.name}: normalization=micro_batch does nothing: {key} is the whole step's, "
        f"{stage.data.batch_size}"
    )


def _batch_norm(stage: "Stage", model: nn.Module) -> str | None:
    """The part with a batch norm that would train, if there is one."""
    for part, module in parts_of(model).items():
        for name, layer in module.named_modules(prefix=part):
            kind = isinstance(layer, nn.modules.batchnorm._BatchNorm)
            if kind and stage.selection.trains(f"{name}.weight"):
                return part
    return None
