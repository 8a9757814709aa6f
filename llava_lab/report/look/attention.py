"""12. Attention: one question and a run's weights -> how much each answer token looks at the image.

The weights are those of the LM's own layers in one more pass over the prompt and the answer: of
each head's queries and keys the softmax, at the position from which a token of the answer follows.
The pass itself is computed as ever. High attention is no proof that a tile decided the answer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from llava_lab.data.forest import Forest
from llava_lab.model.attention.forest import ATTENTION, forest_attention
from llava_lab.model.generate import QuestionBatch, answer
from llava_lab.report.look.rows import token_text

NAME = "llava_lab_look"
MOST_TOKENS = 16  # of an answer


@dataclass(frozen=True)
class Attention:
    """What the tokens of one answer look at.

    Attributes:
        text: The answer.
        tokens: Its tokens, the one that ends it included.
        kinds: What each of the weights is: "layer 3, mean of its 4 heads".
        weights: Shares of attention on every visual token [kinds, tokens, v].
    """

    text: str
    tokens: list[str]
    kinds: list[str]
    weights: np.ndarray


@torch.no_grad()
def attention_of(model: Any, question: QuestionBatch, layer: int | None = None) -> Attention:
    """Answer one question, and look where its tokens look.

    Args:
        model: The model.
        question: A batch of that question alone.
        layer: Layer whose heads are told apart, from 1; None gives the mean of every layer's.

    Raises:
        ValueError: If the LM has no such layer, or its attention cannot be looked at.
    """
    if model.llm.attention != "forest":
        raise ValueError(
            f"model.llm.attention is {model.llm.attention}: attention is drawn of LMs that take "
            "part in the packed forest alone"
        )
    found = answer(model, question)
    tokens = found.tokens[0][:MOST_TOKENS]
    batch = question.batch
    ids = torch.cat([batch.ids, torch.tensor(tokens[:-1], dtype=batch.ids.dtype)])
    queries = len(batch.ids) - 1 + torch.arange(len(tokens))
    whole = replace(batch, ids=ids, forest=Forest((len(ids),), (None,)))
    with recorded(model.llm, queries) as layers:
        model.llm(model.embed(whole), whole.forest)
    if layer is not None and layer not in range(1, len(layers) + 1):
        raise ValueError(f"--layer {layer}: the LM has layers 1 to {len(layers)}")
    seen = [layers[number][:, :, batch.places] for number in sorted(layers)]  # each [h, n, v]
    names = [token_text(each, model.llm.tokenizer) for each in tokens]
    kinds = ["mean of all layers and heads"]
    weights = [torch.stack([each.mean(0) for each in seen]).mean(0)]
    if layer is None:
        kinds += [f"layer {n}, mean of its {len(each)} heads" for n, each in enumerate(seen, 1)]
        weights += [each.mean(0) for each in seen]
    else:
        kinds += [f"layer {layer}, head {n}" for n in range(1, len(seen[layer - 1]) + 1)]
        weights += list(seen[layer - 1])
    return Attention(found.texts[0], names, kinds, torch.stack(weights).float().numpy())


@contextmanager
def recorded(llm: Any, queries: Tensor) -> Iterator[dict[int, Tensor]]:
    """Attention weights [h, n, k] of some queries of a row [n], by layer, while it is computed.

    Args:
        llm: The LM.
        queries: Places of the queries in the row, which is one segment.
    """
    found: dict[int, Tensor] = {}

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **others: Any,
    ) -> Any:
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        keys = key[0].repeat_interleave(query.shape[1] // key.shape[1], 0)
        scores = query[0][:, queries] @ keys.transpose(1, 2) * factor
        distance = queries[:, None] - torch.arange(keys.shape[1])[None, :]
        hidden = distance < 0
        if sliding_window is not None:
            hidden |= distance >= sliding_window
        found[module.layer_idx] = scores.float().masked_fill(hidden, -torch.inf).softmax(-1).cpu()
        given: dict[str, Any] = {**others, "scaling": scaling, "sliding_window": sliding_window}
        return forest_attention(module, query, key, value, attention_mask, **given)

    AttentionInterface.register(NAME, attention)
    llm.model.set_attn_implementation(NAME)
    try:
        yield found
    finally:
        llm.model.set_attn_implementation(ATTENTION)
