"""10. Contrast: pictures against phrases, each pair true or false (SigLIP's sigmoid loss)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from llava_lab.core.numbers import at_least
from llava_lab.data.modules.phrases import PhraseBatch
from llava_lab.train.loss import Loss, Ratios


class SigmoidContrast(Loss):
    """Sigmoid loss over all pairs of pictures and phrases, matched patch by patch.

    Every pair is a decision of its own, so a phrase may be true of several pictures (SigLIP, Zhai
    et al. 2023, arXiv:2303.15343). A phrase is compared with every patch and the best patches
    count (a soft form of FILIP's late interaction, Yao et al. 2021, arXiv:2111.07783): a picture
    with six objects has two dozen true phrases, more than one pooled vector can be near to, and it
    is the patches that a connector will read. The text tower lives only in this stage.

    Args:
        encoder_width: Width of the encoder's features.
        vocabulary: Tokens of the tokenizer.
        width: Width of the text tower and of the common space.
        heads: Attention heads of the tower.
    """

    def __init__(self, encoder_width: int, vocabulary: int, width: int = 192, heads: int = 4):
        super().__init__()
        at_least(1, encoder_width=encoder_width, vocabulary=vocabulary, width=width, heads=heads)
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(32, width)
        self.tower = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.text_norm = nn.LayerNorm(width)
        self.norm = nn.LayerNorm(encoder_width)
        self.project = nn.Linear(encoder_width, width)
        self.bias = nn.Parameter(torch.tensor([-4.0]))

    def counts(self, batch: PhraseBatch) -> dict[str, int]:
        """Pictures."""
        return {"picture": len(batch)}

    def sums(self, model: Any, batch: PhraseBatch) -> tuple[Ratios, Ratios]:
        """Losses of all pairs of a picture and a phrase of the whole step."""
        patches = self.project(self.norm(model.encode(batch.pixels).flatten(1, 2)))
        phrases = self.phrases(batch)
        near = patches @ phrases.T / phrases.shape[1] ** 0.5
        logits = near.logsumexp(1) - math.log(near.shape[1]) + self.bias
        losses = binary_cross_entropy_with_logits(logits, batch.truth, reduction="none")
        predicted, true = logits > 0, batch.truth > 0
        found = (predicted & true).sum()
        terms: Ratios = {"picture": (losses.sum(1).float().sum(), len(batch))}
        return terms, {"precision": (found, predicted.sum()), "recall": (found, true.sum())}

    def phrases(self, batch: PhraseBatch) -> Tensor:
        """Vectors of the phrases [m, d]."""
        blank = batch.phrases < 0
        places = torch.arange(batch.phrases.shape[1], device=blank.device)
        words = self.tokens(batch.phrases.clamp(min=0)) + self.places(places)
        read = self.tower(words, src_key_padding_mask=blank).masked_fill(blank[..., None], 0.0)
        return self.text_norm(read.sum(1) / (~blank).sum(1, keepdim=True))
