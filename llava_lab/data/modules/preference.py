"""3. Preferences: rows of a prompt with a chosen and a rejected answer -> trees of one prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from llava_lab.data.chat import IGNORE
from llava_lab.data.fields import (
    IMAGE_PLACEHOLDER,
    VIDEO_PLACEHOLDER,
    find_images,
    read_id,
    read_media,
)
from llava_lab.data.geometry import Layout
from llava_lab.data.keys import PREFERENCE_KEYS
from llava_lab.data.loader import Part
from llava_lab.data.modules.encoded import EncodedRows
from llava_lab.data.modules.image import ImageDataModule
from llava_lab.data.packing import Batch, EncodedSample, Segment
from llava_lab.data.pair_rows import place_marks, read_pair
from llava_lab.data.rows import FileRow, ImageFolder, Refused, VideoPath
from llava_lab.data.sample import Found, Sample, Source, Turn, read_each
from llava_lab.data.views.base import Views


@dataclass(frozen=True, kw_only=True)
class Preference(Sample):
    """A prompt with two answers; `turns` ends with the chosen one.

    Attributes:
        rejected: The answer that is worse.
    """

    rejected: str

    @property
    def said(self) -> list[list[str]]:
        """Everything that is said in the row."""
        return [*super().said, ["rejected", self.rejected]]

    @property
    def conversations(self) -> tuple[tuple[Turn, ...], ...]:
        """The conversations with the chosen and with the rejected answer."""
        return self.turns, (*self.turns[:-1], Turn("assistant", self.rejected))


def read_preferences(source: Source, seed: int) -> list[Preference]:
    """Read and validate rows `{id, image or video, prompt, chosen, rejected}`, in file order.

    TRL's rows are read, too: a list of `images`, and messages in place of texts.

    Args:
        source: Which file, which images, which rows.
        seed: Decides what "random:N" takes, together with the file's name.

    Raises:
        BadRows: Some rows are not usable and `on_bad_row` is "error", or none is usable.
    """
    return read_each(source, seed, preference_reader(source))


def preference_reader(source: Source) -> Callable[[FileRow, ImageFolder | None], Preference]:
    """What reads a row of a source as a preference, or refuses it."""
    return lambda row, folder: _read_preference(row, folder, source.template)


def _read_preference(
    row: FileRow, folder: ImageFolder | None, template: str | None = None
) -> Preference:
    PREFERENCE_KEYS.check(row.value)
    name = read_id(row.value, "id", row.number)
    value = _one_key(row.value)
    images = find_images(value, folder, videos=True)
    prompt, chosen, rejected = _read_texts(value, len(images))
    turns = (Turn("user", prompt), Turn("assistant", chosen))
    return Preference(name, turns, images, row.place, template, rejected=rejected)


def _read_texts(row: dict[str, Any], media: int) -> tuple[str, str, str]:
    """The prompt, with a placeholder for each picture or video, and the two answers."""
    prompt, chosen, rejected = read_pair(row)
    for key, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise Refused(f"{key!r} is empty")
        for mark in (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER):
            if mark in text:
                raise Refused(f"an answer holds a literal {mark}")
    if chosen.strip() == rejected.strip():
        raise Refused("'chosen' and 'rejected' are the same answer")
    return place_marks(prompt, media), chosen, rejected


def unreadable(row: dict[str, Any]) -> str | None:
    """Why a row cannot be read, whatever its files are; None where it can."""
    try:
        names, video = read_media(row)
        _read_texts(row, len(names) + (video is not None))
    except Refused as problem:
        return str(problem)
    return None


def _one_key(row: dict[str, Any]) -> dict[str, Any]:
    """The row with TRL's `images` under `image`; an empty list is no picture, as in TRL."""
    images = row.get("images")
    if images is None or images == []:
        return row
    if row.get("image") not in (None, images):
        raise Refused("has both 'image' and 'images'; keep one of them")
    return {**row, "image": images}


class ReferenceHidden(NamedTuple):
    """What the reference's distributions at targets follow from, without the reference.

    Attributes:
        hidden: Its last hidden states at the targets [m, d].
        weight: Of its output layer [v, d].
        bias: Of its output layer [v], or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    def to(self, device: torch.device) -> "ReferenceHidden":
        """The same on another device."""
        bias = None if self.bias is None else self.bias.to(device)
        return ReferenceHidden(self.hidden.to(device), self.weight.to(device), bias)

    @classmethod
    def pack(cls, rows: "Sequence[ReferenceHidden]") -> "ReferenceHidden":
        """That of rows packed one after another, which share an output layer."""
        return rows[0]._replace(hidden=torch.cat([row.hidden for row in rows]))


@dataclass(frozen=True)
class Pairs(Batch):
    """Preferences, packed: of each, the segments are its prompt, its chosen, its rejected answer.

    Attributes:
        reference: Summed log-probabilities of chosen and rejected answers under the model that the
            stage started from [n, 2], or None.
        before: Of held-out pairs, what that model's distributions at the targets follow from.
    """

    reference: Tensor | None = None
    before: ReferenceHidden | None = None

    @property
    def answers(self) -> Tensor:
        """Segments of the chosen and the rejected answers [n, 2]."""
        first = torch.arange(len(self), device=self.ids.device) * 3
        return torch.stack([first + 1, first + 2], 1)

    def to(self, device: torch.device, non_blocking: bool = False) -> "Pairs":
        """The batch on another device."""
        moved: Any = super().to(device, non_blocking)
        if self.reference is not None:
            reference = self.reference.to(device, non_blocking=non_blocking)
            moved = replace(moved, reference=reference)
        if self.before is not None:
            moved = replace(moved, before=self.before.to(device))
        return moved

    @classmethod
    def of(
        cls, rows: Sequence[tuple[EncodedSample, ReferenceHidden | None, Tensor | None]]
    ) -> "Pairs":
        """Pack rows with what their reference gave: hidden states, log-probabilities [2]."""
        batch = Batch.pack([row for row, _, _ in rows])
        found = [reference for _, _, reference in rows if reference is not None]
        before = [each for _, each, _ in rows if each is not None]
        return cls(
            **vars(batch),
            reference=torch.stack(found) if found else None,
            before=ReferenceHidden.pack(before) if before else None,
        )


class References(Protocol):
    """What the model that a stage starts from says of its rows."""

    def __getitem__(self, sample: Sample) -> Tensor:
        """Log-probabilities of a row's answers, in their order."""
        ...

    def hidden_of(self, sample: Sample) -> ReferenceHidden | None:
        """Of a held-out row, what the reference's distributions follow from."""
        ...


class EncodedPairs(EncodedRows):
    """Preferences, encoded when asked for; with the reference's numbers where there is a store."""

    references: References | None = None

    def __getitem__(
        self, index: int
    ) -> tuple[EncodedSample, ReferenceHidden | None, Tensor | None]:
        sample = self.samples[index]
        assert isinstance(sample, Preference)
        views, layouts = self.loader(sample.images)
        chosen, rejected = (self.encode(sample, turns, layouts) for turns in sample.conversations)
        split = min(_prompt_length(chosen.labels), _prompt_length(rejected.labels))
        if chosen.ids[:split] != rejected.ids[:split]:
            raise ValueError(f"{sample.source}: the prompt reads otherwise before its two answers")
        segments = [
            Segment(chosen.ids[:split], [IGNORE] * split),
            Segment(chosen.ids[split:], chosen.labels[split:], 0),
            Segment(rejected.ids[split:], rejected.labels[split:], 0),
        ]
        row = EncodedSample(segments, views, layouts, sample.source)
        if self.references is None:
            return row, None, None
        return row, self.references.hidden_of(sample), self.references[sample]

    def measure(self, sample: Sample, layouts: Sequence[Layout]) -> None:
        """Refuse a pair that `encode` would refuse, or whose answers are the same tokens.

        Raises:
            ValueError: With the reason.
        """
        chosen, rejected = (self.encode(sample, turns, layouts) for turns in sample.conversations)
        for encoded in (chosen, rejected):
            self.within(encoded)
        if chosen.ids == rejected.ids:
            raise ValueError(
                f"'chosen' and 'rejected' are the same {len(chosen.ids)} tokens, cut at max_length "
                f"{self.max_length}; raise it or remove the row"
            )


def _prompt_length(labels: Sequence[int]) -> int:
    return next(place for place, label in enumerate(labels) if label != IGNORE)


class PreferenceDataModule(ImageDataModule):
    """Rows of a prompt, about an image, a video or nothing, with a chosen and a rejected answer.

    Args:
        sources: Files, their folders of images or videos, and how much of each is read.
        views: How an image or a video becomes views.
        reference_store: Folder in which the log-probabilities of the model that the stage starts
            from are kept, for all stages that start from it and read the same rows.
        batch_size: Pairs an optimizer step, over all devices: the number that papers give.
        template: Chat template of this stage; null takes the LM's.
        max_length: Longest row in tokens, visual tokens included; null takes the LM's.
        hold_out: Share of the rows kept from training, by image, for the held-out numbers.
        feature_store: Folder in which features of a frozen encoder are kept; null computes them
            anew for every batch.
        micro_batch_size: Pairs a device computes at once; null computes its whole share. The rest
            of `batch_size` is accumulated.
        epochs: Times that the rows are read.
        max_steps: Stop after so many optimizer steps, or null.
        num_workers: Processes that load rows beside the main one.
    """

    idle = (*ImageDataModule.idle, "reference_store")

    def __init__(
        self,
        sources: list[Source],
        views: Views,
        batch_size: int,
        reference_store: str = "references",
        template: str | None = None,
        max_length: int | None = None,
        hold_out: float = 0.0,
        feature_store: str | None = None,
        micro_batch_size: int | None = None,
        epochs: int = 1,
        max_steps: int | None = None,
        num_workers: int = 0,
    ):
        super().__init__(
            sources,
            views,
            batch_size,
            template=template,
            max_length=max_length,
            hold_out=hold_out,
            feature_store=feature_store,
            micro_batch_size=micro_batch_size,
            epochs=epochs,
            max_steps=max_steps,
            num_workers=num_workers,
        )
        self.reference_store = reference_store
        self.references: References | None = None

    def reader(self, source: Source) -> Callable[[FileRow, ImageFolder | None], Preference]:
        """What reads a row of a source as a preference, or refuses it."""
        return preference_reader(source)

    def usable(self, model: Any, found: Found[Sample]) -> Found[Sample]:
        """Refuse videos where the views cannot show them, too."""
        for sample in found.items:
            if not self.views.videos and any(isinstance(p, VideoPath) for p in sample.images):
                raise ValueError(
                    f"{sample.source}: a video, which views {type(self.views).__name__} of "
                    f"stages.{self.name}.data cannot show; take llava_lab.data.views.video.Frames"
                )
        return super().usable(model, found)

    def settings(self) -> str:
        """What decides the reference's numbers beside the model: rows, template, length."""
        templates = {
            str(name): vars(template)
            for name, template in self._templates(self.model.llm, self.samples + self.held).items()
        }
        length = self.model.llm.length(self.max_length)
        return f"{self.content_of(self.samples + self.held)} {templates} {length}"

    def encoded(self, samples: Sequence[Sample], model: Any = None) -> EncodedPairs:
        """Pairs that are encoded when asked for."""
        rows = EncodedPairs(**vars(super().encoded(samples, model)))
        rows.references = self.references
        return rows

    def train_rows(self) -> EncodedRows:
        """Training rows, encoded when asked for."""
        return self.encoded(self.samples)

    def collate(self, rows: list[Any], part: Part) -> Pairs:
        """Rows to a batch."""
        return Pairs.of(rows)
