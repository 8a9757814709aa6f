"""3. Image data: rows of LLaVA-format files with images, videos or neither, read and checked."""

import functools
import hashlib
import json
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from llava_lab.core.cache import remembered
from llava_lab.core.numbers import at_least, shares
from llava_lab.core.progress import shown
from llava_lab.core.records import json_sha256
from llava_lab.data import mix
from llava_lab.data.chat import Masking, Template, get_template
from llava_lab.data.image_folder import VideoPath
from llava_lab.data.loader import StageLoader, deal
from llava_lab.data.media.clip import shown_digests
from llava_lab.data.modules.encoded import EncodedRows, Position, ViewLoader
from llava_lab.data.modules.lengths import costs_of, rule_of
from llava_lab.data.modules.stage import StageDataModule, limited, run_seed
from llava_lab.data.rows import BadRow
from llava_lab.data.sample import Sample
from llava_lab.data.shards import is_shards
from llava_lab.data.source import ParsedRows, Source
from llava_lab.data.table import Samples, files_of, read_table
from llava_lab.data.verified import verified
from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.base import Views
from llava_lab.data.views.reduced import Reduced
from llava_lab.data.views.video import Frames


class ImageDataModule(StageDataModule):
    """Rows of LLaVA-format files, each with images or none.

    Args:
        sources: Files, their image folders and how much of each is read.
        views: How an image becomes views.
        template: Chat template of this stage; null takes the LM's.
        max_length: Longest row in tokens, visual tokens included; null takes the LM's.
        masking: `correct` supervises the assistant's words and their end; `released` is what the
            released models of that template were trained on; `all` supervises everything, as
            pretraining.
        image_position: Where the image stands in the first turn: where the file has it, first,
            last, or first or last at random as in LLaVA's paper.
        hold_out: Share of the rows kept from training, by image, for the held-out loss.
        feature_store: Folder in which features of a frozen encoder are kept, in float32; null
            computes them anew for every batch, in the trainer's precision.
        batch_size: Rows an optimizer step, over all devices: the number that papers give.
        micro_batch_size: Rows a device computes at once; null computes its whole share. The rest
            of `batch_size` is accumulated.
        epochs: Times that the rows are read.
        max_steps: Stop after so many optimizer steps, or null.
        group_by_modality: Batches of one modality and of similar lengths, as LLaVA-1.5's second
            stage: text, or all that is seen; `video` sets videos apart from images, too.
        deal_by: What a row counts where a step's rows are dealt to devices and micro-batches: its
            words, as the released sampler counts, or its tokens, visual ones included, so that all
            take as long. The rows of a step are the same.
        num_workers: Processes that load rows beside the main one.
    """

    idle = ("num_workers", "feature_store", "sources.path", "sources.images")
    takes: tuple[type, ...] = (Views,)

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
        deal_by: Literal["words", "tokens"] = "words",
        num_workers: int = 0,
    ):
        super().__init__(
            batch_size, micro_batch_size, epochs, max_steps, group_by_modality, num_workers
        )
        at_least(1, max_length=max_length)
        shares(below=1, hold_out=hold_out)
        mix.check_names(sources)
        self.sources, self.views, self.template = sources, views, template
        self.max_length = max_length
        self.masking, self.image_position, self.held_share = masking, image_position, hold_out
        self.feature_store, self.deal_by = feature_store, deal_by
        self.samples: Sequence[Sample] = []
        self.held: Sequence[Sample] = []
        self.checked = False

    def read(self, model: Any = None) -> None:
        """Read the rows, once; with a model, also find those that it could not be trained on.

        Raises:
            BadRows: If rows are bad and their source does not skip them, or has no others.
        """
        if self.samples and (self.checked or model is None):
            return
        every = [self.parsed(each) for each in self.sources]
        if model is not None:
            every = [self.usable(model, found) for found in every]
            self.checked = True
        self.skipped = {}
        for found in every:
            found.warn()
            if found.bad:  # several sources may read one file
                path = str(found.source.path)
                self.skipped[path] = self.skipped.get(path, 0) + len(found.bad)
        items: list[Any] = [found.items for found in every]
        rows = functools.reduce(operator.add, items)
        self.samples, self.held = self.split(rows)

    def split(self, rows: Any) -> tuple[Sequence[Sample], Sequence[Sample]]:
        """Rows to train on, and rows that are held out."""
        return mix.split(self.sources, rows, self.held_share, f"stages.{self.name}.data")

    def parsed(self, source: Source) -> ParsedRows[Sample]:
        """The rows of a source."""
        return read_table(source, run_seed(), self.views.videos)

    def usable(self, model: Any, found: ParsedRows[Sample]) -> ParsedRows[Sample]:
        """Add to the bad rows of a source those that the model could not be trained on.

        Every picture is decoded and every row measured, so that no fault ends a stage later on.
        """
        items, reasons = found.items, self.refused(model, found)
        bad = [BadRow(items[at].source, items[at].id, reasons[at]) for at in sorted(reasons)]
        if isinstance(items, Samples):
            kept: Sequence[Sample] = items.without(reasons)
        else:
            kept = [row for number, row in enumerate(items) if number not in reasons]
        every = [*found.bad, *bad]
        return ParsedRows(found.source, kept, every, found.total, "cannot be trained on").settled()

    def refused(self, model: Any, found: ParsedRows[Sample]) -> dict[int, str]:
        """Why rows cannot be trained on, by their number; of a table this is found out once."""
        rows, what = self.encoded(found.items, model), Path(found.source.path).name
        if not isinstance(found.items, Samples):
            return rows.refused(what)
        sizes, faults = verified(found.items.files(), self.views, what)
        measured = remembered(
            rule_of(self, model, rows, sizes, faults),
            lambda: list(rows.measured(sizes, faults, what).items()),
            f"{what}: rows measured",
        )
        return dict(measured)

    def check(self, model: Any) -> None:
        """Also refuse other views, an unknown template, and rows that cannot be trained on."""
        super().check(model)
        if not isinstance(self.views, self.takes):
            given, ours, taken = type(self.views), type(self).__name__, self.takes[0]
            raise ValueError(
                f"stages.{self.name}.data: views is {given.__name__}; {ours} takes "
                f"{taken.__module__}.{taken.__qualname__}"
            )
        self.check_views(model)
        self.read(model)

    def check_views(self, model: Any) -> None:
        """Refuse views that the model cannot follow or a row cannot hold."""
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
        return files_of(self.samples) + files_of(self.held)

    def content(self) -> str:
        """Hash of the messages and image bytes of all rows, training and held-out rows apart."""
        self.read()
        parts: list[Any] = [self.content_of(self.samples), self.content_of(self.held)]
        if sum(is_shards(Path(source.path)) for source in self.sources) > 1:
            # The place of a row names its shard, and not the folder, whose weight it has.
            parts += [
                mix.counts(each) for each in (self.samples, self.held) if isinstance(each, Samples)
            ]
        return " ".join(map(str, parts))

    @classmethod
    def content_of(cls, samples: Sequence[Sample]) -> str:
        """Hash of messages and of what images show; of a table it is taken once."""
        known = shown_digests(files_of(samples))
        if not isinstance(samples, Samples):
            return cls._hash(samples, known)
        key = json_sha256([samples.key(), list(known.values())])
        return remembered(key, lambda: cls._hash(samples, known), "digests of rows")

    @staticmethod
    def _hash(samples: Sequence[Sample], known: Mapping[Path, str]) -> str:
        total = hashlib.sha256()
        for sample in shown(samples, "digests of rows"):
            digests = [known[image] for image in sample.images]
            # A row's place decides where its image stands, if that is drawn at random.
            place = Path(sample.source).name
            total.update(json.dumps([place, sample.messages, digests]).encode())
        return total.hexdigest()

    def lengths(self) -> tuple[list[int], list[int]]:
        """Words of all messages of each row, as the released sampler counts, and its modality."""
        samples, apart = self.samples, self.group_by_modality == "video"
        if isinstance(samples, Samples):
            return samples.words(), samples.modalities(apart)
        words = [sum(len(text.split()) for _, text in row.messages) for row in samples]
        return words, [_modality(row, apart) for row in samples]

    def costs(self) -> Sequence[int]:
        """What each training row counts where the rows of a step are dealt."""
        return super().costs() if self.deal_by == "words" else costs_of(self, self.model)

    def epoch_rows(self, epoch: int) -> Sequence[int] | None:
        """Training rows that an epoch reads, by the weights of their sources."""
        weights = [source.weight for source in self.sources]
        if all(weight in (0, 1) for weight in weights):
            return None
        assert isinstance(self.samples, Samples)
        sizes = mix.counts(self.samples)
        return mix.epoch_rows(sizes, weights, run_seed(), str(self.name), epoch)

    def _templates(self, llm: Any, samples: Sequence[Sample]) -> dict[str | None, Template]:
        """Template of each name that a sample has; a sample without one has the stage's."""
        tables = isinstance(samples, Samples)
        names = samples.templates() if tables else {sample.template for sample in samples}
        stages = self.template or llm.template
        return {name: get_template(name or stages, self.masking) for name in names}

    def encoded(self, samples: Sequence[Sample], model: Any = None) -> EncodedRows:
        """Samples, encoded at access."""
        model = model or self.model
        llm = model.llm
        loader = ViewLoader(self.views, model.view_spec, self.features)
        templates = self._templates(llm, samples)
        length = llm.length(self.max_length)
        return EncodedRows(
            samples, templates, llm.tokenizer, loader, self.image_position, length, llm.context
        )

    def train_rows(self) -> EncodedRows:
        """Training rows, encoded at access."""
        return self.encoded(self.samples)

    def val_dataloader(self) -> StageLoader | list[Any]:
        """Held-out rows, each on one of the devices, or nothing; of named sources apart."""
        if not self.held or not self.held_limit:
            return []
        trainer: Any = self.trainer
        size = self.micro_batch_size or min(self.batch_size, 32)
        parts: Any = [(None, range(len(self.held)))]
        if isinstance(self.held, Samples) and any(source.name for source in self.sources):
            parts = mix.held_parts(self.sources, self.held)
        steps = []
        for source, rows in parts:
            batches = limited(math.ceil(len(rows) / size), self.held_limit)
            part = rows[: batches * size]
            steps += deal(part, size, trainer.global_rank, trainer.world_size, source)
        return StageLoader(self.encoded(self.held), steps, self.collate)


def _modality(row: Sample, videos_apart: bool) -> int:
    """0 for text, 1 for images; 2 for videos where they are apart."""
    video = videos_apart and any(isinstance(image, VideoPath) for image in row.images)
    return 2 if video else int(bool(row.images))


class AnyResDataModule(ImageDataModule):
    """Rows whose images become a base view and tiles; `views` is an AnyRes, or Reduced.

    The tiles of a whole batch are encoded at once, however many an image has.
    """

    takes = (AnyRes, Reduced)


class VideoDataModule(ImageDataModule):
    """Rows with videos, with images, or with neither, mixed; `views` is a Frames."""

    takes = (Frames,)
