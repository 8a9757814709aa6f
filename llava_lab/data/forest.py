"""3. Forest: segments packed into one row without padding, and the trees that they form.

A segment is a run of tokens with a parent segment or none. A token attends to the segments of its
ancestors and causally to its own, and its position continues from its parent:

    SFT         root, root, root               every conversation is a root
    DPO         root(prompt) -> chosen, rejected
    evaluation  root(image) -> question, question, question ...
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Forest:
    """Segments of one packed row, in the order of a walk through each tree, one tree after another.

    Attributes:
        lengths: Tokens in each segment, in the order of the row.
        parents: Index of each segment's parent, or None for a root.

    Example:
        `Forest((3, 2, 1), (None, 0, 0))` is a prompt of 3 tokens with two answers; the positions
        are 0 1 2 | 3 4 | 3, and the last token sees the prompt and itself.
    """

    lengths: tuple[int, ...]
    parents: tuple[int | None, ...]

    def __post_init__(self) -> None:
        assert len(self.lengths) == len(self.parents)
        assert all(length > 0 for length in self.lengths), "a segment without tokens"
        path: list[int] = []
        for index, parent in enumerate(self.parents):
            while path and path[-1] != parent:
                path.pop()
            assert parent is None or path, "what is below a segment must be contiguous"
            path.append(index)

    @property
    def tokens(self) -> int:
        """Tokens in the row."""
        return sum(self.lengths)

    @cached_property
    def starts(self) -> list[int]:
        """Index of each segment's first token in the row."""
        starts = [0]
        for length in self.lengths[:-1]:
            starts.append(starts[-1] + length)
        return starts

    @cached_property
    def depths(self) -> list[int]:
        """Position of each segment's first token: the tokens of all its ancestors."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent is None else depths[parent] + self.lengths[parent])
        return depths

    @cached_property
    def trees(self) -> list[range]:
        """Segments of each tree."""
        roots = [index for index, parent in enumerate(self.parents) if parent is None]
        ends = [*roots[1:], len(self.parents)]
        return [range(root, end) for root, end in zip(roots, ends, strict=True)]

    @cached_property
    def positions(self) -> Tensor:
        """Position ids [t]."""
        pieces = zip(self.depths, self.lengths, strict=True)
        return torch.cat([torch.arange(depth, depth + length) for depth, length in pieces])

    @cached_property
    def segments(self) -> Tensor:
        """Segment index of every token [t]."""
        return torch.repeat_interleave(torch.tensor(self.lengths))

    @cached_property
    def previous(self) -> Tensor:
        """Index of the token before each token on its path [t]; -1 for the first of a root."""
        previous = torch.arange(-1, self.tokens - 1)
        for start, parent in zip(self.starts, self.parents, strict=True):
            previous[start] = -1 if parent is None else self.end(parent) - 1
        return previous

    def end(self, segment: int) -> int:
        """Index after the segment's last token."""
        return self.starts[segment] + self.lengths[segment]

    def path(self, segment: int) -> list[int]:
        """Segments from the root down to this one."""
        path = [segment]
        while (parent := self.parents[path[-1]]) is not None:
            path.append(parent)
        return path[::-1]

    @property
    def leaves(self) -> list[int]:
        """Segments without children."""
        inner = set(self.parents)
        return [index for index in range(len(self.parents)) if index not in inner]

    @cached_property
    def kinship(self) -> Tensor:
        """Whether segment j is segment i or one of its ancestors [i, j]."""
        kin = torch.zeros(len(self.parents), len(self.parents), dtype=torch.bool)
        for index in range(len(self.parents)):
            kin[index, self.path(index)] = True
        return kin
