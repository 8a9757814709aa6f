"""3g. Feature store: a frozen encoder's features, computed once for (encoder, policy, images)."""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from llava_lab.data.clip import frame_files
from llava_lab.data.image import Policy
from llava_lab.model.encoder import Encoder
from llava_lab.model.weights import digest

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
        self.digests = [image_digest(path) for path in self.images]
        what = f"{type(encoder).__name__} {encoder.vision} {policy_key(policy)}"
        state = digest(encoder.state_dict())
        text = "\n".join([what, state, *self.digests])
        self.folder = root / hashlib.sha256(text.encode()).hexdigest()[:24]
        self.place = {path: index for index, path in enumerate(self.images)}

    def fill(self) -> None:
        """Compute the chunks that are not there yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for number, start in enumerate(range(0, len(self.images), CHUNK)):
            target = self._chunk(number)
            if not target.exists():
                self._write(target, self.images[start : start + CHUNK])

    def _chunk(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    @torch.no_grad()
    def _write(self, target: Path, images: Sequence[Path]) -> None:
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
        tensors = {str(first + i): piece.contiguous() for i, piece in enumerate(pieces)}
        # A picture has no frames; what has a size of two numbers and what of three is told by it.
        sizes = [(*image.size, 0)[:3] for image in loaded]
        tensors["sizes"] = torch.tensor(sizes)
        handle, draft = tempfile.mkstemp(dir=self.folder, suffix=".draft")
        os.close(handle)
        save_file(tensors, draft)
        os.replace(draft, target)

    def __getitem__(self, image: Path) -> tuple[Tensor, tuple[int, ...]]:
        """Features [n, p, d] of one image's views, and its width, height and frames, if any."""
        index = self.place[image]
        with safe_open(self._chunk(index // CHUNK), "pt") as chunk:
            size = chunk.get_tensor("sizes")[index % CHUNK].tolist()
            return chunk.get_tensor(str(index)), tuple(filter(None, size))


def policy_key(policy: Policy, layout: bool = False) -> str:
    """A policy's class and the values that decide its pixels, or also its layout: for keys."""
    values = {
        name: policy_key(value, layout) if isinstance(value, Policy) else value
        for name, value in vars(policy).items()
        if not name.startswith("_") and (layout or name not in policy.layout_only)
    }
    return f"{type(policy).__qualname__} {sorted(values.items())}"
