"""10. Loss: hidden states of a batch [t, d] -> one number, logits only where a label asks."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear_cross_entropy

from llava_lab.data.batch import Batch
from llava_lab.model.llava import Llava

if TYPE_CHECKING:
    from llava_lab.data.preferences import Pairs


class Loss(nn.Module, ABC):
    """What a stage minimises."""

    @abstractmethod
    def forward(self, model: Llava, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch and the numbers to log beside it."""


def token_losses(model: Llava, batch: Batch, hidden: Tensor | None = None) -> Tensor:
    """Cross-entropy of every target [m]: the forest's hidden states, the head at targets only.

    Args:
        model: The model.
        batch: The batch.
        hidden: Hidden states [m, d] of the batch's predictors, where they are at hand.
    """
    hidden = model(batch)[batch.predictors] if hidden is None else hidden
    head = model.llm.head()
    # Chunks keep memory from growing with vocabulary x targets; on CPU plain is faster.
    options = nn.LinearCrossEntropyOptions() if hidden.is_cuda else None
    return linear_cross_entropy(
        hidden, head.weight, batch.targets, linear_bias=head.bias, reduction="none", options=options
    )


def answer_logps(
    model: Llava, pairs: "Pairs", hidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities of chosen and rejected answers [n, 2], and their tokens [n, 2]."""
    losses = token_losses(model, pairs, hidden).float()
    return answer_sums(-losses, pairs), answer_sums(torch.ones_like(losses), pairs)


def answer_sums(values: Tensor, pairs: "Pairs") -> Tensor:
    """Values of targets [m], summed over chosen and rejected answers [n, 2]."""
    sums = values.new_zeros(len(pairs.forest.lengths)).index_add(0, pairs.owners, values)
    return sums[pairs.answers]


class NextToken(Loss):
    """Mean cross-entropy over the supervised tokens of the batch (SFT)."""

    def forward(self, model: Llava, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch; refuses one without any target."""
        if not len(batch.targets):
            raise ValueError(f"no token to learn from in {', '.join(batch.sources)}")
        loss = token_losses(model, batch).mean()
        share = torch.tensor(len(batch.targets) / len(batch.ids))
        return loss, {"supervised_share": share}
