"""1. Split: samples -> training and held-out samples, by their images."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from llava_lab.core.numbers import shares
from llava_lab.data.media.clip import readable_digests
from llava_lab.data.media.inside import inside
from llava_lab.data.rows import collector_paused
from llava_lab.data.sample import Sample
from llava_lab.data.shards import KINDS


def hold_out(samples: Sequence[Sample], fraction: float) -> tuple[list[Sample], list[Sample]]:
    """Split samples into those to train on and about `fraction` of them to hold out.

    The side of a sample depends on the names of its images (on its id if it has none), not on the
    order of the samples or on a seed. Samples that share an image, also through a third sample,
    stay together. An image's name is that of its file and folder, so that the split survives a
    move of the data and `clip1/0.jpg` is not taken for `clip2/0.jpg`; inside of a shard, whose
    names say nothing, and of a file that a shard holds too, it is the digest of its bytes. At least
    one group is held out, however few there are.

    Args:
        samples: What to split.
        fraction: Share to hold out, from 0 to below 1.
    """
    sides = held_out(_names(samples) if fraction else [], fraction)
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


def _names(samples: Sequence[Sample]) -> list[tuple[str, ...]]:
    every = [image for sample in samples for image in sample.images]
    packed = [i for each in samples for i in each.images if _in_its_shards(i, each)]
    names = image_names(every, packed)
    return [tuple(names[i] for i in each.images) or (sample_name(each.id),) for each in samples]


def _in_its_shards(image: Path, sample: Sample) -> bool:
    """Whether an image is in the shards that its row is from: in a file of their kind."""
    kind = Path(sample.source.rpartition(", ")[0]).suffix
    return kind in KINDS and (place := inside(image)) is not None and place[0].suffix == kind


def image_names(images: Iterable[Path], packed: Iterable[Path]) -> dict[Path, str]:
    """Names of images in the split.

    Args:
        images: The images.
        packed: Those in the shards that their rows are from; several sources may hold the same
            pictures, whose names there say nothing. A file of the same bytes is called as they are.
    """
    images = list(images)
    digests, _ = readable_digests(packed)
    if digests:
        loose, _ = readable_digests(image for image in images if image not in digests)
        known = set(digests.values())
        digests |= {image: digest for image, digest in loose.items() if digest in known}
    return {image: digests.get(image) or f"{image.parent.name}/{image.name}" for image in images}


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
