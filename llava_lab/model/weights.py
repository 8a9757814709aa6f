"""Weights of parts: where they are found, how they are read and checked, what they hash to."""

import hashlib
from collections.abc import Iterator, Mapping
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


def misfit(
    found: Mapping[str, Tensor], needed: Mapping[str, Tensor], known: Mapping[str, Tensor]
) -> str:
    """In what a file's tensors do not fit; empty if they do.

    Args:
        found: Tensors of the file.
        needed: Tensors of the blocks that are kept; all must be there, in their shapes.
        known: Tensors of the whole tower; nothing else may be there.
    """
    shapes = [
        f"{key} {list(found[key].shape)} for {list(needed[key].shape)}"
        for key in needed
        if key in found and found[key].shape != needed[key].shape
    ]
    problems = (
        few("missing", [key for key in needed if key not in found]),
        few("unknown", [key for key in found if key not in known]),
        few("of another shape", shapes),
    )
    return "; ".join(problem for problem in problems if problem)


def few(what: str, names: list[str]) -> str:
    """Their count and the first few of them; empty if there are none."""
    if not names:
        return ""
    return f"{len(names)} {what}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"


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
    needed = {key: own[key] for key in sorted(own) if key not in tied}
    if problem := misfit(found, needed, own):
        raise ValueError(f"{path} does not fit {type(part).__name__}: {problem}")
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
