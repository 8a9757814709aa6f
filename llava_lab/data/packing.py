"""3. Batch: encoded rows -> one packed row of tokens with its forest, views and layouts."""

from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor

from llava_lab.data.forest import Forest
from llava_lab.data.geometry import Layout
from llava_lab.data.tokens import IGNORE, VISUAL

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Segment(NamedTuple):
    """A run of tokens of one row; `parent` is the index of another segment of the row."""

    ids: list[int]
    labels: list[int]
    parent: int | None = None


@dataclass(frozen=True)
class EncodedSample:
    """One sample, encoded: its segments in the order of the tree, and what its images show.

    Attributes:
        segments: A conversation is one root; a prompt with several answers is a tree.
        views: Pixels [n, 3, s, s], or, from a feature store, the encoder's features [n, p, d].
        layouts: One for each image, in the order of the placeholders.
        source: Where the sample stands, for messages.
    """

    segments: list[Segment]
    views: Tensor | None
    layouts: list[Layout]
    source: str


@runtime_checkable
class StageBatch(Protocol):
    """What the batch of every stage has, whatever its loss reads beside it.

    All counts are those of the batch's own rows, so that they add up over micro-batches and
    devices; they are known without the model and on any device.
    """

    @property
    def sources(self) -> list[str]:
        """File and place of each row, for messages."""
        ...

    @property
    def visual_tokens(self) -> list[int]:
        """Visual tokens of each row; 0 where it has neither image nor video."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens that are computed, text and visual: what a speed in tokens a second counts."""
        ...

    @property
    def encoded_tokens(self) -> int:
        """Features that the encoder computes: 0 where they are stored."""
        ...

    @property
    def connected_tokens(self) -> int:
        """Features that the connector gets: 0 where it takes no part."""
        ...

    @property
    def lm_tokens(self) -> int:
        """Tokens that the LM computes: 0 where it takes no part."""
        ...

    def __len__(self) -> int:
        """Rows."""
        ...

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The batch with all its tensors on another device."""
        ...


@dataclass(frozen=True)
class Batch:
    """Rows packed one after another.

    Attributes:
        ids: Token ids [t], `VISUAL` where a visual token stands.
        targets: Token ids that a label asks for [m].
        predictors: Index in the row of the token that predicts each target [m].
        owners: Segment of each target [m].
        places: Index in the row of each visual token [v].
        forest: Segments of the row.
        views: Pixels [n, 3, s, s] or features [n, p, d] of all images, or None.
        layouts: One for each image.
        sources: One for each row.
        visual_tokens: Visual tokens that each row's layouts promise.
    """

    ids: Tensor
    targets: Tensor
    predictors: Tensor
    owners: Tensor
    places: Tensor
    forest: Forest
    views: Tensor | None
    layouts: list[Layout]
    sources: list[str]
    visual_tokens: list[int]

    @classmethod
    def pack(cls, rows: Sequence[EncodedSample]) -> "Batch":
        """Pack rows; each row's first segment is a root."""
        ids: list[int] = []
        labels: list[int] = []
        lengths: list[int] = []
        parents: list[int | None] = []
        for row in rows:
            first = len(lengths)
            for segment in row.segments:
                ids += segment.ids
                labels += segment.labels
                lengths.append(len(segment.ids))
                parents.append(None if segment.parent is None else first + segment.parent)
        forest = Forest(tuple(lengths), tuple(parents))
        tokens, marks = torch.tensor(ids), torch.tensor(labels)
        # The first token of a root has no predecessor, so a label there asks for nothing.
        wanted = torch.nonzero((marks != IGNORE) & (forest.previous >= 0))[:, 0]
        views = [row.views for row in rows if row.views is not None]
        return cls(
            ids=tokens,
            targets=marks[wanted],
            predictors=forest.previous[wanted],
            owners=forest.segments[wanted],
            places=torch.nonzero(tokens == VISUAL)[:, 0],
            forest=forest,
            views=torch.cat(views) if views else None,
            layouts=[layout for row in rows for layout in row.layouts],
            sources=[row.source for row in rows],
            visual_tokens=[sum(layout.tokens for layout in row.layouts) for row in rows],
        )

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def tokens(self) -> int:
        """Tokens that are computed."""
        return len(self.ids)

    @property
    def lm_tokens(self) -> int:
        """Tokens that the LM computes."""
        return len(self.ids)

    @property
    def encoded_tokens(self) -> int:
        """Features that the encoder computes: none where the views are stored features."""
        pixels = self.views is not None and self.views.ndim == 4
        return sum(layout.encoded for layout in self.layouts) if pixels else 0

    @property
    def connected_tokens(self) -> int:
        """Features that the connector gets."""
        return sum(layout.connected for layout in self.layouts)

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The batch with all its tensors on another device."""
        return on_device(self, device, non_blocking)


_Data = TypeVar("_Data", bound="DataclassInstance")


def on_device(batch: _Data, device: torch.device, non_blocking: bool = False) -> _Data:
    """A copy of a dataclass of which the fields that are tensors are on another device."""
    moved = {n: each.to(device, non_blocking=non_blocking) for n, each in tensors(batch).items()}
    return replace(batch, **moved)


def tensors(batch: object) -> dict[str, Tensor]:
    """The fields of a batch that are tensors."""
    return {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}


def pinned(batch: Any) -> Any:
    """A batch from which a GPU may copy while it computes: its fields lie in pinned memory."""
    if not is_dataclass(batch):
        return batch
    return replace(batch, **{name: each.pin_memory() for name, each in tensors(batch).items()})


def work(batch: StageBatch) -> dict[str, int]:
    """How much a batch computes, in samples and tokens.

    Raises:
        ValueError: If the batch lacks something that `StageBatch` names.
    """
    if not isinstance(batch, StageBatch):
        names = ("__len__", *(name for name in dir(StageBatch) if not name.startswith("_")))
        missing = [name for name in names if not hasattr(batch, name)]
        raise ValueError(
            f"{type(batch).__name__} is no batch of a stage: it has no {', '.join(missing)}; see "
            "llava_lab.data.packing.StageBatch"
        )
    return {
        "samples": len(batch),
        "tokens": batch.tokens,
        "visual_tokens": sum(batch.visual_tokens),
        "visual_samples": sum(count > 0 for count in batch.visual_tokens),
        "encoded_tokens": batch.encoded_tokens,
        "connected_tokens": batch.connected_tokens,
        "lm_tokens": batch.lm_tokens,
    }
