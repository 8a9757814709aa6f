"""10. Feature store: a frozen encoder's features, computed once for each (encoder, views, picture).

What a picture's features are does not hang on the other pictures: they are encoded in groups of
one fixed number of views, the last of which is filled up, so that a device takes the same kernels
for each. A stage that reads other pictures, or some of them, encodes those alone that are new.
"""

import hashlib
import itertools
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from llava_lab.core.fingerprint import fingerprint
from llava_lab.core.lock import lock
from llava_lab.core.modes import evaluating
from llava_lab.core.progress import progress, shown
from llava_lab.core.tensors import Damaged, digest, read_tensors, tensor_names, write_tensors
from llava_lab.data.image_folder import VideoPath
from llava_lab.data.media.clip import image_digests
from llava_lab.data.views.base import Views
from llava_lab.model.encoder.base import Encoder

CHUNK = 128  # pictures of a file
VIEWS = 32  # encoded at once
SIZES = "sizes"


class FeatureStore:
    """Features of pictures and videos on disk, by their content; safe to be killed at any point.

    One process at a time fills a store, or one job; those beside it wait, and then find what it has
    computed.

    Args:
        root: Folder of all stores.
        encoder: The frozen encoder.
        views: How an image becomes views.
        images: The images and videos whose features are wanted.
    """

    def __init__(self, root: Path, encoder: Encoder, views: Views, images: Sequence[Path]):
        self.encoder, self.views = encoder, views
        values = (encoder, digest(encoder.state_dict()), views)
        self.key = fingerprint(*values, leave_out=("idle", "layout_only"))[:24]
        self.folder = root / self.key
        # The same bytes may be a picture of one source and a video of another.
        self.names = {
            path: f"{found}{'-video' * isinstance(path, VideoPath)}"
            for path, found in image_digests(sorted(set(images))).items()
        }
        # Name -> its file, and its place among the file's names.
        self.place: dict[str, tuple[Path, int]] = {}

    def fill(self, trainer: Any = None) -> None:
        """Compute the features that are not there yet, and anew those that are damaged.

        Args:
            trainer: Whose devices share the work; None computes all here.
        """
        several = trainer is not None and trainer.world_size > 1
        with ExitStack() as held:
            if not several or trainer.is_global_zero:
                damaged = self._damaged()
                if damaged or self._missing():
                    held.enter_context(lock(self.folder / "lock", "features"))
                    for path, reason in self._damaged() if damaged else ():
                        warnings.warn(f"{reason}; computed anew", stacklevel=2)
                        path.unlink(missing_ok=True)
            if several:
                trainer.strategy.barrier()
                self._fill(trainer.global_rank, trainer.world_size)
                trainer.strategy.barrier()
            else:
                self._fill()
        if several:
            self._fill()  # none, unless machines have disks of their own

    def _missing(self) -> dict[str, Path]:
        """Pictures whose features are nowhere, by name, after a look at what is there now."""
        self.place = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            try:
                names = sorted(tensor_names(file, self._key(file)) - {SIZES})
            except (Damaged, FileNotFoundError):
                continue
            self.place |= {name: (file, number) for number, name in enumerate(names)}
        return {name: path for path, name in self.names.items() if name not in self.place}

    def _damaged(self) -> list[tuple[Path, Damaged]]:
        """Files of which something that is wanted is not what was stored, and what."""
        wanted, found = set(self.names.values()), []
        for file in shown(sorted(self.folder.glob("*.safetensors")), "features checked"):
            try:
                names = tensor_names(file, self._key(file)) & {*wanted, SIZES}
                read_tensors(file, self._key(file), sorted(names))
            except Damaged as error:
                found.append((file, error))
            except FileNotFoundError:  # another process has just removed it
                continue
        return found

    def _fill(self, rank: int = 0, world: int = 1) -> None:
        """Compute this process's share of what is missing."""
        missing = list(self._missing().items())
        chunks = [missing[n : n + CHUNK] for n in range(0, len(missing), CHUNK)][rank::world]
        with progress("features", sum(map(len, chunks))) as bar:
            for chunk in chunks:
                end = bar.n + len(chunk)
                found = self._compute(dict(sorted(chunk)), bar)
                name = hashlib.sha256(" ".join(sorted(found)).encode()).hexdigest()[:24]
                file = self.folder / f"{name}.safetensors"
                write_tensors(file, found, self._key(file))
                bar.update(end - bar.n)
        if chunks:
            self._missing()

    def _key(self, file: Path) -> str:
        return f"{self.key}/{file.stem}"

    @torch.no_grad()
    def _compute(self, images: dict[str, Path], bar: tqdm) -> dict[str, Tensor]:
        """Features of some pictures by name, and the pictures' sizes in the names' order."""
        weights = itertools.chain(self.encoder.parameters(), self.encoder.buffers())
        device = next(weights, torch.empty(0)).device
        loaded = [self.views.load(path) for path in images.values()]
        views = [self.views.pixels(image, self.encoder.view_spec) for image in loaded]
        groups = torch.cat(views).split(VIEWS)  # videos have many views
        found = []
        with evaluating(self.encoder):
            for group in groups:
                filled = torch.cat([group, group[:1].expand(VIEWS - len(group), *group.shape[1:])])
                found.append(self.encoder(filled.to(device))[: len(group)].cpu())
                bar.update(len(images) // len(groups))
        features = torch.cat(found).flatten(1, 2)
        pieces = features.split([len(view) for view in views])
        # Images have no frames: 0 stands for the missing third number of their size.
        sizes = torch.tensor([(*image.size, 0)[:3] for image in loaded])
        return {SIZES: sizes, **dict(zip(images, pieces, strict=True))}

    def __getitem__(self, image: Path) -> tuple[Tensor, tuple[int, ...]]:
        """Features [n, p, d] of an image's views, row by row; its width, height and frames, if any.

        Raises:
            Damaged: If they are not what was stored.
            FileNotFoundError: If they are no more there.
        """
        name = self.names[image]
        if name not in self.place:
            self._missing()
        file, number = self.place[name]
        found = read_tensors(file, self._key(file), [SIZES, name])
        return found[name], tuple(filter(None, found[SIZES][number].tolist()))


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
