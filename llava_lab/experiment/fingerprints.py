"""Fingerprints: all that decides a stage or the answers to a benchmark -> a key to find it by."""

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from llava_lab.core.fingerprint import fingerprint, without
from llava_lab.core.tensors import digest
from llava_lab.evaluate.benchmark import BenchmarkDataModule
from llava_lab.train.stage import Stage
from llava_lab.train.trainer import deciding


def stage_fingerprints(
    options: Namespace, model: Any, stages: Mapping[str, Stage], trainer: Any
) -> dict[str, str]:
    """Fingerprint of every stage: the one before it, its options, its data and its trainer.

    Args:
        options: The experiment's options, checked, in the long form.
        model: The model, before any stage has trained it.
        stages: The stages, their data read.
        trainer: A trainer that knows the devices.
    """
    weights, given = model.state_dict(), options.model.init_args
    # Stages whose views have no newlines are the same with a newline and without.
    newline = {key: weights.pop(key) for key in list(weights) if key.startswith("newline.")}
    parts = [[given.get(name), part] for name, part in model.named_children() if name != "newline"]
    found: dict[str, str] = {}
    last = fingerprint(digest(weights), type(model), parts, options.seed_everything)
    # What a model of the user's own takes beside its parts; the weights count by what they are.
    known = {"connector_weights", "newline", *(name for name, _ in model.named_children())}
    kwargs = options.model.get("dict_kwargs") or {}
    more = {**vars(given), **(kwargs if isinstance(kwargs, dict) else vars(kwargs))}
    if own := {name: value for name, value in more.items() if name not in known}:
        last = fingerprint(last, {"class_path": options.model.class_path, "init_args": own})
    for name, stage in stages.items():
        own = options.stages[name]
        arguments = {key: value for key, value in vars(own.init_args).items() if key != "data"}
        own_trainer = arguments.pop("trainer") or {}
        training = [{"class_path": own.class_path, "init_args": arguments}, stage.loss]
        data = [own.init_args.data, stage.data.chat(model), stage.data.content()]
        acting = deciding({**options.trainer.as_dict(), **own_trainer})
        if stage.data.views.newline:
            last += digest(newline)
        split = stage.deciding_split(trainer)
        # Stored features are computed in float32, and others by the trainer's precision.
        exact = acting.get("precision", "32-true") == "32-true" and "plugins" not in acting
        stored = getattr(stage.data, "feature_store", None) is not None and not exact
        more = ["features stored"] * stored
        found[name] = last = fingerprint(last, training, split, data, acting, *more)
    return found


def benchmark_fingerprints(options: Namespace, benchmarks: BenchmarkDataModule) -> dict[str, str]:
    """Fingerprint of each benchmark: its questions, how they are asked, and how they are scored."""
    data = without(options.data.init_args.as_dict(), BenchmarkDataModule.idle)
    named = zip(benchmarks.benchmarks, data.pop("benchmarks"), strict=True)
    return {each.name: fingerprint(each.content(), config, data) for each, config in named}
