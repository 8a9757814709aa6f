"""Files: a checkpoint's folder or hub id -> its configuration and tensors."""

import json
import re
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from llava_lab.core.atomic import check_regular
from llava_lab.model.weights import few, read_weights, refuse_adapter, refuse_pointer

# As transformers looks for them: a folder may hold older weights beside those that count.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
WEIGHTS += ("pytorch_model.bin.index.json", "mm_projector.bin")
SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+(\.safetensors|\.bin)")


def find(source: str) -> Path:
    """Find the local folder of a checkpoint; a hub id is downloaded.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it holds a LoRA adapter, not a model.
    """
    folder = Path(source) if Path(source).is_dir() else _fetched(source)
    refuse_adapter(folder)
    return folder


def _fetched(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(source))
    except (OSError, HFValidationError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"{source}: no such folder, and not to be had from the hub ({reason})"
        ) from error


def read_text(path: Path) -> str:
    """Read a text file; a pointer of Git LFS is refused."""
    try:
        check_regular(path, "file")
        refuse_pointer(path)
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path.parent}: holds no {path.name}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object."""
    try:
        found = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply for a file of this kind") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds {type(found).__name__}, not an object")
    return found


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of a checkpoint, sharded or not.

    Raises:
        FileNotFoundError: If there are no weights, or shards that the index names are missing, or
            the index of shards.
        ValueError: If the index is damaged, or shards hold other tensors than it lists.
    """
    for path in (folder / name for name in WEIGHTS):
        if path.name == "mm_projector.bin":
            _refuse_lost_index(folder)
        if path.is_file():
            shards = path.suffix == ".json"
            return _read_shards(folder, _weight_map(path)) if shards else read_weights(path)
    raise FileNotFoundError(f"{folder}: holds none of {', '.join(WEIGHTS)}")


def _refuse_lost_index(folder: Path) -> None:
    """Refuse shards without their index: a projector beside them is not all of the model."""
    for name in sorted(path.name for path in folder.iterdir()):
        if found := SHARD.fullmatch(name):
            raise FileNotFoundError(
                f"{folder}: holds {name} and no {found[1]}{found[2]}.index.json, which says what "
                "the shards hold. Fetch the index"
            )


def _weight_map(path: Path) -> dict[str, str]:
    """Read which shard holds which tensor; shards must be in the folder of the index."""
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(
            f"{path}: weight_map, which says what shard holds what tensor, is "
            f"{'missing' if shards is None else repr(shards)[:80]}. Fetch the index again"
        )
    for tensor, name in shards.items():
        if not isinstance(name, str) or PurePath(name).name != name:
            raise ValueError(
                f"{path}: weight_map has {name!r} for {tensor}; a shard is a file beside the index"
            )
    return shards


def _read_shards(folder: Path, shards: dict[str, str]) -> dict[str, Tensor]:
    files = sorted(set(shards.values()))
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} shards missing: {', '.join(missing)}. Fetch them"
        )
    tensors: dict[str, Tensor] = {}
    for name in files:
        found = read_weights(folder / name)
        if other := [key for key in found if shards.get(key) != name]:
            raise ValueError(
                f"{folder / name}: {few('tensors that the index has elsewhere or not', other)}"
            )
        tensors |= found
    if absent := [key for key in shards if key not in tensors]:
        raise ValueError(f"{folder}: of the index's tensors, {few('are in no shard', absent)}")
    return tensors
