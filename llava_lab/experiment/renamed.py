"""Options of versions before 0.5, each refused with its name of today."""

from collections.abc import Mapping
from typing import Any

BESIDE_DATA = "what stood under recipe stands beside data now: stages.NAME.loss, .lr, ..."
# `*` is any stage.
RENAMED = {
    "world": "it is called tiny_world",
    "video_world": "it is called tiny_videos",
    "data.policy": "it is called views",
    "stages.*.data.policy": "it is called views",
    "stages.*.recipe": BESIDE_DATA,
    "stages.*.rates": "it is called lr",
    "stages.*.rate_scale": "it is called lr_scale",
}


def refuse_old_names(layer: Mapping[str, Any]) -> None:
    """Refuse a layer that has an option under a name of an older version.

    Raises:
        ValueError: Names the option and what it is called now.
    """
    for old, instead in RENAMED.items():
        for place in _found(layer, old.split("."), ""):
            raise ValueError(f"{place}: {instead}")


def _found(tree: Any, parts: list[str], place: str) -> list[str]:
    """Places in a tree that a key's parts lead to."""
    if not parts:
        return [place]
    if not isinstance(tree, Mapping):
        return []
    names = [name for name in tree if parts[0] in ("*", name)]
    return [
        each
        for name in names
        for each in _found(tree[name], parts[1:], f"{place}.{name}".lstrip("."))
    ]
