"""Tensors on disk: safetensors files with a key and checksums, written atomically.

The key says what the tensors belong to, such as a stage's fingerprint. A file with a flipped byte,
a missing tensor or another key is refused when it is read.
"""

import hashlib
import json
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llava_lab.core import atomic as disk

ABOUT = "llava_lab"


class Damaged(ValueError):
    """A file of tensors is damaged, or belongs to something else."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], key: str) -> None:
    """Write tensors with their checksums.

    Args:
        path: The file.
        tensors: Names and tensors, on any device.
        key: What they belong to, such as a fingerprint.
    """
    whole = {name: each.detach().cpu().contiguous() for name, each in tensors.items()}
    checksums = {name: _checksum(each) for name, each in whole.items()}
    # One entry: safetensors writes several in any order, and equal content makes equal files here.
    about = {ABOUT: json.dumps({"key": key, "checksums": checksums})}
    with disk.whole(path) as draft:
        save_file(whole, draft, about)


def read_tensors(path: Path, key: str, names: list[str] | None = None) -> dict[str, Tensor]:
    """Read tensors, all or those of these names, and compare their checksums.

    Args:
        path: The file.
        key: Key that the file must have.
        names: Names of tensors; None reads all.

    Raises:
        Damaged: If a tensor is missing or left over or differs from what was written, or if the
            file belongs to something else.
        FileNotFoundError: If there is no such file.
    """
    found, checksums = _opened(
        path, key, lambda file, every: {n: file.get_tensor(n) for n in names or every}
    )
    for name, tensor in found.items():
        if _checksum(tensor) != checksums[name]:
            raise Damaged(f"{path}: damaged: {name!r} is not what was written")
    return found


def tensor_names(path: Path, key: str) -> set[str]:
    """Names of the tensors of a file, whose values are not read.

    Args:
        path: The file.
        key: Key that the file must have.

    Raises:
        Damaged: If the file is cut short or belongs to something else.
        FileNotFoundError: If there is no such file.
    """
    return set(_opened(path, key, lambda file, every: {})[1])


def _opened(
    path: Path, key: str, read: Callable[[Any, Iterable[str]], dict[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """What is read of a file that has this key, and the checksums of all its tensors."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(ABOUT, "null"))
            if about is None:
                raise Damaged(f"{path}: has no checksums, so that this version did not write it")
            if about["key"] != key:
                raise Damaged(f"{path}: belongs to {about['key']!r}, not to {key!r}")
            checksums = about["checksums"]
            if checksums.keys() != set(file.keys()):
                odd = sorted(checksums.keys() ^ set(file.keys()))
                raise Damaged(
                    f"{path}: damaged: {len(odd)} of {len(checksums)} tensors are missing or left "
                    f"over, the first {odd[0]!r}"
                )
            found = read(file, checksums)
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(f"{path}: damaged or cut short ({error})") from error
    return found, checksums


def made_again(
    path: Path, key: str, compute: Callable[[], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Read cached tensors, or compute and write them.

    A damaged file is computed anew, with a warning.
    """
    if path.exists():
        try:
            return read_tensors(path, key)
        except Damaged as error:
            warnings.warn(f"{error}; computed anew", stacklevel=2)
    write_tensors(path, compute(), key)
    return read_tensors(path, key)


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity."""
    return [name for name, each in tensors.items() if not bool(torch.isfinite(each).all())]


def _checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's type, shape and bytes."""
    head = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, head)


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes, independent of order and device."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
