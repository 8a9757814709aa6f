"""1. Split: samples -> training and held-out samples, by the names of their images."""

import hashlib
from collections.abc import Iterable, Sequence

from llava_lab.data.rows import collector_paused
from llava_lab.data.sample import Sample


@collector_paused()
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
    if not 0 <= fraction < 1:
        raise ValueError(f"hold out a fraction from 0 to below 1, not {fraction}")
    if not fraction:
        return list(samples), []
    keys = [_names(sample) for sample in samples]
    group = _join(keys)
    keys_of_groups = sorted(set(group.values()), key=_unit_hash)
    held_keys = {key for key in keys_of_groups if _unit_hash(key) < fraction}
    if not held_keys:
        held_keys = set(keys_of_groups[:1])
    train: list[Sample] = []
    held: list[Sample] = []
    for sample, names in zip(samples, keys, strict=True):
        (held if group[names[0]] in held_keys else train).append(sample)
    if not (train and held):
        sides = f"{len(train)} samples to train on and {len(held)} held out"
        raise ValueError(f"holding out {fraction} of {len(samples)} leaves {sides}")
    return train, held


def _names(sample: Sample) -> tuple[str, ...]:
    if not sample.images:
        return (f"id {sample.id}",)
    return tuple(f"{image.parent.name}/{image.name}" for image in sample.images)


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
