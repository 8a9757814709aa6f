"""Weights of parts: files and hub ids -> checked tensors."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from llava_lab.core.tensors import not_finite
from llava_lab.model.encoder.tower import first_line

ASSETS = Path(__file__).resolve().parents[1] / "assets"
ADAPTER = "adapter_config.json"
POINTER = b"version https://git-lfs"
# Types of quantized weights, which need scales.
PACKED = {torch.int8, torch.uint8, torch.bool} | {
    getattr(torch, name) for name in dir(torch) if name.startswith(("float4_", "float8_"))
}

HEADERS = ("I8", "U8", "F8", "F4")  # their names in a .safetensors header


def locate(name: str) -> str:
    """Return the path of `asset:NAME`, a file of the package; other names are returned as is."""
    if not name.startswith("asset:"):
        return name
    path = ASSETS / name.removeprefix("asset:")
    if not path.exists():
        raise FileNotFoundError(
            f"{name}: {path} is not there. Make it: python -m llava_lab.cli.tiny_parts"
        )
    return str(path)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors, .bin, .pt or .pth file, without running pickled code.

    If a file holds more than weights, these are expected under `state_dict` or `model`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or holds anything but tensors of finite numbers.
    """
    file = Path(locate(str(path)))
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such weights file")
    refuse_pointer(file)
    try:
        found = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # damaged bytes may raise anything
        raise ValueError(
            f"{file}: damaged or cut short, or no file of weights ({first_line(error)}). Fetch it "
            "again, or take .safetensors files."
        ) from error
    tensors = _only_tensors(found, file)
    check_values(tensors, str(file))
    return tensors


def _only_tensors(found: object, file: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict):
        raise ValueError(f"{file}: holds a {type(found).__name__}, not tensors by name")
    others = [f"{k} ({type(v).__name__})" for k, v in found.items() if not isinstance(v, Tensor)]
    if others or not all(isinstance(key, str) for key in found):
        raise ValueError(
            f"{file}: holds more than tensors by name: {few('others', others) or 'odd names'}"
            ". Save the weights alone (model.state_dict())"
        )
    return found


def refuse_pointer(file: Path) -> None:
    """Refuse a pointer of Git LFS in place of the file."""
    with file.open("rb") as opened:
        if opened.read(len(POINTER)) == POINTER:
            raise ValueError(
                f"{file}: a pointer of Git LFS, not the file itself. Fetch it: git lfs pull in its "
                "folder, or download the file again"
            )


def check_values(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are quantized, or not finite.

    Raises:
        ValueError: If there are any; names them.
    """
    packed = [f"{key} ({value.dtype})" for key, value in tensors.items() if value.dtype in PACKED]
    if packed:
        raise ValueError(
            f"{source}: {few('quantized', packed)}. Their scales are not read: take the checkpoint "
            "that it was made from"
        )
    if broken := not_finite(tensors):
        raise ValueError(
            f"{source}: {few('with NaN or infinite values', broken)}. Its training went wrong, or "
            "the file is damaged"
        )


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder with a LoRA adapter, which is no whole model.

    Raises:
        ValueError: If it is one.
    """
    if (folder / ADAPTER).is_file():
        raise ValueError(
            f"{folder}: an adapter of LoRA ({ADAPTER}), not a whole model. Merge it into the model "
            "that it was trained on (peft's merge_and_unload; scripts/merge_lora_weights.py of the "
            "released code), and name the merged folder"
        )


def refuse_quantized(folder: Path) -> None:
    """Refuse a folder whose .safetensors files hold quantized weights, by their headers.

    transformers would read them as plain numbers.

    Raises:
        ValueError: If there are any; names them.
    """
    for path in sorted(folder.glob("*.safetensors")):
        refuse_pointer(path)
        try:
            with safe_open(path, "pt") as file:
                kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path}: damaged or cut short ({error}). Fetch or make it again."
            ) from error
        if packed := [f"{key} ({kind})" for key, kind in kinds.items() if kind[:2] in HEADERS]:
            raise ValueError(
                f"{path}: {few('quantized', packed)}. Their scales are not read: take the "
                "checkpoint that it was made from"
            )


def misfit(
    found: Mapping[str, Tensor], needed: Mapping[str, Tensor], known: Mapping[str, Tensor]
) -> str:
    """Describe how a file's tensors differ from those needed; empty if they fit.

    Args:
        found: Tensors of the file.
        needed: Tensors that the file must have, with their shapes.
        known: Tensors that the file may have.
    """
    shapes = [
        f"{key} {list(found[key].shape)} for {list(needed[key].shape)}"
        for key in needed
        if key in found and found[key].shape != needed[key].shape
    ]
    kinds = [
        f"{key} ({found[key].dtype})"
        for key in needed
        if key in found and found[key].is_floating_point() != needed[key].is_floating_point()
    ]
    problems = (
        few("missing", [key for key in needed if key not in found]),
        few("unknown", [key for key in found if key not in known]),
        few("of another shape", shapes),
        few("of another type", kinds),
    )
    return "; ".join(problem for problem in problems if problem)


def few(what: str, names: list[str]) -> str:
    """List the number of names and the first three; empty if there are none."""
    if not names:
        return ""
    return f"{len(names)} {what}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"


def load_part(part: nn.Module, path: str | Path, prefix: str = "") -> None:
    """Load one part from a file of its own, or from a file in which its names have a prefix.

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
    if apart := _apart(own, found):
        raise ValueError(
            f"{path} does not fit {type(part).__name__}: {few('tied in the model alone', apart)}; "
            "an LM ties none with config.tie_word_embeddings false"
        )
    part.load_state_dict(found, strict=not tied)


def _is_tied(key: str, own: dict[str, Tensor], found: dict[str, Tensor]) -> bool:
    """Whether a missing tensor shares its memory with one that was found (tied embeddings)."""
    memory = own[key].data_ptr()
    return memory != 0 and any(own[k].data_ptr() == memory for k in own.keys() & found.keys())


def _apart(own: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    """Tensors that share their memory with one before them, of which the file has another value."""
    first: dict[tuple[int, torch.Size], str] = {}
    apart = []
    for key, value in found.items():
        memory, kind = own[key].data_ptr(), own[key].dtype
        other = first.setdefault((memory, own[key].shape), key)
        if memory and other != key and not torch.equal(value.to(kind), found[other].to(kind)):
            apart.append(key)
    return apart


@contextmanager
def seeded(name: str) -> Iterator[None]:
    """Seed random weights by (seed, name) inside of the block, whatever was drawn before."""
    text = f"{torch.initial_seed()}/{name}".encode()
    seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
