"""Checkpoint files: one file, or a folder of which each device writes its share.

Either is read under any strategy and on any number of devices. Of a folder, `shares.json` has the
checksum of every other file, so that its own checksum is that of the whole.
"""

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from llava_lab.core import ranks
from llava_lab.core.atomic import whole, write
from llava_lab.core.records import file_sha256

SUMS, REST, INDEX = "shares.json", "rest.pt", ".metadata"
TENSOR = "tensor:"  # begins the text that stands for a tensor of a folder
SHARED = ("state_dict", "optimizer_states")  # entries of a checkpoint that devices share out
DIGITS = 16


class StageFiles(TorchCheckpointIO):
    """Writes beside the file's place: Lightning's own writes to $TMPDIR, and copies from there."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint of one device, whole or not at all."""
        if Path(path).is_dir():
            remove(Path(path))
        with whole(Path(path)) as draft:
            torch.save(checkpoint, draft)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint whole."""
        return load_any(Path(path), {})


def name_states(optimizer: Optimizer, names: Mapping[int, str]) -> None:
    """Let an optimizer's state be that of weights by name, and not by their place in its groups.

    Loading it raises a ValueError where the optimizer has other weights or groups.

    Args:
        optimizer: The optimizer.
        names: Name of each weight, by its `id`.
    """

    def order() -> list[list[str]]:
        return [[names[id(each)] for each in group["params"]] for group in optimizer.param_groups]

    def flat() -> list[str]:
        return [name for group in order() for name in group]

    def renamed(state: dict[str, Any], new: Mapping[Any, Any]) -> dict[str, Any]:
        groups = [{**g, "params": [new[old] for old in g["params"]]} for g in state["param_groups"]]
        return {"state": {new[k]: v for k, v in state["state"].items()}, "param_groups": groups}

    def loaded(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        if [group["params"] for group in state["param_groups"]] != order():
            raise ValueError("the checkpoint has the optimizer's states of other weights")
        return renamed(state, {name: place for place, name in enumerate(flat())})

    optimizer.register_state_dict_post_hook(
        lambda _, state: renamed(state, dict(enumerate(flat())))
    )
    optimizer.register_load_state_dict_pre_hook(loaded)


def save_shards(checkpoint: dict[str, Any], folder: Path) -> None:
    """Write a checkpoint as a folder; every device calls it with its share of the tensors.

    Args:
        checkpoint: The checkpoint, as Lightning has made it.
        folder: Where to; what is there is removed.
    """
    first = not ranks.several() or dist.get_rank() == 0
    if first:
        remove(folder)
        folder.mkdir(parents=True)
    _wait()
    tensors: dict[str, Tensor] = {}

    def taken(tensor: Tensor, path: tuple[str, ...]) -> str:
        key = "/".join(path)
        tensors[key] = tensor
        return TENSOR + key

    rest = {k: _mapped(v, taken, (k,)) if k in SHARED else v for k, v in checkpoint.items()}
    dcp.save(tensors, checkpoint_id=folder, no_dist=not ranks.several())
    if first:
        torch.save(rest, folder / REST)
    _wait()
    _sum_up(folder)


def load_any(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read a checkpoint, a file or a folder.

    Args:
        path: The checkpoint; its checksum has been compared.
        weights: The model's by name, those that are shared out among them: of a tensor that belongs
            to one of these, this device's share is read. All other tensors are read whole.
    """
    shared = {name: each for name, each in weights.items() if isinstance(each, DTensor)}

    def owner(path: tuple[str, ...], shape: torch.Size) -> DTensor | None:
        own = next((shared[word] for word in path if word in shared), None)
        return own if own is not None and own.shape == shape else None

    if path.is_file():
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=bool(shared))

        def share(tensor: Tensor, path: tuple[str, ...]) -> Tensor:
            own = owner(path, tensor.shape)
            if own is None:
                return tensor
            tensor = tensor.to(own.device)
            return distribute_tensor(tensor, own.device_mesh, own.placements, src_data_rank=None)

        return {k: _mapped(v, share, (k,)) if k in SHARED else v for k, v in found.items()}
    found = torch.load(path / REST, map_location="cpu", weights_only=True)
    reader = _Reader(path)
    entries = reader.read_metadata().state_dict_metadata
    tensors: dict[str, Any] = {}

    def place(text: str, path: tuple[str, ...]) -> Any:
        if not text.startswith(TENSOR):
            return text
        about = cast(TensorStorageMetadata, entries[key := text.removeprefix(TENSOR)])
        own, kind = owner(path, about.size), about.properties.dtype
        tensors[key] = (
            torch.empty(about.size, dtype=kind)
            if own is None
            else torch.empty_like(own.detach(), dtype=kind)
        )
        return tensors[key]

    found = {k: _mapped(v, place, (k,), str) if k in SHARED else v for k, v in found.items()}
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return found


def digest(path: Path) -> str | None:
    """First digits of a checkpoint's checksum; None if a file of a folder is not what was written.

    Args:
        path: A file or folder.
    """
    if path.is_file():
        return file_sha256(path)[:DIGITS]
    if not (path / SUMS).is_file():
        return None
    try:
        sums = json.loads((path / SUMS).read_bytes())
        good = all(file_sha256(path / name) == sum_ for name, sum_ in sums.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    return file_sha256(path / SUMS)[:DIGITS] if good else None


def remove(path: Path) -> None:
    """Remove a checkpoint, if it is there."""
    while path.is_dir():
        with suppress(FileNotFoundError):  # another process removes it, too
            shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _sum_up(folder: Path) -> None:
    """Write the checksums of a folder's files, each computed by the device that wrote it."""
    rank = dist.get_rank() if ranks.several() else 0
    own = [INDEX, REST] if rank == 0 else []
    own += sorted(path.name for path in folder.glob(f"__{rank}_*"))
    sums: list[Any] = [{name: file_sha256(folder / name) for name in own}]
    if ranks.several():
        sums *= dist.get_world_size()
        dist.all_gather_object(sums, sums[0])
    if rank == 0:
        write(folder / SUMS, json.dumps({k: v for each in sums for k, v in each.items()}))
    _wait()


def _mapped(
    tree: Any, change: Callable[..., Any], path: tuple[str, ...], kind: type = Tensor
) -> Any:
    """A tree of lists and dictionaries with all leaves of a kind changed."""
    if isinstance(tree, kind):
        return change(tree, path)
    if isinstance(tree, Mapping):
        return {k: _mapped(each, change, (*path, str(k)), kind) for k, each in tree.items()}
    if isinstance(tree, (list, tuple)):
        numbered = enumerate(tree)
        return type(tree)([_mapped(each, change, (*path, str(n)), kind) for n, each in numbered])
    return tree


class _Reader(dcp.FileSystemReader):
    """Reads a folder without running what its index may hold: it is a pickle."""

    def read_metadata(self, *args: Any, **options: Any) -> Metadata:
        path = Path(self.path) / INDEX
        try:
            with path.open("rb") as file:
                found = _Unpickler(file).load()
        except (OSError, pickle.UnpicklingError, EOFError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}: not the index of a checkpoint ({error})") from error
        found.storage_meta.load_id = self.load_id
        return found


class _Unpickler(pickle.Unpickler):
    """Makes what the index of a checkpoint consists of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        found = super().find_class(module, name) if module in _KNOWN else None
        plain = hasattr(found, "__dataclass_fields__") or isinstance(found, torch.dtype)
        plain = plain or (isinstance(found, type) and issubclass(found, (Enum, torch.Size)))
        if not plain and (module, name) not in _MADE:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _member(kind: Any, name: str) -> Enum:
    """A member of an enumeration, which Python 3.11.0 to 3.11.2 write as an attribute of it."""
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise pickle.UnpicklingError(f"it names {name} of {kind!r:.100}")
    return kind[name]


_KNOWN = ("torch", "torch.distributed.checkpoint.metadata")
_KNOWN += ("torch.distributed.checkpoint.filesystem",)
_MADE = {("pathlib", "PosixPath"), ("pathlib._local", "PosixPath")}
_MADE |= {("torch.serialization", "_get_layout")}


def _wait() -> None:
    if ranks.several():
        dist.barrier()
