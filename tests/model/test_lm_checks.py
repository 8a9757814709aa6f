"""An LM that would come out as another one is refused: its files, its layers, its logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_forest import BASE

from llava_lab.data.forest import Forest
from llava_lab.model.llm import CausalLM
from llava_lab.model.lm_checks import check_lm

ONES = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def lm(family: str, name: str | None = None, **options: Any) -> CausalLM:
    config = {**BASE, "model_type": family, **options.pop("config", {})}
    return CausalLM(name, "v1", config=config, tokenizer="unused", **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    lm("llama", pretrained=False).model.save_pretrained(folder)
    return folder


def test_a_tensor_that_an_lms_folder_lacks_is_named_and_not_drawn(
    saved: Path, tmp_path: Path
) -> None:
    whole = load_file(saved / "model.safetensors")
    assert CausalLM(str(saved), "v1", tokenizer="unused").model.lm_head.weight.equal(
        whole["lm_head.weight"]
    )
    for lost in ("lm_head.weight", "model.layers.1.mlp.up_proj.weight"):
        rest = {name: each for name, each in whole.items() if name != lost}
        save_file(rest, tmp_path / "model.safetensors", {"format": "pt"})
        (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
        with pytest.raises(ValueError, match=f"1 missing: {lost}"):
            CausalLM(str(tmp_path), "v1", tokenizer="unused")
    with pytest.raises(ValueError, match=r"9 missing: model\.layers\.2\."):
        CausalLM(str(saved), "v1", tokenizer="unused", config={"num_hidden_layers": 3})


def test_a_block_that_says_what_an_lm_is_has_to_agree_with_its_folder(saved: Path) -> None:
    lm("llama", str(saved), config={"rms_norm_eps": 1e-6})
    for key, value in {
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    }.items():
        with pytest.raises(ValueError, match=f"{key} is .*, and .* in .*leave model_type out"):
            lm("llama", str(saved), config={key: value})


def test_the_name_of_an_lm_of_which_nothing_is_read_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.llm\.name: nothing of 'no/such' .*configs/lm"):
        lm("llama", "no/such", pretrained=False)
    lm("llama", str(saved))
    lm("llama", None, pretrained=False)
    CausalLM(str(saved), "v1", pretrained=False, tokenizer="unused")  # whose configuration is read
    with pytest.raises(ValueError, match="there is no `name` to load weights of"):
        lm("llama", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 1}, r"9 left over: model\.layers\.1\."),
        ({"num_key_value_heads": 4}, r"4 of another shape: .*is \[16, 32\], expected \[32, 32\]"),
    ],
)
def test_weights_that_a_change_leaves_over_or_draws_anew_are_named(
    saved: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        CausalLM(str(saved), "v1", tokenizer="unused", config=change)


def test_without_a_name_there_are_no_weights_to_load() -> None:
    with pytest.raises(ValueError, match="no `name` to load weights of; set pretrained to false"):
        lm("llama")


def test_a_file_whose_tied_tensors_differ_is_refused(saved: Path, tmp_path: Path) -> None:
    path, whole = tmp_path / "llm.safetensors", load_file(saved / "model.safetensors")
    save_file(whole, path)
    tied = {"tie_word_embeddings": True}
    with pytest.raises(ValueError, match=r"1 tied in the model alone: .*tie_word_embeddings false"):
        lm("llama", pretrained=False, weights=str(path), config=tied)
    save_file({**whole, "lm_head.weight": whole["model.embed_tokens.weight"].clone()}, path)
    found = lm("llama", pretrained=False, weights=str(path), config=tied)
    assert found.model.lm_head.weight.equal(whole["model.embed_tokens.weight"])


HYBRID: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "recurrent_gemma": {"head_dim": 8, "lru_width": 32, "logits_soft_cap": 1.0},
    "minimax": {
        "layer_types": ["linear_attention", "full_attention"],
        "num_local_experts": 2,
        "head_dim": 8,
    },
}


@pytest.mark.parametrize("family", HYBRID)
def test_layers_that_would_mix_packed_rows_are_for_padded_attention(family: str) -> None:
    config = {**ONES, **HYBRID[family]}
    model = lm(family, pretrained=False, config=config, attention="padded").eval()
    said = r"(conv|convolution|linear_attention), .*attention to padded"
    if not model.model._supports_attention_backend:  # RecurrentGemma of older releases
        said = "does not use transformers' attention interface"
    with pytest.raises(ValueError, match=said):
        lm(family, pretrained=False, config=config)
    row = torch.randn(9, 32)
    with torch.no_grad():
        both = model(row, Forest((4, 5), (None, None)))
        alone = model(row[4:], Forest((5,), (None,)))
    torch.testing.assert_close(both[4:], alone, atol=1e-5, rtol=1e-5)


def test_recurrent_layers_that_a_release_of_transformers_names_nowhere_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = {**ONES, **HYBRID["recurrent_gemma"]}
    model = lm("recurrent_gemma", pretrained=False, config=config, attention="padded").model
    if not getattr(model, "_supports_attention_backend", False):
        pytest.skip("this release's is refused for its attention")
    monkeypatch.setattr(type(model.config), "attribute_map", {})  # as in transformers 5.17
    assert getattr(model.config, "layer_types", None) is None
    with pytest.raises(ValueError, match=r"layers of convolution, .*attention to padded"):
        check_lm(model, "forest")


SINKS = {**ONES, "num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}


@pytest.mark.parametrize(
    ("family", "config", "own"),
    [
        ("gpt_oss", SINKS, "has attention sinks"),
        ("gemma2", {"head_dim": 8, "final_logit_softcapping": None}, "caps its attention's scores"),
    ],
)
def test_scores_that_are_not_the_products_alone_are_for_padded_attention(
    family: str, config: dict[str, Any], own: str
) -> None:
    with pytest.raises(ValueError, match=f"{own}.*attention to padded"):
        lm(family, pretrained=False, config=config)
    model = lm(family, pretrained=False, config=config, attention="padded").eval()
    ids = torch.arange(9)
    with torch.no_grad():
        found = model.head()(model(model.embed(ids), Forest((4, 5), (None, None))))
        wanted = model.model(input_ids=ids[None, 4:], use_cache=False).logits[0]
    torch.testing.assert_close(found[4:], wanted, atol=1e-5, rtol=1e-5)


def test_a_window_that_a_layer_leaves_to_a_mask_is_for_padded_attention() -> None:
    config = {**ONES, "sliding_window": 4, "num_local_experts": 2}
    row, forest = torch.randn(9, 32), Forest((9,), (None,))
    with pytest.raises(ValueError, match=r"PhimoeAttention has a sliding window .*padded"):
        lm("phimoe", pretrained=False, config=config)(row, forest)
    assert len(
        lm("phimoe", pretrained=False, config=config | {"sliding_window": None})(row, forest)
    )


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("recurrent_gemma", {"head_dim": 8}, "scales its logits .logits_soft_cap"),
        ("falcon_h1", {"lm_head_multiplier": 0.5}, "scales its logits .lm_head_multiplier"),
        ("bert", {"is_decoder": True}, "BertLMHeadModel has more than a decoder"),
        ("modernbert-decoder", {}, "has more than a decoder"),
    ],
)
def test_logits_that_are_not_the_output_layers_are_refused(
    family: str, config: dict[str, Any], message: str
) -> None:
    base = {k: v for k, v in BASE.items() if k != "num_key_value_heads" or "bert" not in family}
    options = {"model_type": family, **base, **ONES, **config}
    with pytest.raises(ValueError, match=message):
        CausalLM(
            None, "v1", pretrained=False, config=options, tokenizer="unused", attention="padded"
        )


FACTORS = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, **FACTORS}
WINDOWED: dict[str, dict[str, Any]] = {
    "phi3": {
        **{**ONES, "max_position_embeddings": 128, "original_max_position_embeddings": 32},
        "rope_parameters": LONGROPE,
    },
    "llama": {
        "max_position_embeddings": 32,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    },
}


@pytest.mark.parametrize("family", WINDOWED)
@pytest.mark.parametrize("attention", ["forest", "padded"])
def test_rows_that_would_change_the_rope_of_others_are_not_read(
    family: str, attention: str
) -> None:
    """Frequencies go by the longest position of a pass, which is a pack of rows."""
    config = {**WINDOWED[family], "initializer_range": 0.3}
    torch.manual_seed(0)
    model = lm(family, pretrained=False, config=config, attention=attention).eval()
    assert model.context == model.length(32) == 32
    with pytest.raises(ValueError, match=r"max_length is 33, .*neighbours.*Set max_length to 32"):
        model.length(33)
    row = torch.randn(20, 32)
    with torch.no_grad():
        alone = model(row, Forest((20,), (None,)))
        for length, same in ((32, True), (33, False)):
            both = torch.cat([row, torch.randn(length, 32)])
            packed = model(both, Forest((20, length), (None, None)))[:20]
            assert torch.allclose(packed, alone, atol=1e-4) == same
    plain = lm("llama", pretrained=False, config={"max_position_embeddings": 32})
    assert plain.length(64) == 64
