"""10. Feature store: a frozen encoder's features, computed once for (encoder, views, images)."""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from llava_lab.core.fingerprint import fingerprint
from llava_lab.core.progress import progress, shown
from llava_lab.core.tensors import digest, made_again, read_tensors
from llava_lab.data.media.clip import image_digest
from llava_lab.data.views.base import Views
from llava_lab.model.encoder.base import Encoder

CHUNK = 128  # images encoded and stored together; the same list gives the same chunks, bit for bit


class FeatureStore:
    """Features of a fixed list of images, on disk; safe to be killed at any point.

    Args:
        root: Folder of all stores.
        encoder: The frozen encoder.
        views: How an image becomes views.
        images: The images; the same images in another list are another store.
    """

    def __init__(self, root: Path, encoder: Encoder, views: Views, images: Sequence[Path]):
        self.encoder, self.views = encoder, views
        self.images = sorted(set(images))
        digests = [image_digest(path) for path in shown(self.images, "digests of pictures")]
        values = (encoder, digest(encoder.state_dict()), views, digests)
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
        parts = {n: self.images[n * CHUNK : (n + 1) * CHUNK] for n in chunks}
        with progress("features", sum(map(len, parts.values()))) as bar:
            for number, images in parts.items():
                end = bar.n + len(images)
                compute = partial(self._compute, images, bar)
                made_again(self._chunk(number), self._key(number), compute)
                bar.update(end - bar.n)

    def _chunk(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def _key(self, number: int) -> str:
        return f"{self.key}/{number}"

    @torch.no_grad()
    def _compute(self, images: Sequence[Path], bar: tqdm) -> dict[str, Tensor]:
        device = next(self.encoder.parameters()).device
        training = self.encoder.training
        self.encoder.eval()
        loaded = [self.views.load(path) for path in images]
        views = [self.views.pixels(image, self.encoder.view_spec) for image in loaded]
        groups = torch.cat(views).split(CHUNK)  # videos have many views
        found = []
        for group in groups:
            found.append(self.encoder(group.to(device)).cpu())
            bar.update(len(images) // len(groups))
        features = torch.cat(found).flatten(1, 2)
        self.encoder.train(training)
        pieces = features.split([len(view) for view in views])
        first = self.place[images[0]]
        # Images have no frames: 0 stands for the missing third number of their size.
        sizes = torch.tensor([(*image.size, 0)[:3] for image in loaded])
        return {"sizes": sizes, **{str(first + i): piece for i, piece in enumerate(pieces)}}

    def __getitem__(self, image: Path) -> tuple[Tensor, tuple[int, ...]]:
        """Features [n, p, d] of an image's views, row by row; its width, height and frames, if any.

        Raises:
            Damaged: If they are not what was stored.
        """
        index = self.place[image]
        number, name = index // CHUNK, str(index)
        found = read_tensors(self._chunk(number), self._key(number), ["sizes", name])
        return found[name], tuple(filter(None, found["sizes"][index % CHUNK].tolist()))


def store_features(model: Any, data: Any, trainer: Any) -> None:
    """Compute the features of a stage's images beforehand, if it names a store and may use one.

    Args:
        model: The model; features are stored only while its encoder is frozen.
        data: The stage's DataModule, which gets the store as `features`.
        trainer: Whose devices share the work.
    """
    images = data.stored_images()
    frozen = not any(weight.requires_grad for weight in model.encoder.parameters())
    if data.feature_store is None or not frozen or not images:
        return
    model.encoder.to(trainer.strategy.root_device)  # Lightning moves the model only later
    store = FeatureStore(Path(data.feature_store), model.encoder, data.views, images)
    store.fill(trainer)
    data.features = store
