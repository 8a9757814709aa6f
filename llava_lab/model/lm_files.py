"""9. LM files: a name and changes -> configuration, tokenizer and whole weights, or a message."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from llava_lab.model.encoder.tower import first_line, refuse_depth
from llava_lab.model.weights import (
    check_values,
    few,
    locate,
    refuse_adapter,
    refuse_quantized,
)

CONFIG = "model.llm.config"
NUMBER = re.compile(r"\d+")


def lm_config(name: str | None, changes: dict[str, Any], pretrained: bool) -> Any:
    """Load or make the LM's configuration, and change values that it knows.

    Raises:
        ValueError: If it has no such values; or others, where `model_type` says that they are all.
    """
    if name is None or _whole(changes, pretrained):
        if "model_type" not in changes:
            raise ValueError(f"{CONFIG}: without a `name` it needs `model_type`")
        kind = changes.pop("model_type")
        _known(changes, made(kind, {}, CONFIG), kind)
        return made(kind, changes, CONFIG)
    config = download(AutoConfig, locate(name), "model.llm.name")
    if (kind := changes.get("model_type", config.model_type)) != config.model_type:
        raise ValueError(f"{CONFIG}: {name} is a {config.model_type}, not a {kind}")
    _known(changes, config, name)
    if "model_type" in changes:
        values = {key: value for key, value in changes.items() if key != "model_type"}
        _same(made(kind, values, CONFIG), config, changes)
        return config
    for key, value in changes.items():
        setattr(config, key, value)
    return config


def refuse_idle_name(
    name: str | None, tokenizer: str | None, changes: Mapping[str, Any], pretrained: bool
) -> None:
    """Refuse the name of an LM of which nothing is read.

    Raises:
        ValueError: Names what stands in its place, and how to take that LM.
    """
    if name is not None and tokenizer is not None and _whole(changes, pretrained):
        raise ValueError(
            f"model.llm.name: nothing of {name!r} is read: pretrained is false, and config and "
            "tokenizer say what the LM is. For that LM set model.llm to a file of configs/lm, "
            "such as model.llm=configs/lm/smollm2_135m.yaml, and model.llm.name behind it"
        )


def _whole(changes: Mapping[str, Any], pretrained: bool) -> bool:
    """Whether the changes are all that the LM is, so that no other configuration is read."""
    return not pretrained and "model_type" in changes


def made(kind: str, values: Mapping[str, Any], place: str) -> Any:
    """Make a configuration of transformers; any exception becomes one message."""
    try:
        for part in (values, values.get("text_config"), values.get("vision_config")):
            refuse_depth(part or {})
        return AutoConfig.for_model(kind, **values)
    except (
        Exception
    ) as error:  # which exception a wrong value raises depends on the code that reads it first
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{place}: no configuration of a {kind}: {reason}") from error


def _same(stated: Any, config: Any, keys: Iterable[str]) -> None:
    for key in keys:
        ours, own = getattr(stated, key), getattr(config, key)
        if ours != own:
            raise ValueError(
                f"{CONFIG}: {key} is {ours!r}, and {own!r} in {config.name_or_path}. With "
                "`model_type` the values say what the LM is: set model.llm.config to null, or "
                "leave model_type out to change the LM"
            )


def _known(changes: dict[str, Any], config: Any, owner: str) -> None:
    unknown = [key for key in changes if not hasattr(config, key)]
    if unknown:
        raise ValueError(f"{CONFIG}: {owner} has no {', '.join(map(repr, unknown))}")


def download(kind: Any, name: str, key: str, **options: Any) -> Any:
    """Call `from_pretrained`; any exception becomes one message, and no remote code is run."""
    if Path(name).is_dir():
        refuse_adapter(Path(name))
        refuse_quantized(Path(name))
    if kind is AutoModelForCausalLM:  # which would draw what is missing or of another shape
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        found = kind.from_pretrained(name, trust_remote_code=False, **options)
    except BaseException as error:  # a damaged file may raise anything; tokenizers panics
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        hint = "the folder is there but not complete" if Path(name).exists() else "no such folder"
        raise ValueError(
            f"{key}: cannot load {name!r} as {kind.__name__} ({hint}, and the hub gave nothing: "
            f"{first_line(error)}). Give a hub id that this machine can reach, or a local folder."
        ) from error
    if kind is AutoModelForCausalLM:
        found, report = found
        _check_whole(found, report, f"{key}: {name}")
        check_values(found.state_dict(), name)
    return found


def _check_whole(model: Any, report: Mapping[str, Any], place: str) -> None:
    """Refuse an LM of which tensors are not in its files, or whose files have more layers."""
    own = {NUMBER.sub("N", each) for each in model.state_dict()}
    shapes = [
        f"{each} (is {list(has)}, expected {list(wanted)})"
        for each, has, wanted in sorted(report["mismatched_keys"])
    ]
    faults = {
        "missing": sorted(report["missing_keys"]),
        "of another shape": shapes,
        "left over": [k for k in sorted(report["unexpected_keys"]) if NUMBER.sub("N", k) in own],
    }
    for what, names in faults.items():
        if names:
            raise ValueError(
                f"{place}: weights are {few(what, names)}; take a whole LM, or leave out what "
                "model.llm.config changes"
            )
