"""10. Preference losses: log-probabilities of a chosen and a rejected answer -> one number."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid, relu, sigmoid

from llava_lab.data.modules.preference import Pairs, ReferenceHidden
from llava_lab.model.llava import Llava
from llava_lab.train.loss import Loss, Ratios, answer_logps, answer_sums
from llava_lab.train.reference import store_references

CHUNK = 64  # targets whose distributions are compared at once


class PreferenceLoss(Loss):
    """A loss of pairs: what the answers gained over the reference, chosen against rejected.

    Args:
        beta: How dear it is to go away from the reference.
        sft_weight: Weight of the chosen answers' mean cross-entropy beside the loss.
    """

    def __init__(self, beta: float = 0.1, sft_weight: float = 0.0):
        super().__init__()
        if beta <= 0:
            raise ValueError(f"beta is {beta:g}; it is above 0")
        self.beta, self.sft_weight = beta, sft_weight

    @abstractmethod
    def pair_losses(self, gains: Tensor, tokens: Tensor) -> Tensor:
        """Losses of pairs.

        Args:
            gains: Log-probability less the reference's, of chosen and rejected answers [n, 2].
            tokens: Their tokens [n, 2].
        """

    def prepare(self, model: Any, data: Any, trainer: Any, verb: str) -> None:
        """Store what the model that the stage starts from says of the pairs.

        Raises:
            ValueError: Where the model is not that one.
        """
        if verb != "fit":
            raise ValueError(
                f"stages.{data.name}: `{verb}` has a model that was trained, and not the one that "
                "its preferences are measured against; results.json has the held-out numbers"
            )
        store_references(model, data, trainer)

    def counts(self, batch: Pairs) -> dict[str, int]:
        """Pairs, and where the chosen answers' cross-entropy counts, their tokens."""
        counts = {"pair": len(batch)}
        if self.sft_weight:
            counts["token"] = int(torch.isin(batch.owners, batch.answers[:, 0]).sum())
        return counts

    def sums(self, model: Llava, batch: Pairs) -> tuple[Ratios, Ratios]:
        """Losses of pairs, and what the answers gained."""
        assert batch.reference is not None, "PreferenceDataModule gives it"
        hidden = model(batch)[batch.predictors]
        logps, tokens = answer_logps(model, batch, hidden)
        gains = logps - batch.reference
        losses = self.pair_losses(gains, tokens)
        # A loss may be of answers and not of pairs; what is counted is pairs.
        terms: Ratios = {"pair": (losses.sum() / (len(losses) / len(batch)), len(batch))}
        if self.sft_weight:
            terms["token"] = (-self.sft_weight * logps[:, 0].sum(), tokens[:, 0].sum())
        rewards = self.beta * gains.detach()
        margins = rewards[:, 0] - rewards[:, 1]
        each = {
            "reward_chosen": rewards[:, 0],
            "reward_rejected": rewards[:, 1],
            "reward_margin": margins,
            "reward_accuracy": margins > 0,
            "likelihood_accuracy": logps[:, 0] > logps[:, 1],
            "reference_accuracy": batch.reference[:, 0] > batch.reference[:, 1],
            # Of the answers at hand, not of the model's own: tells drift, is no divergence.
            "gain_a_token": (gains.detach() / tokens).mean(1),
        }
        if batch.before is not None:
            found = answer_sums(divergences(model.llm.head(), hidden, batch.before), batch)
            each["kl"] = (found / tokens).mean(1)
        return terms, {name: (value.float().sum(), len(batch)) for name, value in each.items()}


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


class DPO(PreferenceLoss):
    """DPO: -log sigmoid(beta (g_chosen - g_rejected)) (Rafailov et al. 2023, eq. 7).

    Args:
        beta: How dear it is to go away from the reference.
        label_smoothing: Chance that a pair is the wrong way round (Mitchell 2023).
        sft_weight: Weight of the chosen answers' mean cross-entropy beside the loss.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0, sft_weight: float = 0.0):
        super().__init__(beta, sft_weight)
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {label_smoothing:g}; it is from 0 to below 0.5")
        self.label_smoothing = label_smoothing

    def pair_losses(self, gains: Tensor, tokens: Tensor) -> Tensor:
        """Losses of pairs [n]."""
        margin = self.beta * (gains[:, 0] - gains[:, 1])
        wrong = self.label_smoothing
        return -(1 - wrong) * logsigmoid(margin) - wrong * logsigmoid(-margin)


class IPO(PreferenceLoss):
    """IPO: (m - 1 / (2 beta))^2 of the margin m of gains a token (Azar et al. 2023, eq. 17).

    The mean over an answer's tokens, in place of the sum, is the authors' own advice to TRL.
    """

    def pair_losses(self, gains: Tensor, tokens: Tensor) -> Tensor:
        """Losses of pairs [n]."""
        each = gains / tokens
        return (each[:, 0] - each[:, 1] - 1 / (2 * self.beta)) ** 2


class Hinge(PreferenceLoss):
    """Hinge: max(0, 1 - beta (g_chosen - g_rejected)) (SLiC-HF, Zhao et al. 2023)."""

    def pair_losses(self, gains: Tensor, tokens: Tensor) -> Tensor:
        """Losses of pairs [n]."""
        return relu(1 - self.beta * (gains[:, 0] - gains[:, 1]))


class KTOPair(PreferenceLoss):
    """KTO of pairs: each answer against the batch's mean gain of the other kind, held fixed.

    1 - sigmoid(beta (g_chosen - z_rejected)) and 1 - sigmoid(beta (z_chosen - g_rejected)), with
    z = max(0, mean g) (Ethayarajh et al. 2024, as in TRL's `kto_pair`).

    The means are those of what is computed at once, so a step cannot be split: it is for one
    device and one micro-batch, or for a stage with `normalization: micro_batch`, where each
    micro-batch has means of its own.
    """

    rows_apart = False

    def pair_losses(self, gains: Tensor, tokens: Tensor) -> Tensor:
        """Losses of answers [2 n]."""
        means = gains.detach().mean(0).clamp(min=0)
        chosen = 1 - sigmoid(self.beta * (gains[:, 0] - means[1]))
        rejected = 1 - sigmoid(self.beta * (means[0] - gains[:, 1]))
        return torch.cat([chosen, rejected])
