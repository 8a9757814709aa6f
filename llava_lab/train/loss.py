"""10. Loss: hidden states of a batch [t, d] -> one number, logits only where a label asks."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from llava_lab.data.packing import Batch
from llava_lab.model.llava import Llava
from llava_lab.train.cross_entropy import linear_cross_entropy

# Sums and what they are divided by, by name. Both add up over micro-batches and devices.
Ratios = dict[str, tuple[Tensor | float, Tensor | float]]


class Loss(nn.Module, ABC):
    """What a stage minimises: the sum of one or more terms, each a sum divided by a count.

    An optimizer step may be split into micro-batches and over devices. Of each batch a loss gives
    sums and counts, and not means: so the step's loss can be that of all its rows together.

    A batch is what the stage's DataModule makes of rows: a `StageBatch`, and whatever else the loss
    reads of it.
    """

    rows_apart = True  # each row's loss hangs on that row alone, and not on rows of its batch

    @abstractmethod
    def counts(self, batch: Any) -> dict[str, int]:
        """What the sums of each term are divided by: supervised tokens, pairs, pictures.

        It follows from the batch alone: it is needed before the model computes anything.
        """

    @abstractmethod
    def sums(self, model: Llava, batch: Any) -> tuple[Ratios, Ratios]:
        """Of a batch, the loss's terms with their `counts`, and the numbers to log beside it."""

    def prepare(self, model: Any, data: Any, trainer: Any, verb: str) -> None:
        """Compute what the loss needs of the model that its stage starts from; nothing by default.

        Args:
            model: The model.
            data: The stage's DataModule, which has read its rows.
            trainer: Whose devices share the work.
            verb: `fit` where the model is about to be trained, else `validate`.
        """

    def forward(self, model: Llava, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch alone, and the numbers to log beside it."""
        terms, numbers = self.sums(model, batch)
        return summed(terms), {name: ratio(*pair) for name, pair in numbers.items()}


def summed(terms: Ratios) -> Tensor:
    """The loss that its terms make."""
    first, *others = [total / count for total, count in terms.values()]
    return torch.as_tensor(sum(others, first))


def ratio(total: Tensor | float, count: Tensor | float) -> Tensor:
    """A mean; zero where nothing is counted, such as a precision where nothing was found."""
    least = count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
    return torch.as_tensor(total / least)


def token_losses(model: Llava, batch: Batch, hidden: Tensor | None = None) -> Tensor:
    """Cross-entropy of every target [m], in 32 bits; the head is applied at targets only.

    Args:
        model: The model.
        batch: The batch.
        hidden: Hidden states [m, d] of the batch's predictors, where they are at hand.
    """
    hidden = model(batch)[batch.predictors] if hidden is None else hidden
    head = model.llm.head()
    return linear_cross_entropy(hidden, head.weight, batch.targets, head.bias)


class NextToken(Loss):
    """Mean cross-entropy over the supervised tokens (SFT)."""

    def counts(self, batch: Batch) -> dict[str, int]:
        """Supervised tokens."""
        return {"token": len(batch.targets)}

    def sums(self, model: Llava, batch: Batch) -> tuple[Ratios, Ratios]:
        """Cross-entropy of the supervised tokens, and their share of all tokens."""
        losses = token_losses(model, batch)
        terms: Ratios = {"token": (losses.sum(), len(losses))}
        return terms, {"supervised_share": (len(losses), len(batch.ids))}
