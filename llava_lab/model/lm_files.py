"""9. LM files: a name and changes -> configuration, tokenizer and whole weights, or a message."""

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


def lm_config(name: str | None, changes: dict[str, Any], pretrained: bool) -> Any:
    """Load or make the LM's configuration, and change values that it knows."""
    if name is None or (not pretrained and "model_type" in changes):
        if "model_type" not in changes:
            raise ValueError("model.llm.config: without a `name` it needs `model_type`")
        kind = changes.pop("model_type")
        _known(changes, _made(kind, {}), kind)
        return _made(kind, changes)
    config = download(AutoConfig, locate(name), "model.llm.name")
    if (kind := changes.pop("model_type", config.model_type)) != config.model_type:
        raise ValueError(f"model.llm.config: {name} is a {config.model_type}, not a {kind}")
    _known(changes, config, name)
    for key, value in changes.items():
        setattr(config, key, value)
    return config


def _made(kind: Any, values: dict[str, Any]) -> Any:
    """Make a configuration from values; any exception becomes one message."""
    try:
        refuse_depth(values)
        return AutoConfig.for_model(kind, **values)
    except (
        Exception
    ) as error:  # which exception a wrong value raises depends on the code that reads it first
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"model.llm.config: no configuration of a {kind}: {reason}") from error


def _known(changes: dict[str, Any], config: Any, owner: str) -> None:
    unknown = [key for key in changes if not hasattr(config, key)]
    if unknown:
        raise ValueError(f"model.llm.config: {owner} has no {', '.join(map(repr, unknown))}")


def download(kind: Any, name: str, key: str, **options: Any) -> Any:
    """Call `from_pretrained`; any exception becomes one message, and no remote code is run."""
    if Path(name).is_dir():
        refuse_adapter(Path(name))
        refuse_quantized(Path(name))
    if kind is AutoModelForCausalLM:  # which would draw what is missing at random
        options["output_loading_info"] = True
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
        if missing := sorted(report["missing_keys"]):
            raise ValueError(
                f"{key}: {name}: weights are {few('missing', missing)}; take a whole LM, or leave "
                "out what model.llm.config changes"
            )
        check_values(found.state_dict(), name)
    return found
