"""Weights of parts: where they are found, how they are read and checked, what they hash to."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

ASSETS = Path(__file__).resolve().parents[1] / "assets"


def locate(name: str) -> str:
    """A hub id or path as it is; `asset:NAME` is a file that ships with the package."""
    if not name.startswith("asset:"):
        return name
    path = ASSETS / name.removeprefix("asset:")
    if not path.exists():
        raise FileNotFoundError(
            f"{name}: {path} is not there. Make it: python -m llava_lab fit "
            "-c experiments/tiny_parts.yaml"
        )
    return str(path)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors, .bin, .pt or .pth file; never runs code that it holds."""
    file = Path(locate(str(path)))
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such weights file")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(
            f"{file}: damaged or cut short ({error}). Fetch or make it again."
        ) from error


def load_part(part: nn.Module, path: str | Path, prefix: str = "") -> None:
    """Load one part from a file of its own or from a file in which its names have a prefix.

    Raises:
        ValueError: If any tensor is missing, left over, or of another shape.
    """
    found = read_weights(path)
    if any(key.startswith(prefix) for key in found):
        found = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    own = part.state_dict()
    tied = {key for key in own if key not in found and _is_tied(key, own, found)}
    missing = sorted(own.keys() - found.keys() - tied)
    unknown = sorted(found.keys() - own.keys())
    shapes = [
        f"{key} {tuple(found[key].shape)} for {tuple(own[key].shape)}"
        for key in own.keys() & found.keys()
        if own[key].shape != found[key].shape
    ]
    for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes)):
        if names:
            shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            raise ValueError(
                f"{path} does not fit {type(part).__name__}: {len(names)} {what}: {shown}"
            )
    part.load_state_dict(found, strict=not tied)


def _is_tied(key: str, own: dict[str, Tensor], found: dict[str, Tensor]) -> bool:
    """Whether a missing tensor shares its memory with one that was found (tied embeddings)."""
    memory = own[key].data_ptr()
    return memory != 0 and any(own[k].data_ptr() == memory for k in own.keys() & found.keys())


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes, independent of order and device."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


@contextmanager
def seeded(name: str) -> Iterator[None]:
    """Draw random weights from (seed, name) alone, whatever was drawn before."""
    text = f"{torch.initial_seed()}/{name}".encode()
    seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
