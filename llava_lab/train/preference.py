"""10. Preference losses: log-probabilities of a chosen and a rejected answer -> one number."""

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu, sigmoid

from llava_lab.core.numbers import at_least, shares
from llava_lab.data.modules.preference import Pairs
from llava_lab.model.llava import Llava
from llava_lab.train.answers import compare
from llava_lab.train.loss import Ratios
from llava_lab.train.reference import ReferenceLoss


class PreferenceLoss(ReferenceLoss):
    """A loss of pairs: the log-ratio of the chosen answer against that of the rejected one.

    Args:
        beta: Strength of the KL penalty.
        sft_weight: Weight of the chosen answers' mean cross-entropy beside the loss.
    """

    def __init__(self, beta: float = 0.1, sft_weight: float = 0.0):
        super().__init__(beta)
        at_least(0, sft_weight=sft_weight)
        self.sft_weight = sft_weight

    @abstractmethod
    def pair_losses(self, log_ratios: Tensor, tokens: Tensor) -> Tensor:
        """Losses of pairs.

        Args:
            log_ratios: Log-probability less the reference's, of chosen and rejected answers [n, 2].
            tokens: Their tokens [n, 2].
        """

    def counts(self, batch: Pairs) -> dict[str, int]:
        """Pairs, and where the chosen answers' cross-entropy counts, their tokens."""
        counts = {"pair": len(batch)}
        if self.sft_weight:
            counts["token"] = int(torch.isin(batch.owners, batch.answers[:, 0]).sum())
        return counts

    def sums(self, model: Llava, batch: Pairs) -> tuple[Ratios, Ratios]:
        """Losses of pairs, and the rewards that the model implies."""
        logps, reference, log_ratios, tokens, divergences = compare(model, batch)
        losses = self.pair_losses(log_ratios, tokens)
        # A loss may be of answers and not of pairs; what is counted is pairs.
        terms: Ratios = {"pair": (losses.sum() / (len(losses) / len(batch)), len(batch))}
        if self.sft_weight:
            terms["token"] = (-self.sft_weight * logps[:, 0].sum(), tokens[:, 0].sum())
        rewards = self.beta * log_ratios.detach()
        margins = rewards[:, 0] - rewards[:, 1]
        each = {
            "reward_chosen": rewards[:, 0],
            "reward_rejected": rewards[:, 1],
            "reward_margin": margins,
            "reward_accuracy": margins > 0,
            "likelihood_accuracy": logps[:, 0] > logps[:, 1],
            "reference_accuracy": reference[:, 0] > reference[:, 1],
            # Of the answers at hand, not of the model's own: tells drift, is no divergence.
            "gain_a_token": (log_ratios.detach() / tokens).mean(1),
        }
        if divergences is not None:
            each["kl"] = divergences.mean(1)
        return terms, {name: (value.float().sum(), len(batch)) for name, value in each.items()}


class DPO(PreferenceLoss):
    """DPO: -log sigmoid(beta (g_chosen - g_rejected)) (Rafailov et al. 2023, eq. 7).

    Args:
        beta: Strength of the KL penalty.
        label_smoothing: Chance that a pair is the wrong way round (Mitchell 2023).
        sft_weight: Weight of the chosen answers' mean cross-entropy beside the loss.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0, sft_weight: float = 0.0):
        super().__init__(beta, sft_weight)
        shares(below=0.5, label_smoothing=label_smoothing)
        self.label_smoothing = label_smoothing

    def pair_losses(self, log_ratios: Tensor, tokens: Tensor) -> Tensor:
        """Losses of pairs [n]."""
        margin = self.beta * (log_ratios[:, 0] - log_ratios[:, 1])
        wrong = self.label_smoothing
        return -(1 - wrong) * logsigmoid(margin) - wrong * logsigmoid(-margin)


class IPO(PreferenceLoss):
    """IPO: (m - 1 / (2 beta))^2 of the margin m of gains a token (Azar et al. 2023, eq. 17).

    The mean over an answer's tokens, in place of the sum, is the authors' own advice to TRL.
    """

    def pair_losses(self, log_ratios: Tensor, tokens: Tensor) -> Tensor:
        """Losses of pairs [n]."""
        each = log_ratios / tokens
        return (each[:, 0] - each[:, 1] - 1 / (2 * self.beta)) ** 2


class Hinge(PreferenceLoss):
    """Hinge: max(0, 1 - beta (g_chosen - g_rejected)) (SLiC-HF, Zhao et al. 2023)."""

    def pair_losses(self, log_ratios: Tensor, tokens: Tensor) -> Tensor:
        """Losses of pairs [n]."""
        return relu(1 - self.beta * (log_ratios[:, 0] - log_ratios[:, 1]))


class KTOPair(PreferenceLoss):
    """KTO of pairs: each answer against the batch's mean gain of the other kind, held fixed.

    1 - sigmoid(beta (g_chosen - z_rejected)) and 1 - sigmoid(beta (z_chosen - g_rejected)), with
    z = max(0, mean g) (Ethayarajh et al. 2024, as in TRL's `kto_pair`).

    The means are those of what is computed at once, so a step cannot be split: it is for one
    device and one micro-batch, or for a stage with `normalization: micro_batch`, where each
    micro-batch has means of its own.
    """

    rows_apart = False

    def pair_losses(self, log_ratios: Tensor, tokens: Tensor) -> Tensor:
        """Losses of answers [2 n]."""
        means = log_ratios.detach().mean(0).clamp(min=0)
        chosen = 1 - sigmoid(self.beta * (log_ratios[:, 0] - means[1]))
        rejected = 1 - sigmoid(self.beta * (means[0] - log_ratios[:, 1]))
        return torch.cat([chosen, rejected])
