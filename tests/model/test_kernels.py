"""Norms and MLPs may be computed by other kernels; what cannot be is refused by name."""

import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from transformers.models.llama import modeling_llama

from llava_lab.data.forest import Forest
from llava_lab.model.llm import CausalLM

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 768}
LLAMA = {**SHAPE, "model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}


def made(kernels: str, **config: object) -> CausalLM:
    settings = {**LLAMA, **config}
    options = {"pretrained": False, "config": settings, "tokenizer": "asset:tokenizer"}
    return CausalLM(None, "v1", kernels=kernels, **options)


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """In place of liger-kernel, which needs a GPU: what it is asked, and classes that it leaves."""
    asked: list[dict] = []

    def apply(model: object, **options: object) -> None:
        asked.append(options)
        modeling_llama.LlamaRMSNorm = object

    patch = ModuleType("liger_kernel.transformers.monkey_patch")
    patch.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": apply}
    patch._apply_liger_kernel_to_instance = apply
    above = ModuleType("liger_kernel.transformers")
    above.monkey_patch = patch
    for name, module in {"liger_kernel": ModuleType("liger_kernel"), above.__name__: above}.items():
        monkeypatch.setitem(sys.modules, name, module)
    own = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: name == "liger_kernel" or own(name, *a)
    )
    return asked


def test_liger_changes_one_model_and_no_class(liger: list[dict]) -> None:
    norm = modeling_llama.LlamaRMSNorm
    llm = made("liger")
    assert modeling_llama.LlamaRMSNorm is norm
    assert not any(liger[0].values())  # positions and loss are ours
    with pytest.raises(ValueError, match="kernels=liger is for GPUs; set it to plain on a CPU"):
        llm(torch.zeros(3, 32), Forest((3,), (None,)))
    with pytest.raises(ValueError, match="liger-kernel has none for a qwen2; set it to plain"):
        made("liger", model_type="qwen2")


def test_an_absent_package_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    own = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "liger_kernel" else own(name)
    )
    with pytest.raises(ValueError, match=r"needs liger-kernel, which is not there: pip install"):
        made("liger")


@pytest.mark.slow
def test_parts_that_are_compiled_keep_their_weights_names() -> None:
    plain, fused = made("plain"), made("compile")
    assert list(plain.state_dict()) == list(fused.state_dict())
    layer = fused.model.model.layers[0]
    compiled = {n for n, part in layer.named_children() if part._compiled_call_impl is not None}
    assert compiled == {"mlp", "input_layernorm", "post_attention_layernorm"}


@pytest.mark.slow
def test_compiled_parts_compute_the_same_for_any_length() -> None:
    plain, fused = made("plain"), made("compile")
    fused.load_state_dict(plain.state_dict())
    graphs = []
    for lengths in ((9, 5), (30,), (4, 7, 11)):
        forest = Forest(lengths, (None,) * len(lengths))
        seen = torch.randn(sum(lengths), 32)
        found, wanted = fused(seen, forest), plain(seen, forest)
        assert torch.allclose(found, wanted, atol=1e-5)
        weights = (fused.model.model.layers[0].mlp.up_proj.weight,)
        others = (plain.model.model.layers[0].mlp.up_proj.weight,)
        (mine,) = torch.autograd.grad((found * seen).sum(), weights)
        (its,) = torch.autograd.grad((wanted * seen).sum(), others)
        assert torch.allclose(mine, its, atol=1e-5 * float(its.abs().max()))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[1] == graphs[2] > 0  # another length is no other graph


@pytest.mark.slow
@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("liger_kernel") is None,
    reason="liger's kernels need a GPU and the extra liger",
)
def test_liger_computes_the_same() -> None:
    plain, fused = made("plain").cuda(), made("liger").cuda()
    fused.load_state_dict(plain.state_dict())
    seen = torch.randn(14, 32, device="cuda")
    forest = Forest((9, 5), (None, None))
    assert torch.allclose(fused(seen, forest), plain(seen, forest), atol=1e-4)
