"""Released: a released checkpoint -> a folder of our parts, and the YAML that names them.

Layouts: transformers' `Llava` classes, and the original of haotian-liu/LLaVA with its projector
files. The folder holds `model.yaml`, one .safetensors file a part, and the tokenizer.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, equal
from transformers import AutoTokenizer

from llava_lab.convert import templates
from llava_lab.convert.config import require
from llava_lab.convert.files import find, read_json, read_tensors
from llava_lab.convert.hub import hub_parts
from llava_lab.convert.load import MODEL, load_model
from llava_lab.convert.names import our_names
from llava_lab.convert.original import original_parts
from llava_lab.core.atomic import new_folder
from llava_lab.core.yaml_file import to_yaml
from llava_lab.data.chat import get_template
from llava_lab.experiment.compose import EXTENDS
from llava_lab.model.encoder.tower import first_line

# Parts -> prefix of the names of their tensors in our model.
PREFIXES = {
    "encoder": "encoder.",
    "connector": "connector.",
    "llm": "llm.model.",
    "newline": "newline.",
}
# Types of keys of a tokenizer's files for which its classes do not check the type.
TOKENIZER_TYPES: dict[str, type | tuple[type, ...]] = {
    "add_bos_token": bool,
    "add_eos_token": bool,
    "added_tokens_decoder": dict,
    "bos_token": (str, dict),
    "eos_token": (str, dict),
    "model_max_length": (int, float),
    "pad_token": (str, dict),
    "padding_side": str,
    "tokenizer_class": str,
    "unk_token": (str, dict),
}


@dataclass
class Released:
    """A checkpoint, converted to our names and parts.

    Attributes:
        tensors: Tensors under the names of our model.
        parts: `class_path` and `init_args` of encoder, connector, llm and views; `newline`.
    """

    tensors: dict[str, Tensor]
    parts: dict[str, Any]


def import_checkpoint(source: str, out: Path, template: str | None = None) -> Path:
    """Import a released checkpoint into a folder that experiments name; returns its model.yaml.

    Args:
        source: Folder or hub id.
        out: Folder to make.
        template: Chat template; null takes the one that writes the same as the checkpoint's own.

    Raises:
        ValueError: If a tensor is missing, left over or of another shape, or our parts cannot
            express the model; nothing is written then.
    """
    with new_folder(out) as draft:
        folder = find(source)
        released = read_released(folder, template)
        _write_parts(released, folder, draft)
        released.tensors.clear()
        _write_yaml(released, draft, draft, source)
        load_model(draft)  # refuses tensors that are missing, left over or of another shape
        _write_yaml(released, draft, out.absolute(), source)
    return out / MODEL


def read_released(folder: Path, template: str | None = None) -> Released:
    """Read a checkpoint of any known layout."""
    path = folder / "config.json"
    config = read_json(path)
    template = _template(folder, template)  # before anything slow
    found = read_tensors(folder)
    names = our_names(found, str(folder))
    tensors = {ours: found[name] for name, ours in names.items()}
    if "text_config" in config:
        parts = hub_parts(path, config)
    elif "mm_projector_type" in config or "mm_vision_tower" in config:
        parts = original_parts(path, config, tensors)
    else:
        raise ValueError(f"{path}: no LLaVA of a known layout")
    _refuse_untied(parts, tensors, path)
    parts["llm"]["init_args"]["template"] = template
    return Released(tensors, parts)


def _refuse_untied(parts: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> None:
    """Refuse different input and output embeddings if the configuration ties them."""
    first, last = (f"llm.model.{end}.weight" for end in ("model.embed_tokens", "lm_head"))
    tied = parts["llm"]["init_args"].get("config", {}).get("tie_word_embeddings")
    if tied and {first, last} <= tensors.keys() and not equal(tensors[first], tensors[last]):
        raise ValueError(
            f"{path}: tie_word_embeddings is true, and the checkpoint's lm_head is another matrix "
            "than its embeddings"
        )


def _tokenizer(folder: Path) -> Any:
    """Load the tokenizer; it adds a beginning-of-sequence token if the chat template does."""
    for name in ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"):
        if (path := folder / name).is_file():
            found = read_json(path)
            for key, kind in TOKENIZER_TYPES.items():
                require(found, key, kind, str(path))
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except BaseException as error:  # a damaged file may raise anything; tokenizers panics
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        reason = first_line(error)
        raise ValueError(
            f"{folder}: no tokenizer can be made of its files (tokenizer.json, "
            f"tokenizer_config.json, ...): {reason}"
        ) from error
    text, _ = templates.read_chat_template(folder)
    if templates.opens_with_bos(text, tokenizer.bos_token or "bos_token"):
        tokenizer.add_bos_token = True
    return tokenizer


def _template(folder: Path, template: str | None) -> str:
    """The given chat template, or else the one that writes the same as the checkpoint's own."""
    if template is not None:
        return get_template(template).name  # refuses an unknown name
    name, source = templates.match(folder, _tokenizer(folder))
    print(f"llava_lab: template {name}: it writes what the checkpoint's {source} writes")
    return name


def _write_parts(released: Released, folder: Path, draft: Path) -> None:
    """Write one file a part, and the tokenizer if the checkpoint has an LM."""
    for part, prefix in PREFIXES.items():
        own = {
            name.removeprefix(prefix): tensor.contiguous()
            for name, tensor in released.tensors.items()
            if name.startswith(prefix)
        }
        if own:
            save_file(own, draft / f"{part}.safetensors")
    if (draft / "llm.safetensors").is_file():
        _tokenizer(folder).save_pretrained(draft / "tokenizer")


def _write_yaml(released: Released, draft: Path, place: Path, source: str) -> None:
    """Write the YAML that names the parts and their files."""
    model: dict[str, Any] = {name: copy.deepcopy(released.parts[name]) for name in PREFIXES}
    for part in PREFIXES:
        if (draft / f"{part}.safetensors").is_file():
            keys = model[part]["init_args"] if part in ("encoder", "llm") else model
            name = {"connector": "connector_weights", "newline": "newline"}.get(part, "weights")
            keys[name] = str(place / f"{part}.safetensors")
    if (draft / "tokenizer").is_dir():
        model["llm"]["init_args"]["tokenizer"] = str(place / "tokenizer")
    # An experiment's own views may refer to a stage, which may be switched off.
    views = {EXTENDS: None, **released.parts["views"]}
    written = {"scale": "imported", "model": model, "data": {"views": views}}
    text = to_yaml(written)
    (draft / MODEL).write_text(f"# Imported from {source}.\n{text}", "utf-8")
