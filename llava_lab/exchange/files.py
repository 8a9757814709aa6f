"""13b. Files: a checkpoint's folder or hub id -> its configuration and tensors."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from llava_lab.model.weights import read_weights

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin", "mm_projector.bin")


def find(source: str) -> Path:
    """The local folder of a checkpoint, fetched from the hub if it is an id."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(source))
    except (OSError, HFValidationError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"{source}: no such folder, and not to be had from the hub ({reason})"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that must be there and hold an object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path.parent}: holds no {path.name}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds {type(found).__name__}, not an object")
    return found


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, sharded or not.

    Raises:
        FileNotFoundError: If there are no weights, or shards that the index names are missing.
        ValueError: If a shard lacks tensors that the index promises.
    """
    for name in INDEXES:
        if (folder / name).is_file():
            return _read_shards(folder, read_json(folder / name)["weight_map"])
    for name in SINGLE:
        if (folder / name).is_file():
            return read_weights(folder / name)
    raise FileNotFoundError(f"{folder}: holds none of {', '.join((*INDEXES, *SINGLE))}")


def _read_shards(folder: Path, shards: dict[str, str]) -> dict[str, Tensor]:
    files = sorted(set(shards.values()))
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder}: {len(missing)} shards missing: {', '.join(missing)}")
    tensors: dict[str, Tensor] = {}
    for name in files:
        tensors |= read_weights(folder / name)
    if absent := sorted(set(shards) - set(tensors)):
        raise ValueError(
            f"{folder}: {len(absent)} tensors of the index are in no shard, the first {absent[0]}"
        )
    return tensors
