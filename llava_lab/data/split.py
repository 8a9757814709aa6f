"""1. Split: samples -> training and held-out samples, by the names of their images."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from llava_lab.core.numbers import shares
from llava_lab.data.rows import collector_paused
from llava_lab.data.sample import Sample


def hold_out(samples: Sequence[Sample], fraction: float) -> tuple[list[Sample], list[Sample]]:
    """Split samples into those to train on and about `fraction` of them to hold out.

    The side of a sample depends on the names of its images (on its id if it has none), not on the
    order of the samples or on a seed. Samples that share an image, also through a third sample,
    stay together. An image's name is that of its file and folder, so that the split survives a
    move of the data and `clip1/0.jpg` is not taken for `clip2/0.jpg`. At least one group is held
    out, however few there are.

    Args:
        samples: What to split.
        fraction: Share to hold out, from 0 to below 1.
    """
    sides = held_out([_names(sample) for sample in samples] if fraction else [], fraction)
    if not fraction:
        return list(samples), []
    train: list[Sample] = []
    held: list[Sample] = []
    for sample, is_held in zip(samples, sides, strict=True):
        (held if is_held else train).append(sample)
    return train, held


@collector_paused()
def held_out(keys: Sequence[tuple[str, ...]], fraction: float) -> list[bool]:
    """Whether each sample is held out; the rule is that of `hold_out`.

    Args:
        keys: Names of each sample's images, or of the sample if it has none.
        fraction: Share to hold out, from 0 to below 1.
    """
    shares(below=1, hold_out=fraction)
    if not fraction:
        return [False] * len(keys)
    group = _join(keys)
    keys_of_groups = sorted(set(group.values()), key=_unit_hash)
    held_keys = {key for key in keys_of_groups if _unit_hash(key) < fraction}
    if not held_keys:
        held_keys = set(keys_of_groups[:1])
    sides = [group[names[0]] in held_keys for names in keys]
    held = sum(sides)
    if held in (0, len(keys)):
        counted = f"{len(keys) - held} samples to train on and {held} held out"
        raise ValueError(f"holding out {fraction} of {len(keys)} leaves {counted}")
    return sides


def _names(sample: Sample) -> tuple[str, ...]:
    return tuple(map(image_name, sample.images)) or (sample_name(sample.id),)


def image_name(image: Path) -> str:
    """Name of an image in the split: that of its folder and file."""
    return f"{image.parent.name}/{image.name}"


def sample_name(id_: str) -> str:
    """Name of a sample without images in the split."""
    return f"id {id_}"


def _join(keys: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """Map each name to the smallest name that it is linked to by appearing in one tuple."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for names in keys:
        for name in names:
            parent.setdefault(name, name)
            low, high = sorted((root(names[0]), root(name)))
            parent[high] = low
    return {name: root(name) for name in parent}


def _unit_hash(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
