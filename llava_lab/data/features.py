"""3g. Feature store: a frozen encoder's features, computed once for (encoder, policy, images)."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_lab.data.clip import frame_files
from llava_lab.data.image import Policy
from llava_lab.fingerprint import fingerprint
from llava_lab.model.encoder import Encoder
from llava_lab.model.weights import digest
from llava_lab.tensors import made_again, read_tensors

CHUNK = 128  # images encoded and stored together; the same list gives the same chunks, bit for bit


def image_digest(path: Path) -> str:
    """SHA-256 of the file's bytes; of a folder of frames, of all of theirs."""
    if path.is_dir():
        return hashlib.sha256("".join(map(image_digest, frame_files(path))).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FeatureStore:
    """Features of a fixed list of images, on disk; safe to be killed at any point.

    Args:
        root: Folder of all stores.
        encoder: The frozen encoder.
        policy: How an image becomes views.
        images: The images; the same images in another list are another store.
    """

    def __init__(self, root: Path, encoder: Encoder, policy: Policy, images: Sequence[Path]):
        self.encoder, self.policy = encoder, policy
        self.images = sorted(set(images))
        digests = [image_digest(path) for path in self.images]
        values = (encoder, digest(encoder.state_dict()), policy, digests)
        self.key = fingerprint(*values, leave_out=("idle", "layout_only"))[:24]
        self.folder = root / self.key
        self.place = {path: index for index, path in enumerate(self.images)}

    def fill(self, trainer: Any = None) -> None:
        """Compute the chunks that are not there yet, and anew those that are damaged.

        Args:
            trainer: Whose devices share the work; None computes all here.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        chunks = range(math.ceil(len(self.images) / CHUNK))
        if trainer is not None and trainer.world_size > 1:
            self._fill(chunks[trainer.global_rank :: trainer.world_size])
            trainer.strategy.barrier()
        self._fill(chunks)  # after shared work none, unless machines have disks of their own

    def _fill(self, chunks: Iterable[int]) -> None:
        for number in chunks:
            start = number * CHUNK
            compute = partial(self._compute, self.images[start : start + CHUNK])
            made_again(self._chunk(number), self._key(number), compute)

    def _chunk(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def _key(self, number: int) -> str:
        return f"{self.key}/{number}"

    @torch.no_grad()
    def _compute(self, images: Sequence[Path]) -> dict[str, Tensor]:
        device = next(self.encoder.parameters()).device
        training = self.encoder.training
        self.encoder.eval()
        loaded = [self.policy.load(path) for path in images]
        views = [self.policy.pixels(image, self.encoder.vision) for image in loaded]
        groups = torch.cat(views).split(CHUNK)  # videos have many views
        features = torch.cat([self.encoder(group.to(device)).cpu() for group in groups])
        self.encoder.train(training)
        pieces = features.split([len(view) for view in views])
        first = self.place[images[0]]
        # A picture has no frames; what has a size of two numbers and what of three is told by it.
        sizes = torch.tensor([(*image.size, 0)[:3] for image in loaded])
        return {"sizes": sizes, **{str(first + i): piece for i, piece in enumerate(pieces)}}

    def __getitem__(self, image: Path) -> tuple[Tensor, tuple[int, ...]]:
        """Features [n, p, d] of one image's views, and its width, height and frames, if any.

        Raises:
            Damaged: If they are not what was stored.
        """
        index = self.place[image]
        number, name = index // CHUNK, str(index)
        found = read_tensors(self._chunk(number), self._key(number), ["sizes", name])
        return found[name], tuple(filter(None, found["sizes"][index % CHUNK].tolist()))
