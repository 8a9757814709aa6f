"""0. Idle: options of a run that do nothing beside its others, each said in a line."""

from collections.abc import Iterator, Mapping
from typing import Any

from llava_lab.core.progress import say
from llava_lab.data.chat import TEMPLATES
from llava_lab.data.modules.image import ImageDataModule
from llava_lab.experiment.build import Parts
from llava_lab.experiment.compose import short
from llava_lab.train.idle import idle_lines, templates_of
from llava_lab.train.stage import Stage

# Positions of a picture that a stage with the first one has trained on.
COVERED = {"first_or_last": ("first_or_last", "first", "last")}


def say_idle(options: Any, parts: Parts, stages: Mapping[str, Stage]) -> None:
    """Say what a run's options do not do although they are set, a line each.

    Args:
        options: The experiment's options, checked.
        parts: What they build.
        stages: The stages that are to run.
    """
    for line in _lines(options, parts, stages):
        say(line)


def _lines(options: Any, parts: Parts, stages: Mapping[str, Stage]) -> Iterator[str]:
    yield from _weights(short(options.model.as_dict()))
    yield from _newlines(parts, stages)
    for stage in stages.values():
        yield from idle_lines(stage, parts.model)
    if parts.benchmarks.benchmarks and list(stages) == list(parts.stages) and stages:
        yield from _asked_otherwise(list(stages.values())[-1], parts)


def _weights(model: Mapping[str, Any]) -> Iterator[str]:
    """Parts with weights of a file, but for those of the package, which are no pretrained ones."""
    for name, part in model.items():
        known = part if isinstance(part, dict) and "pretrained" in part else {}
        file = known.get("weights")
        if file and (known["pretrained"] or not str(file).startswith("asset:")):
            yield (
                f"model.{name}: the weights are those of {file}, whatever pretrained says; for "
                f"random ones set model.{name}.weights=null model.{name}.pretrained=false"
            )


def _newlines(parts: Parts, stages: Mapping[str, Stage]) -> Iterator[str]:
    """A newline that no views end their rows with, and rates of one in stages without."""
    if parts.model.newline.weight is None:
        return
    without = {name: stage for name, stage in stages.items() if not _ends_rows(stage.data)}
    keys = [
        f"stages.{name}.lr.{key}"
        for name, stage in without.items()
        for key in stage.lr
        if key.split(".")[0] == "newline"
    ]
    if len(without) == len(stages) and not _ends_rows(parts.benchmarks):
        keys.insert(0, "model.newline")
    if keys:
        yield f"{' and '.join(keys)}: does nothing, as views there end no row with a newline"


def _ends_rows(data: Any) -> bool:
    return getattr(getattr(data, "views", None), "newline", False)


def _asked_otherwise(last: Stage, parts: Parts) -> Iterator[str]:
    """In what benchmarks are asked otherwise than the last stage trains."""
    asked, trained = parts.benchmarks, last.data
    if not isinstance(trained, ImageDataModule):
        return
    template, known = asked.template or parts.model.llm.template, templates_of(last, parts.model)
    if template in TEMPLATES and known and template not in [each.name for each in known]:
        yield (
            f"stage {last.name} trains with template {', '.join(each.name for each in known)}, "
            f"and benchmarks are asked with {template} (data.template)"
        )
    position, theirs = trained.image_position, asked.image_position
    alone = all(each.images_only for each in known)
    if not alone and theirs not in COVERED.get(position, (position,)):
        yield (
            f"stage {last.name} trains with image_position {position}, and benchmarks are asked "
            f"with {theirs} (data.image_position)"
        )
