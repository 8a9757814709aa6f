"""10. Answers: a batch of prompts with answers -> each answer's log-probability and log-ratio."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from llava_lab.data.modules.answers import AnswerBatch, ReferenceHidden
from llava_lab.model.llava import Llava
from llava_lab.train.loss import token_losses

CHUNK = 64  # targets whose distributions are compared at once


def answer_logps(
    model: Llava, batch: AnswerBatch, hidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities of the answers, and their tokens, both shaped as `batch.answers`."""
    losses = token_losses(model, batch, hidden)
    return answer_sums(-losses, batch), answer_sums(torch.ones_like(losses), batch)


def answer_sums(values: Tensor, batch: AnswerBatch) -> Tensor:
    """Values of targets [m], summed over each answer; shaped as `batch.answers`."""
    sums = values.new_zeros(len(batch.forest.lengths)).index_add(0, batch.owners, values)
    return sums[batch.answers]


class Comparison(NamedTuple):
    """What the model and the reference say of a batch's answers, all shaped as `batch.answers`.

    Attributes:
        logps: Summed log-probabilities under the model.
        reference: Those under the reference.
        log_ratios: The first less the second.
        tokens: Tokens of the answers.
        divergences: Mean KL(model || reference) over an answer's tokens, where it is known.
    """

    logps: Tensor
    reference: Tensor
    log_ratios: Tensor
    tokens: Tensor
    divergences: Tensor | None


def compare(model: Llava, batch: AnswerBatch) -> Comparison:
    """Compare the model with the reference, whose numbers the batch has."""
    assert batch.reference is not None, "a loss's `prepare` has the DataModule store them"
    hidden = model(batch)[batch.predictors]
    logps, tokens = answer_logps(model, batch, hidden)
    found = None
    if batch.before is not None:
        found = answer_sums(divergences(model.llm.head(), hidden, batch.before), batch) / tokens
    return Comparison(logps, batch.reference, logps - batch.reference, tokens, found)


@torch.no_grad()
def divergences(head: nn.Linear, hidden: Tensor, before: ReferenceHidden) -> Tensor:
    """KL(model || reference) of the next token, exact over the vocabulary, at every target [m].

    It is that of the model's and the reference's distributions after the same words, the words
    being those of the file's answers: no estimate from samples, and not what it would be after
    the model's own words.

    Args:
        head: The model's output layer.
        hidden: The model's hidden states [m, d] at the targets.
        before: The reference's, with its output layer.
    """
    found = []
    for own, its in zip(hidden.split(CHUNK), before.hidden.split(CHUNK), strict=True):
        now = head(own).float().log_softmax(-1)
        then = linear(its, before.weight, before.bias).float().log_softmax(-1)
        found.append((now.exp() * (now - then)).sum(-1))
    return torch.cat(found)
