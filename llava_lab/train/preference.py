"""10c. Preference losses: log-probabilities of a chosen and a rejected answer -> one number."""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid, relu, sigmoid

from llava_lab.data.preferences import Pairs
from llava_lab.data.reference import Before
from llava_lab.model.llava import Llava
from llava_lab.train.loss import Loss, answer_logps, answer_sums

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

    def forward(self, model: Llava, batch: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of a batch of pairs."""
        assert batch.reference is not None, "PreferenceDataModule gives it"
        hidden = model(batch)[batch.predictors]
        logps, tokens = answer_logps(model, batch, hidden)
        gains = logps - batch.reference
        loss = self.pair_losses(gains, tokens).mean()
        if self.sft_weight:
            loss = loss - self.sft_weight * logps[:, 0].sum() / tokens[:, 0].sum()
        rewards = self.beta * gains.detach()
        margins = rewards[:, 0] - rewards[:, 1]
        numbers = {
            "reward_chosen": rewards[:, 0].mean(),
            "reward_rejected": rewards[:, 1].mean(),
            "reward_margin": margins.mean(),
            "reward_accuracy": (margins > 0).float().mean(),
            "likelihood_accuracy": (logps[:, 0] > logps[:, 1]).float().mean(),
            "reference_accuracy": (batch.reference[:, 0] > batch.reference[:, 1]).float().mean(),
            # Of the answers at hand, not of the model's own: tells drift, is no divergence.
            "gain_a_token": (gains.detach() / tokens).mean(),
        }
        if batch.before is not None:
            each = answer_sums(divergences(model.llm.head(), hidden, batch.before), batch)
            numbers["kl"] = (each / tokens).mean()
        return loss, numbers


@torch.no_grad()
def divergences(head: nn.Linear, hidden: Tensor, before: Before) -> Tensor:
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


class Sigmoid(PreferenceLoss):
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
    """

    def pair_losses(self, gains: Tensor, tokens: Tensor) -> Tensor:
        """Losses of answers [2 n]."""
        means = gains.detach().mean(0).clamp(min=0)
        chosen = 1 - sigmoid(self.beta * (gains[:, 0] - means[1]))
        rejected = 1 - sigmoid(self.beta * (means[0] - gains[:, 1]))
        return torch.cat([chosen, rejected])
