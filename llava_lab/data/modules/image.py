"""3. DataModules: what a stage reads, in which order, how often, and through which views."""

import hashlib
import json
import math
import os
import random
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from llava_lab.data.chat import Encoded, Masking, Template, get_template, place_image
from llava_lab.data.geometry import Layout, ViewSpec
from llava_lab.data.loader import Part, StageLoader, deal, split_step, stage_steps
from llava_lab.data.media.clip import image_digest
from llava_lab.data.packing import Batch, EncodedSample, Segment, StageBatch
from llava_lab.data.rows import BadRow, FileRow, ImageFolder, VideoPath
from llava_lab.data.sample import (
    IMAGE_PLACEHOLDER,
    Found,
    Sample,
    Source,
    Turn,
    hold_out,
    read_source,
    sample_reader,
)
from llava_lab.data.verified import shown_by_time, verified
from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.base import Views
from llava_lab.data.views.video import Frames

Position = Literal["keep", "first", "first_or_last"]


class Features(Protocol):
    """Features of images that a frozen encoder computed beforehand."""

    def __getitem__(self, image: Path) -> tuple[Tensor, tuple[int, ...]]:
        """Features [n, p, d] of one image's views, and its width, height and frames, if any."""
        ...


class StageDataModule(LightningDataModule):
    """What every stage's data has: views, a budget, an order, and a fingerprint.

    Args:
        batch_size: Rows an optimizer step, over all devices: the number that papers give.
        micro_batch_size: Rows a device computes at once; null computes its whole share. The rest
            of `batch_size` is accumulated.
        epochs: Times that the rows are read.
        max_steps: Stop after so many optimizer steps, or null.
        group_by_modality: Batches of one modality and of similar lengths, as LLaVA-1.5's second
            stage: text, or all that is seen; `video` sets videos apart from images, too.
        num_workers: Processes that load rows beside the main one.
    """

    # Options that do not decide what a stage becomes; files count by their content.
    idle: ClassVar[tuple[str, ...]] = ("num_workers",)
    views: Views

    def __init__(
        self,
        batch_size: int,
        micro_batch_size: int | None = None,
        epochs: int = 1,
        max_steps: int | None = None,
        group_by_modality: bool | Literal["video"] = False,
        num_workers: int = 0,
    ):
        super().__init__()
        self.name = "stage"
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.epochs, self.max_steps = epochs, max_steps
        self.group_by_modality, self.num_workers = group_by_modality, num_workers
        self.cache: Path | None = None
        self.skipped: dict[str, int] = {}
        self.feature_store: str | None = None
        self.features: Features | None = None
        self.limit: float = 1.0
        self.held_limit: float = 1.0

    def take_limits(self, trainer: Any) -> None:
        """Take `limit_train_batches` and `limit_val_batches` over from a trainer.

        Lightning would count each device's micro-batches; here they are optimizer steps, and
        batches of held-out rows, on any number of devices.
        """
        self.limit, self.held_limit = trainer.limit_train_batches, trainer.limit_val_batches
        trainer.limit_train_batches = trainer.limit_val_batches = 1.0

    @property
    def model(self) -> Any:
        """The model whose tokenizer and encoder the rows are made for."""
        assert self.trainer is not None
        return self.trainer.lightning_module

    def accumulate(self, world: int) -> int:
        """Micro-batches of an optimizer step that each of so many devices computes."""
        for name in ("batch_size", "micro_batch_size"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"stages.{self.name}.data: {name} is {size}; it is 1 or more")
        if self.batch_size < world:
            raise ValueError(
                f"stages.{self.name}.data: batch_size {self.batch_size} is for fewer than {world} "
                "devices; use fewer devices or a larger batch"
            )
        share = math.ceil(self.batch_size / world)
        return math.ceil(share / (self.micro_batch_size or share))

    def check_views(self, model: Any) -> None:
        """Refuse views; here there is nothing to refuse."""

    def check(self, model: Any) -> None:
        """Refuse what cannot work before any stage is trained."""
        self.accumulate(world=1)

    def stored_images(self) -> list[Path]:
        """Images whose features may be stored; none by default."""
        return []

    def chat(self, model: Any) -> list[Any]:
        """What the LM's own settings decide of how rows become ids; nothing by default."""
        return []

    @abstractmethod
    def lengths(self) -> tuple[list[int], list[int]]:
        """Length of every training row, and its modality: 0 is text."""

    @abstractmethod
    def train_rows(self) -> Dataset:
        """Training rows, encoded when asked for."""

    @abstractmethod
    def content(self) -> str:
        """Hash of what the rows say and show."""

    def val_dataloader(self) -> StageLoader | list[Any]:
        """Held-out rows, or nothing."""
        return []

    def collate(self, rows: list[Any], part: Part) -> StageBatch:
        """Rows to a batch.

        Args:
            rows: The rows of one micro-batch.
            part: What of an optimizer step they are.
        """
        return Batch.pack(rows)

    def order(self) -> list[list[int]]:
        """Rows of every optimizer step of the stage, over all devices, up to the limit."""
        lengths, modalities = self.lengths()
        steps = stage_steps(
            lengths,
            modalities,
            batch_size=self.batch_size,
            epochs=self.epochs,
            max_steps=self.max_steps,
            group_by_modality=bool(self.group_by_modality),
            seed=run_seed(),
            stage=str(self.name),
        )
        return steps[: limited(len(steps), self.limit)]

    def steps(self) -> int:
        """Optimizer steps of the whole stage."""
        return len(self.order())

    def train_dataloader(self) -> StageLoader:
        """The whole stage as one pass, so that its progress bar counts to the stage's end."""
        trainer: Any = self.trainer
        rank, world = trainer.global_rank, trainer.world_size
        lengths, micro = self.lengths()[0], self.accumulate(world)
        steps = [
            split_step(step, lengths, accumulate=micro, rank=rank, world=world)
            for step in self.order()
        ]
        return StageLoader(self.train_rows(), steps, self.collate, self.num_workers)


class ImageDataModule(StageDataModule):
    """Rows of LLaVA-format files, each with images or none.

    Args:
        sources: Files, their image folders and how much of each is read.
        views: How an image becomes views.
        template: Chat template of this stage; null takes the LM's.
        max_length: Longest row in tokens, visual tokens included; null takes the LM's.
        masking: `correct` supervises the assistant's words and their end; `released` does as the
            released code of that template did; `all` supervises everything, as pretraining.
        image_position: Where the image stands in the first turn: where the file has it, first,
            or first or last at random as in LLaVA's paper.
        hold_out: Share of the rows kept from training, by image, for the held-out loss.
        feature_store: Folder in which features of a frozen encoder are kept; null computes them
            anew for every batch.
        batch_size: Rows an optimizer step, over all devices: the number that papers give.
        micro_batch_size: Rows a device computes at once; null computes its whole share. The rest
            of `batch_size` is accumulated.
        epochs: Times that the rows are read.
        max_steps: Stop after so many optimizer steps, or null.
        group_by_modality: Batches of one modality and of similar lengths, as LLaVA-1.5's second
            stage: text, or all that is seen; `video` sets videos apart from images, too.
        num_workers: Processes that load rows beside the main one.
    """

    idle = ("num_workers", "feature_store", "sources.path", "sources.images")
    takes: type = Views

    def __init__(
        self,
        sources: list[Source],
        views: Views,
        batch_size: int,
        template: str | None = None,
        max_length: int | None = None,
        masking: Masking = "correct",
        image_position: Position = "first",
        hold_out: float = 0.0,
        feature_store: str | None = None,
        micro_batch_size: int | None = None,
        epochs: int = 1,
        max_steps: int | None = None,
        group_by_modality: bool | Literal["video"] = False,
        num_workers: int = 0,
    ):
        super().__init__(
            batch_size, micro_batch_size, epochs, max_steps, group_by_modality, num_workers
        )
        self.sources, self.views, self.template = sources, views, template
        self.max_length = max_length
        self.masking, self.image_position, self.held_share = masking, image_position, hold_out
        self.feature_store = feature_store
        self.samples: list[Sample] = []
        self.held: list[Sample] = []
        self.checked = False
        if feature_store is not None:
            self.cache = Path(feature_store) / "verified"

    def read(self, model: Any = None) -> None:
        """Read the rows, once; with a model, also find those that it could not be trained on.

        Raises:
            BadRows: If rows are bad and their source does not skip them, or has no others.
        """
        if self.samples and (self.checked or model is None):
            return
        every = [read_source(each, run_seed(), self.reader(each)) for each in self.sources]
        if model is not None:
            every = [self.usable(model, found) for found in every]
            self.checked = True
        for found in every:
            found.warn()
        self.skipped = {str(found.source.path): len(found.bad) for found in every if found.bad}
        rows = [row for found in every for row in found.items]
        self.samples, self.held = hold_out(rows, self.held_share)

    def reader(self, source: Source) -> Callable[[FileRow, ImageFolder | None], Sample]:
        """What reads a row of a source as a sample, or refuses it."""
        return sample_reader(source, self.views.videos)

    def usable(self, model: Any, found: Found[Sample]) -> Found[Sample]:
        """Add to the bad rows of a source those that the model could not be trained on.

        Every picture is decoded and every row measured, so that no fault ends a stage later on.
        """
        path = Path(found.source.path)
        rows = self.encoded(found.items, model)
        reasons = rows.refused(self.cache, path.name)
        bad = [
            BadRow(row.source, row.id, reasons[number])
            for number, row in enumerate(found.items)
            if number in reasons
        ]
        kept = [row for number, row in enumerate(found.items) if number not in reasons]
        every = [*found.bad, *bad]
        return Found(found.source, kept, every, found.total, "cannot be trained on").settled()

    def check(self, model: Any) -> None:
        """Refuse other views, an unknown template, and rows that it cannot train on, too."""
        super().check(model)
        if not isinstance(self.views, self.takes):
            given, ours, taken = type(self.views), type(self).__name__, self.takes
            raise ValueError(
                f"stages.{self.name}.data: views is {given.__name__}; {ours} takes "
                f"{taken.__module__}.{taken.__qualname__}"
            )
        self.check_views(model)
        self.read(model)

    def check_views(self, model: Any) -> None:
        """Refuse one that the model cannot follow or a row cannot hold."""
        model.check_views(self.views, model.llm.length(self.max_length))

    def chat(self, model: Any) -> list[Any]:
        """Template and length, which are the LM's where the stage names none."""
        llm = model.llm
        template = self.template or llm.template
        return [template, llm.tokenizer.chat_template, llm.length(self.max_length)]

    def setup(self, stage: str) -> None:
        """Read the rows."""
        self.read(self.model)

    def stored_images(self) -> list[Path]:
        """Images of all rows."""
        return [image for sample in self.samples + self.held for image in sample.images]

    def content(self) -> str:
        """Hash of what is said and of image bytes of all rows, those held out apart."""
        self.read()
        return f"{self.content_of(self.samples)} {self.content_of(self.held)}"

    @staticmethod
    def content_of(samples: Sequence[Sample]) -> str:
        """Hash of what is said and of image bytes."""
        total = hashlib.sha256()
        known: dict[Path, str] = {}
        for sample in samples:
            for image in sample.images:
                known[image] = known.get(image) or image_digest(image)
            shown = [known[image] for image in sample.images]
            # A row's place decides where its image stands, if that is drawn at random.
            place = Path(sample.source).name
            total.update(json.dumps([place, sample.said, shown]).encode())
        return total.hexdigest()

    def lengths(self) -> tuple[list[int], list[int]]:
        """Words of all that is said, as the released sampler counts, and modalities."""
        words = [sum(len(text.split()) for _, text in row.said) for row in self.samples]
        apart = self.group_by_modality == "video"
        return words, [_modality(row, apart) for row in self.samples]

    def _templates(self, llm: Any, samples: Sequence[Sample]) -> dict[str | None, Template]:
        """Template of each name that a sample bears; a sample that bears none has the stage's."""
        names = {sample.template for sample in samples}
        stages = self.template or llm.template
        return {name: get_template(name or stages, self.masking) for name in names}

    def encoded(self, samples: Sequence[Sample], model: Any = None) -> "EncodedRows":
        """Samples that are encoded when asked for."""
        model = model or self.model
        llm = model.llm
        loader = ViewLoader(self.views, model.encoder.view_spec, self.features)
        templates = self._templates(llm, samples)
        length = llm.length(self.max_length)
        return EncodedRows(
            samples, templates, llm.tokenizer, loader, self.image_position, length, llm.context
        )

    def train_rows(self) -> "EncodedRows":
        """Training rows, encoded when asked for."""
        return self.encoded(self.samples)

    def val_dataloader(self) -> StageLoader | list[Any]:
        """Held-out rows, each on one of the devices, or nothing."""
        if not self.held or not self.held_limit:
            return []
        trainer: Any = self.trainer
        size = self.micro_batch_size or min(self.batch_size, 32)
        batches = limited(math.ceil(len(self.held) / size), self.held_limit)
        rows = min(len(self.held), batches * size)
        steps = deal(rows, size, trainer.global_rank, trainer.world_size)
        return StageLoader(self.encoded(self.held), steps, self.collate)


def _modality(row: Sample, videos_apart: bool) -> int:
    """0 of text, 1 of what is seen; 2 of a video where these are apart."""
    video = videos_apart and any(isinstance(image, VideoPath) for image in row.images)
    return 2 if video else int(bool(row.images))


class AnyResDataModule(ImageDataModule):
    """Rows whose images become a base view and tiles; `views` is an AnyRes.

    The tiles of a whole batch are encoded at once, however many an image has.
    """

    takes = AnyRes


class VideoDataModule(ImageDataModule):
    """Rows with videos, with images, or with neither, mixed; `views` is a Frames."""

    takes = Frames


class ViewLoader:
    """Images to views: pixels, or features where a store has them."""

    def __init__(self, views: Views, view_spec: ViewSpec, store: Features | None = None):
        self.views, self.view_spec, self.store = views, view_spec, store

    def __call__(self, images: Sequence[Path]) -> tuple[Tensor | None, list[Layout]]:
        """Views of all images in order, and their layouts."""
        views, layouts = [], []
        for path in images:
            if self.store is not None:
                features, size = self.store[path]
                views.append(features)
            else:
                image = self.views.load(path)
                views.append(self.views.pixels(image, self.view_spec))
                size = image.size
            layouts.append(self.layout(size))
        return (torch.cat(views) if views else None), layouts

    def layout(self, size: tuple[int, ...]) -> Layout:
        """Where the features of an image or video of this size stand."""
        return self.views.layout(size, self.view_spec)

    def told(self, turns: Sequence[Turn], images: Sequence[Path]) -> Sequence[Turn]:
        """The turns with what the views has to say about each image behind its placeholder."""
        words = [self.views.words(path) for path in images]
        if not any(words):
            return turns
        said = iter(words)
        return [
            replace(turn, text=re.sub(IMAGE_PLACEHOLDER, lambda _: told(next(said)), turn.text))
            for turn in turns
        ]


def told(words: str) -> str:
    """A placeholder and the line behind it."""
    return f"{IMAGE_PLACEHOLDER}\n{words}" if words else IMAGE_PLACEHOLDER


class EncodedRows(Dataset):
    """Samples, encoded when asked for."""

    def __init__(
        self,
        samples: Sequence[Sample],
        templates: dict[str | None, Template],
        tokenizer: Any,
        loader: ViewLoader,
        image_position: Position,
        max_length: int,
        context: int | None = None,
    ):
        self.samples, self.templates, self.tokenizer = samples, templates, tokenizer
        self.loader, self.image_position, self.max_length = loader, image_position, max_length
        self.context = context or max_length

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        sample = self.samples[index]
        views, layouts = self.loader(sample.images)
        encoded = self.encode(sample, sample.turns, layouts)
        return EncodedSample([Segment(encoded.ids, encoded.labels)], views, layouts, sample.source)

    def encode(self, sample: Sample, turns: Sequence[Turn], layouts: Sequence[Layout]) -> Encoded:
        """Ids and labels of a sample's turns."""
        return self.templates[sample.template].encode(
            self.told(sample, turns),
            self.tokenizer,
            [layout.tokens for layout in layouts],
            source=sample.source,
            max_length=self.max_length,
        )

    def told(self, sample: Sample, turns: Sequence[Turn]) -> Sequence[Turn]:
        """The turns as they are encoded: pictures in their place, with what is said of each."""
        # By the file's name and row, so that it is the same wherever the file lies.
        chance = random.Random(f"{run_seed()}/{Path(sample.source).name}")
        placed = place_image(turns, self.image_position, chance)
        return self.loader.told(placed, sample.images)

    def refused(self, cache: Path | None, what: str) -> dict[int, str]:
        """Why samples cannot be trained on, by their number; what can is not in it.

        Args:
            cache: Folder in which it is remembered which files were decoded whole.
            what: What is read, to say how far long work is.
        """
        paths = [image for sample in self.samples for image in sample.images]
        sizes, faults = verified(paths, self.loader.views, cache, what)
        found: dict[int, str] = {}
        for number, sample in enumerate(shown_by_time(self.samples, f"{what}: rows measured")):
            if broken := [faults[image] for image in sample.images if image in faults]:
                found[number] = broken[0]
                continue
            try:
                layouts = [self.loader.layout(sizes[image]) for image in sample.images]
                self.measure(sample, layouts)
            except ValueError as problem:
                found[number] = str(problem).removeprefix(f"{sample.source}: ")
        return found

    def measure(self, sample: Sample, layouts: Sequence[Layout]) -> None:
        """Refuse what `encode` would refuse, or the LM cannot read; most is not even tokenized.

        Raises:
            ValueError: With the reason.
        """
        template, turns = self.templates[sample.template], self.told(sample, sample.turns)
        template.check(turns, self.tokenizer)
        written = "".join(piece.text for piece in template.pieces(turns, self.tokenizer))
        # A token of ASCII text is a character or more; each image begins a text of its own.
        most = len(written) + sum(layout.tokens for layout in layouts) + len(layouts) + 2
        if not written.isascii() or most > min(self.max_length, self.context):
            self.within(self.encode(sample, sample.turns, layouts))

    def within(self, encoded: Encoded) -> None:
        """Refuse more tokens than the LM can read."""
        if len(encoded.ids) > self.context:
            raise ValueError(
                f"{len(encoded.ids)} tokens, cut at max_length {self.max_length}, but the LM reads "
                f"{self.context}; set max_length to that, or scale the LM's positions "
                "(model.llm.rope_factor)"
            )


def limited(number: int, limit: float) -> int:
    """How many of a number of batches a limit of Lightning leaves: a share, or so many at most."""
    return int(number * limit) if isinstance(limit, float) else min(number, limit)


def run_seed() -> int:
    """The run's seed, as `seed_everything` has set it."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))
