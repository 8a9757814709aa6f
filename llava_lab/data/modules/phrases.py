"""3. Phrases: pictures and the short phrases that are true of them, for contrastive stages."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from llava_lab.core.messages import listed
from llava_lab.core.progress import shown
from llava_lab.data.fields import read_text
from llava_lab.data.image_folder import ImageFolder
from llava_lab.data.keys import PHRASE_KEYS
from llava_lab.data.loader import StepPart
from llava_lab.data.media.clip import image_digests
from llava_lab.data.modules.stage import StageDataModule, run_seed
from llava_lab.data.packing import on_device
from llava_lab.data.rows import FileRow, Refused
from llava_lab.data.source import Source, read_each
from llava_lab.data.verified import verified
from llava_lab.data.views.base import Views


@dataclass(frozen=True)
class PhraseBatch:
    """Pictures, every phrase that is true of one of them, and which is true of which.

    Attributes:
        pixels: [n, 3, s, s].
        phrases: Token ids [m, w], padded with -1.
        truth: [n, m], 1 where the phrase is true of the picture.
        visual_tokens: Features a picture.
        sources: File of each picture.
        counted: Which phrases [m] this part of the step counts as its work; each is one part's.
    """

    pixels: Tensor
    phrases: Tensor
    truth: Tensor
    visual_tokens: list[int]
    sources: list[str]
    counted: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def tokens(self) -> int:
        """Features and phrase tokens that are computed."""
        return sum(self.visual_tokens) + int((self.phrases[self.counted] >= 0).sum())

    @property
    def connected_tokens(self) -> int:
        """None: the encoder's features are compared as they are."""
        return 0

    @property
    def encoded_tokens(self) -> int:
        """Visual tokens that the encoder computes."""
        return sum(self.visual_tokens)

    @property
    def lm_tokens(self) -> int:
        """None: the LM takes no part."""
        return 0

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The batch with all its tensors on another device."""
        return on_device(self, device, non_blocking)


class PhraseDataModule(StageDataModule):
    """Pictures with phrases: JSON lines of `{id, image, phrases: [...]}`.

    Args:
        path: The file.
        images: Folder of the pictures.
        views: How a picture becomes one view.
        batch_size: Pictures an optimizer step, over all devices.
        epochs: Times that the rows are read.
        max_steps: Stop after so many optimizer steps, or null.
        num_workers: Processes that load pictures beside the main one.
    """

    idle = (*StageDataModule.idle, "path", "images")

    def __init__(
        self,
        path: Path,
        images: Path,
        views: Views,
        batch_size: int,
        epochs: int = 1,
        max_steps: int | None = None,
        num_workers: int = 0,
    ):
        super().__init__(batch_size, None, epochs, max_steps, False, num_workers)
        self.path, self.images, self.views = Path(path), Path(images), views
        self.rows: list[tuple[Path, tuple[str, ...]]] = []

    def read(self) -> None:
        """Read and validate the rows, once."""
        if self.rows:
            return
        source = Source(self.path, self.images)
        self.rows = read_each(source, run_seed(), _read_phrases)

    def check(self, model: Any) -> None:
        """Refuse rows that cannot be read and pictures that cannot be decoded, too."""
        super().check(model)
        self.read()
        images = [image for image, _ in self.rows]
        _, faults = verified(images, self.views, self.path.name)
        if faults:
            examples = listed(list(faults.values()), 10)
            raise ValueError(f"{self.path}: {len(faults)} pictures cannot be read:\n  {examples}")

    def setup(self, stage: str) -> None:
        """Read the rows."""
        self.read()

    def content(self) -> str:
        """Hash of phrases and image bytes."""
        self.read()
        total = hashlib.sha256()
        digests = image_digests(image for image, _ in self.rows)
        for image, phrases in shown(self.rows, "digests of phrases"):
            total.update(json.dumps([digests[image], phrases]).encode())
        return total.hexdigest()

    def lengths(self) -> tuple[list[int], list[int]]:
        """All alike."""
        return [1] * len(self.rows), [1] * len(self.rows)

    def train_rows(self) -> "Pictures":
        """Pictures and phrases, loaded at access."""
        return Pictures(self.rows, self.views, self.model.encoder.view_spec)

    def collate(self, rows: list[Any], part: StepPart) -> PhraseBatch:
        """Pictures with the phrases of the whole step, also of what other devices show.

        A phrase that several pictures share stands once and is true of all of them.
        """
        every = sorted({phrase for index in part.step for phrase in self.rows[index][1]})
        index = {phrase: place for place, phrase in enumerate(every)}
        truth = torch.zeros(len(rows), len(every))
        for number, (_, phrases) in enumerate(rows):
            truth[number, [index[phrase] for phrase in phrases]] = 1.0
        ids = self.model.llm.tokenizer(every, add_special_tokens=False)["input_ids"]
        width = max(map(len, ids))
        padded = torch.tensor([each + [-1] * (width - len(each)) for each in ids])
        rows_, columns = self.model.encoder.view_spec.grid
        return PhraseBatch(
            pixels=torch.cat([pixels for pixels, _ in rows]),
            phrases=padded,
            truth=truth,
            visual_tokens=[rows_ * columns] * len(rows),
            sources=[self.rows[number][0].name for number in part.rows],
            counted=torch.arange(len(every)) % part.parts == part.number,
        )


def _read_phrases(row: FileRow, folder: ImageFolder | None) -> tuple[Path, tuple[str, ...]]:
    PHRASE_KEYS.check(row.value)
    image, phrases = row.value.get("image"), row.value.get("phrases")
    if not isinstance(image, str) or not isinstance(phrases, list) or not phrases:
        raise Refused("a row needs `image` and a list of `phrases`")
    assert folder is not None
    read = tuple(read_text(phrase, "a phrase") for phrase in phrases)
    if not all(phrase.strip() for phrase in read):
        raise Refused("a phrase is empty")
    return folder.find(image), read


class Pictures(Dataset):
    """Pictures and phrases, loaded at access."""

    def __init__(self, rows: list[tuple[Path, tuple[str, ...]]], views: Views, view_spec: Any):
        self.rows, self.views, self.view_spec = rows, views, view_spec

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, tuple[str, ...]]:
        path, phrases = self.rows[index]
        return self.views.pixels(self.views.load(path), self.view_spec), phrases
