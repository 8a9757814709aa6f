"""3. Batch: encoded rows -> one packed row of tokens with its forest, views and layouts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llava_lab.data.chat import IGNORE
from llava_lab.data.forest import Forest
from llava_lab.data.geometry import Layout


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


@dataclass(frozen=True)
class Batch:
    """Rows packed one after another.

    Attributes:
        ids: Token ids [t], `VISUAL` where a visual token stands.
        targets: Token ids that a label asks for [m].
        predictors: Index in the row of the token that predicts each target [m].
        owners: Segment of each target [m].
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
        marks = torch.tensor(labels)
        # The first token of a root has no predecessor, so a label there asks for nothing.
        wanted = torch.nonzero((marks != IGNORE) & (forest.previous >= 0))[:, 0]
        views = [row.views for row in rows if row.views is not None]
        return cls(
            ids=torch.tensor(ids),
            targets=marks[wanted],
            predictors=forest.previous[wanted],
            owners=forest.segments[wanted],
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
        """Visual tokens that the encoder computes: none where the views are stored features."""
        pixels = self.views is not None and self.views.ndim == 4
        return sum(self.visual_tokens) if pixels else 0

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """The batch on another device; the forest is plain integers and stays."""
        names = ("ids", "targets", "predictors", "owners", "views")
        moved = {name: getattr(self, name) for name in names}
        return replace(
            self,
            **{
                name: tensor.to(device, non_blocking=non_blocking)
                for name, tensor in moved.items()
                if tensor is not None
            },
        )


def work(batch: Any) -> dict[str, int]:
    """How much a batch computes, in samples and tokens."""
    return {
        "samples": len(batch),
        "tokens": batch.tokens,
        "visual_tokens": sum(batch.visual_tokens),
        "visual_samples": sum(count > 0 for count in batch.visual_tokens),
        "encoded_tokens": batch.encoded_tokens,
        "lm_tokens": batch.lm_tokens,
    }
