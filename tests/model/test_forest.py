"""The packed forest equals the padded reference, and a store equals computing anew."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from llava_lab.data.forest import Forest
from llava_lab.model.attention.cache import KeyValueCache
from llava_lab.model.attention.forest import ATTENTION
from llava_lab.model.attention.plan import AttentionPlan
from llava_lab.model.llm import CausalLM
from llava_lab.train.recompute import keep_products

BASE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "mistral": {"sliding_window": 4},
    "gemma": {"head_dim": 8},
    "qwen3": {"head_dim": 8},
    "phi3": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "olmo2": {"pad_token_id": 0, "eos_token_id": 2},
}
OFTEN = {  # layers that attend more than once in a pass
    "diffllama": {},
    "dory": {
        **{"head_dim": 8, "num_hidden_layers": 4, "n_input_layers": 1, "n_output_layers": 1},
        **{"sliding_window": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    },
}
CONVERSATIONS = Forest((5, 9, 3), (None, None, None))
TREES = Forest((6, 3, 4, 2, 7, 5, 1), (None, 0, 0, None, 3, 4, 3))


def lm(family: str, **options) -> CausalLM:
    if family in OFTEN:  # which older releases of transformers do not have, or not so
        known = family in CONFIG_MAPPING  # whose `get` finds nothing
        kind = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[family]] if known else None
        if kind is None or not kind._supports_attention_backend:
            pytest.skip(f"no {family} that uses transformers' attention interface")
    torch.manual_seed(0)
    config = {**BASE, "model_type": family, **{**FAMILIES, **OFTEN}[family]}
    return CausalLM(None, "v1", pretrained=False, config=config, tokenizer="unused", **options)


def loss_and_gradients(model: CausalLM, forest: Forest, attention: str):
    model.attention = attention
    model.model.set_attn_implementation(ATTENTION if attention == "forest" else "sdpa")
    ids = torch.arange(forest.tokens) * 7 % 96
    model.zero_grad()
    hidden = model(model.embed(ids), forest)
    known = forest.previous >= 0
    logits = model.head()(hidden[forest.previous[known]])
    loss = torch.nn.functional.cross_entropy(logits, ids[known])
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("forest", [CONVERSATIONS, TREES], ids=["conversations", "trees"])
def test_loss_and_every_gradient_equal_the_padded_reference(family: str, forest: Forest) -> None:
    model = lm(family)
    packed, packed_gradients = loss_and_gradients(model, forest, "forest")
    padded, padded_gradients = loss_and_gradients(model, forest, "padded")
    assert abs(packed - padded) < 1e-5 * padded.abs()
    for name, wanted in padded_gradients.items():
        scale = wanted.abs().max()
        assert (packed_gradients[name] - wanted).abs().max() <= 1e-5 * scale, name


def test_gradient_checkpointing_changes_nothing() -> None:
    model = lm("llama").train()
    _, plain = loss_and_gradients(model, TREES, "forest")
    model.model.gradient_checkpointing_enable({"use_reentrant": False})
    _, again = loss_and_gradients(model, TREES, "forest")
    assert all(torch.allclose(plain[name], again[name], atol=1e-7) for name in plain)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


def test_keeping_products_changes_nothing_and_computes_narrow_ones_again() -> None:
    model = lm("llama").train()
    with Products() as plain:
        _, wanted = loss_and_gradients(model, TREES, "forest")
    model.model.gradient_checkpointing_enable({"use_reentrant": False})
    with Products() as whole:
        loss_and_gradients(model, TREES, "forest")
    model.model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": keep_products})
    with Products() as kept:
        _, found = loss_and_gradients(model, TREES, "forest")
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert kept.count == plain.count + 2 * 2  # keys and values of two layers
    assert whole.count >= plain.count + 2 * 6


def test_segments_do_not_see_each_other() -> None:
    model = lm("llama").eval()
    embeddings = torch.randn(TREES.tokens, 32)
    before = model(embeddings, TREES)
    changed = embeddings.clone()
    second = slice(TREES.starts[1], TREES.end(1))
    changed[second] += 1.0
    after = model(changed, TREES)
    moved = (before - after).abs().amax(1) > 1e-6
    assert moved[second].all()
    moved[second] = False
    assert not moved.any()


def test_positions_continue_from_the_parent() -> None:
    forest = Forest((3, 2, 1), (None, 0, 0))
    assert forest.positions.tolist() == [0, 1, 2, 3, 4, 3]
    assert forest.previous.tolist() == [-1, 0, 1, 2, 3, 2]
    assert forest.leaves == [1, 2]


@pytest.mark.parametrize("family", ["llama", "mistral", *OFTEN])
def test_a_store_equals_computing_every_path_anew(family: str) -> None:
    model = lm(family).eval()
    ids = torch.arange(TREES.tokens) * 5 % 96
    cache = KeyValueCache(TREES, reserve=3)
    plan = AttentionPlan.whole(TREES, ids.device, cache)
    model(model.embed(ids), TREES, plan)
    leaves = TREES.leaves
    new = {leaf: [] for leaf in leaves}
    open_ = leaves
    for count in range(3):
        tokens = torch.tensor([(leaf * 11 + count) % 96 for leaf in open_])
        for leaf, token in zip(open_, tokens.tolist(), strict=True):
            new[leaf].append(token)
        got = model(model.embed(tokens), TREES, cache.step(open_, count, ids.device))
        for row, leaf in enumerate(open_):
            spans = [torch.arange(TREES.starts[s], TREES.end(s)) for s in TREES.path(leaf)]
            path = torch.cat([ids[torch.cat(spans)], torch.tensor(new[leaf])])
            wanted = model(model.embed(path), Forest((len(path),), (None,)))[-1]
            assert torch.allclose(got[row], wanted, atol=1e-5)
        open_ = open_[1:]


def test_an_lm_with_soft_capping_is_refused_by_name() -> None:
    config = {**BASE, "model_type": "gemma2", "head_dim": 8}
    with pytest.raises(ValueError, match="Gemma2ForCausalLM scales its logits"):
        CausalLM(None, "v1", pretrained=False, config=config, tokenizer="unused")


def test_an_lm_outside_the_attention_interface_is_refused_by_name() -> None:
    config = {"model_type": "bloom", "vocab_size": 96, "hidden_size": 32, "n_layer": 1, "n_head": 2}
    with pytest.raises(ValueError, match=r"Bloom.*attention to padded"):
        CausalLM(None, "v1", pretrained=False, config=config, tokenizer="unused")


def test_an_unknown_value_of_the_configuration_is_refused() -> None:
    config = {**BASE, "model_type": "llama", "hiden_size": 3}
    with pytest.raises(ValueError, match="llama has no 'hiden_size'"):
        CausalLM(None, "v1", pretrained=False, config=config, tokenizer="unused")
