"""4. Tower: a layer's number -> the blocks to keep; a file's tensors -> those of these blocks."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from torch import Tensor

# How names of a tower's tensors start in files of a whole model, of an encoder, of the hub's CLIP.
PREFIXES = ("encoder.tower.", "tower.", "vision_model.")

MOST_BLOCKS = 1000


def refuse_depth(config: Mapping[str, Any]) -> None:
    """Refuse a count of blocks that would be built for hours before anything else is checked.

    Raises:
        ValueError: If there are more than any model has.
    """
    for key in ("num_hidden_layers", "num_layers", "n_layer"):
        if isinstance(count := config.get(key), int) and count > MOST_BLOCKS:
            raise ValueError(f"{key} is {count}; no model has more than {MOST_BLOCKS:,} blocks")


def depth_of(layer: int, blocks: int, first: int, name: str) -> int:
    """How many blocks run for one entry of the hidden states [embeddings, block 1, ..., block L].

    Args:
        layer: Index of the entry, from the front or, negative, from the end.
        blocks: L.
        first: The first entry that can be had: 0, or 1 where the embeddings cannot.
        name: The tower, for the message.
    """
    depth = layer if layer >= 0 else blocks + 1 + layer
    if not first <= depth <= blocks:
        raise ValueError(
            f"{name}: layer is {layer}, and with {blocks} blocks it runs from "
            f"{first - blocks - 1} to -1 or from {first} to {blocks}"
        )
    return depth


def features_of(tower: Any, pixels: Tensor, **choice: Any) -> list[Any]:
    """Features [n, d, h, w] of a timm model's blocks."""
    return tower.forward_intermediates(
        pixels, norm=False, stop_early=True, output_fmt="NCHW", intermediates_only=True, **choice
    )


def tensors_of(file: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A tower's own tensors in a file, under the tower's own names.

    Args:
        file: What the file holds.
        known: Tensors of the whole tower.
    """
    for prefix in PREFIXES:
        found = {k.removeprefix(prefix): v for k, v in file.items() if k.startswith(prefix)}
        if any(key in known for key in found):
            return found
    return dict(file)


def nearest(word: str, words: list[str]) -> str:
    """The words that are most like it, or the first few."""
    return ", ".join(get_close_matches(word, words, 3, 0.5) or sorted(words)[:5])


def unreachable(name: str, error: Exception, way_out: str) -> FileNotFoundError:
    """The error of a name that is neither on this machine nor to be had from the hub."""
    return FileNotFoundError(
        f"{name}: not on this machine, nor to be had from the hub ({first_line(error)}). {way_out}"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message; not of advice to run what a file of weights holds."""
    if "weights_only" in str(error) or "WeightsUnpickler" in str(error):
        code = "GLOBAL" in str(error) or "global" in str(error)
        kind = "other Python objects than tensors, which would be run to be read, and are not"
        return f"it holds {kind}" if code else "it is no file of torch"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
