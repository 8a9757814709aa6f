"""3. Answers: prompts with answers -> trees of one prompt, with what a reference says of them."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from llava_lab.data.chat import TokenizerTemplate
from llava_lab.data.geometry import Layout
from llava_lab.data.image_folder import ImageFolder, VideoPath
from llava_lab.data.loader import StepPart
from llava_lab.data.modules.encoded import EncodedRows
from llava_lab.data.modules.image import ImageDataModule
from llava_lab.data.modules.stage import run_seed
from llava_lab.data.packing import Batch, EncodedSample, Segment
from llava_lab.data.rows import FileRow
from llava_lab.data.sample import Sample
from llava_lab.data.source import ParsedRows, Source, read_source
from llava_lab.data.split import hold_out
from llava_lab.data.tokens import IGNORE
from llava_lab.data.views.base import Views


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


class References(Protocol):
    """Numbers that the model that a stage starts from gives for the stage's rows."""

    def __getitem__(self, sample: Sample) -> Tensor:
        """Log-probabilities of a row's answers, in their order."""
        ...

    def hidden_of(self, sample: Sample) -> ReferenceHidden | None:
        """Of a held-out row, what the reference's distributions follow from."""
        ...


class AnswerRow(NamedTuple):
    """A prompt with its answers, encoded; with what the reference says of them, where it is known.

    Attributes:
        row: The prompt is the root, its answers are the children.
        before: What the reference's distributions follow from, of a held-out row.
        reference: Summed log-probabilities of the answers under the reference.
    """

    row: EncodedSample
    before: ReferenceHidden | None = None
    reference: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class AnswerBatch(Batch):
    """Prompts with as many answers each, packed; every target is a token of an answer.

    Attributes:
        answers: Segments of the answers, a row for each prompt [n, answers].
        reference: Summed log-probabilities of the answers, shaped as `answers`, under the model
            that the stage started from, or None.
        before: Of held-out rows, what that model's distributions at the targets follow from.
    """

    answers: Tensor
    reference: Tensor | None = None
    before: ReferenceHidden | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The batch with all its tensors on another device."""
        moved = super().to(device, non_blocking)
        return moved if self.before is None else replace(moved, before=self.before.to(device))

    @classmethod
    def of(cls, rows: Sequence[Any]) -> Self:
        """Pack rows, each an `AnswerRow`."""
        batch = Batch.pack([each.row for each in rows])
        found = [each.reference for each in rows if each.reference is not None]
        before = [each.before for each in rows if each.before is not None]
        parents = batch.forest.parents
        children = [index for index, parent in enumerate(parents) if parent is not None]
        return cls(
            **vars(batch),
            answers=torch.tensor(children).view(len(batch), -1),
            reference=torch.stack(found) if found else None,
            before=ReferenceHidden.pack(before) if before else None,
        )


class EncodedAnswers(EncodedRows):
    """Prompts with answers, encoded at access; with the reference's numbers, if stored."""

    references: References | None = None

    def __getitem__(self, index: int) -> Any:
        sample = self.samples[index]
        views, layouts = self.loader(sample.images)
        row = EncodedSample(self.tree(sample, layouts), views, layouts, sample.source)
        if self.references is None:
            return AnswerRow(row)
        return AnswerRow(row, self.references.hidden_of(sample), self.references[sample])

    def tree(self, sample: Sample, layouts: Sequence[Layout]) -> list[Segment]:
        """The prompt's segment, and one for each of its answers.

        Raises:
            ValueError: If an answer cannot be encoded behind the prompt.
        """
        each = [self.encode(sample, turns, layouts) for turns in sample.conversations]
        for encoded in each:
            self.within(encoded)
        split = min(_prompt_length(encoded.labels) for encoded in each)
        prompt = each[0].ids[:split]
        if any(encoded.ids[:split] != prompt for encoded in each):
            raise ValueError(f"{sample.source}: the prompt reads otherwise before its answers")
        answers = [Segment(own.ids[split:], own.labels[split:], 0) for own in each]
        return [Segment(prompt, [IGNORE] * split), *answers]

    def measure(self, sample: Sample, layouts: Sequence[Layout]) -> None:
        """Refuse what `tree` would refuse.

        Raises:
            ValueError: With the reason.
        """
        self.tree(sample, layouts)


def _prompt_length(labels: Sequence[int]) -> int:
    return next(place for place, label in enumerate(labels) if label != IGNORE)


class AnswerDataModule(ImageDataModule):
    """Rows of a prompt, about an image, a video or nothing, with answers to it.

    A class of rows of its own names a `reader`, its kind of `rows` and of `batch`.

    Args:
        sources: Files, their folders of images or videos, and how much of each is read.
        views: How an image or a video becomes views.
        reference_store: Folder in which the log-probabilities of the model that the stage starts
            from are kept, for all stages that start from it and read the same rows.
        batch_size: Prompts an optimizer step, over all devices: the number that papers give.
        template: Chat template of this stage; null takes the LM's.
        max_length: Longest row in tokens, visual tokens included; null takes the LM's.
        hold_out: Share of the rows kept from training, by image, for the held-out numbers.
        feature_store: Folder in which features of a frozen encoder are kept; null computes them
            anew for every batch.
        micro_batch_size: Prompts a device computes at once; null computes its whole share. The rest
            of `batch_size` is accumulated.
        epochs: Times that the rows are read.
        max_steps: Stop after so many optimizer steps, or null.
        num_workers: Processes that load rows beside the main one.
    """

    idle = (*ImageDataModule.idle, "reference_store")
    rows: ClassVar[type[EncodedAnswers]] = EncodedAnswers
    batch: ClassVar[type[AnswerBatch]] = AnswerBatch

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
        if odd := [each for each in sources if each.name is not None or each.weight != 1]:
            raise ValueError(
                f"{odd[0].path}: sources of answers have neither a name nor a weight; repeat their "
                "rows in the file"
            )
        self.reference_store = reference_store
        self.references: References | None = None

    @abstractmethod
    def reader(self, source: Source) -> Callable[[FileRow, ImageFolder | None], Sample]:
        """The function that reads a row of a source, or refuses it."""

    def parsed(self, source: Source) -> ParsedRows[Sample]:
        """The rows of a source."""
        return read_source(source, run_seed(), self.reader(source))

    def split(self, rows: Any) -> tuple[Sequence[Sample], Sequence[Sample]]:
        """Rows to train on, and rows that are held out."""
        return hold_out(rows, self.held_share)

    def usable(self, model: Any, found: ParsedRows[Sample]) -> ParsedRows[Sample]:
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
        rows = [*self.samples, *self.held]
        chosen = self._templates(self.model.llm, rows).items()
        templates = {str(name): vars(template) for name, template in chosen}
        llm = self.model.llm
        written = [f"{self.content_of(rows)} {templates} {llm.length(self.max_length)}"]
        if any(isinstance(template, TokenizerTemplate) for _, template in chosen):
            written.append(str(llm.tokenizer.chat_template))
        return " ".join(written)

    def encoded(self, samples: Sequence[Sample], model: Any = None) -> EncodedAnswers:
        """Prompts with answers, encoded at access."""
        rows = self.rows(**vars(super().encoded(samples, model)))
        rows.references = self.references
        return rows

    def collate(self, rows: list[Any], part: StepPart) -> AnswerBatch:
        """Rows to a batch."""
        return self.batch.of(rows)
