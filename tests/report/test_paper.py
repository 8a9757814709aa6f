"""The paper scale: parts of the published sizes on the meta device."""

import pytest
import torch
import yaml
from conftest import REPOSITORY

from llava_lab.cli import fit as cli
from llava_lab.model.connector.linear import Linear
from llava_lab.model.connector.mlp import MLP
from llava_lab.model.encoder.clip import ClipEncoder
from llava_lab.model.llava import Llava
from llava_lab.model.llm import CausalLM

# The towers' published shapes (hub configurations); the weights of CLIP's last block and norm are
# not built, as layer -2 never reads them.
CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
LLAMA = {
    7: {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
    13: {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40},
}
HEADS = {7: 32, 13: 40}
LLAMA_PARAMETERS = {7: 6_738_415_616, 13: 13_015_864_320}
CONNECTORS = {
    ("linear", 7): 4_198_400,
    ("linear", 13): 5_248_000,
    ("mlp", 7): 20_979_712,
    ("mlp", 13): 31_467_520,
}
# ViT-L/14 without its last block and its final norm; the position table is all that differs.
BLOCK = 12 * 1024**2 + 13 * 1024
CLIP_PARAMETERS = {
    size: 1024 * 3 * 14**2 + 1024 + ((size // 14) ** 2 + 1) * 1024 + 2 * 1024 + 23 * BLOCK
    for size in (224, 336)
}


def paper(name: str, capsys: pytest.CaptureFixture, *options: str) -> dict:
    files = [f"experiments/{name}.yaml", "configs/scale/paper.yaml"]
    arguments = [part for file in files for part in ("-c", str(REPOSITORY / file))]
    cli.main(["fit", *arguments, *options, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("billions", [7, 13])
@pytest.mark.parametrize(("connector", "size"), [("linear", 224), ("mlp", 336)])
def test_sizes_on_the_meta_device(billions: int, connector: str, size: int) -> None:
    with torch.device("meta"):
        encoder = ClipEncoder(None, pretrained=False, config={**CLIP_L, "image_size": size})
        config = {
            **LLAMA[billions],
            "model_type": "llama",
            "vocab_size": 32000,
            "num_attention_heads": HEADS[billions],
            "num_key_value_heads": HEADS[billions],
        }
        llm = CausalLM(None, "v1", pretrained=False, config=config, tokenizer="unused")
        model = Llava(encoder, {"linear": Linear, "mlp": MLP}[connector], llm)
    count = {
        part: sum(w.numel() for w in model.part(part).parameters())
        for part in ("encoder", "connector", "llm")
    }
    assert next(model.parameters()).device.type == "meta"
    assert count["connector"] == CONNECTORS[connector, billions]
    assert count["llm"] == LLAMA_PARAMETERS[billions]
    assert count["encoder"] == CLIP_PARAMETERS[size]
    assert encoder.view_spec.grid == (size // 14, size // 14)


@pytest.mark.parametrize(
    ("name", "lm", "width"),
    [("llava15", "vicuna_13b_v15", "13b-v1.5"), ("llava10", "vicuna_13b_v0", "13b")],
)
def test_13b_is_one_option(name: str, lm: str, width: str, capsys: pytest.CaptureFixture) -> None:
    config = paper(name, capsys, f"--model.llm={REPOSITORY}/configs/lm/{lm}.yaml")
    assert width in config["model"]["llm"]["name"]
