"""The paper scale: the published recipes, and parts of the published sizes on the meta device."""

from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY

from llava_lab.cli import fit as cli
from llava_lab.data.views.anyres import parse_grids
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


def test_llava15_is_the_published_recipe(capsys: pytest.CaptureFixture) -> None:
    config = paper("llava15", capsys)
    assert config["model"]["encoder"]["name"] == "openai/clip-vit-large-patch14-336"
    assert config["model"]["encoder"]["layer"] == -2
    llm = config["model"]["llm"]
    assert (llm["name"], llm["template"]) == ("lmsys/vicuna-7b-v1.5", "v1")
    assert llm["max_length"] == 2048
    align, instruct = (config["stages"][name] for name in ("align", "instruct"))
    assert align["lr"] == {"connector": 1e-3}
    assert instruct["lr"] == {"connector": 2e-5, "llm": 2e-5}
    for stage, batch, template in ((align, 256, "plain"), (instruct, 128, None)):
        data, recipe = stage["data"], stage
        assert (data["batch_size"], data["template"], data["epochs"]) == (batch, template, 1)
        assert data["max_steps"] is None
        assert (recipe["schedule"], recipe["warmup_ratio"]) == ("cosine", 0.03)
        assert recipe["weight_decay"] == 0
        assert recipe["gradient_checkpointing"] is True
    assert Path(config["paths"]["align"]).name == "blip_laion_cc_sbu_558k.json"
    assert Path(config["paths"]["instruct"]).name == "llava_v1_5_mix665k.json"
    assert align["data"]["views"]["class_path"].endswith("Square")
    assert instruct["data"]["views"]["class_path"].endswith("Pad")
    assert instruct["data"]["group_by_modality"] is True
    assert config["trainer"]["gradient_clip_val"] is None  # LLaVA's DeepSpeed files clip nothing
    assert config["tiny_world"] is None


def test_llava10_is_the_published_recipe(capsys: pytest.CaptureFixture) -> None:
    config = paper("llava10", capsys)
    assert config["model"]["encoder"]["name"] == "openai/clip-vit-large-patch14"
    assert config["model"]["llm"]["template"] == "v0"
    align, instruct = (config["stages"][name] for name in ("align", "instruct"))
    assert align["lr"] == {"connector": 2e-3}
    assert instruct["lr"] == {"connector": 2e-5, "llm": 2e-5}
    assert align["data"]["batch_size"] == 128
    assert instruct["data"]["batch_size"] == 32
    assert instruct["data"]["epochs"] == 3
    assert Path(config["paths"]["align"]).name == "chat.json"
    assert Path(config["paths"]["instruct"]).name == "llava_instruct_150k.json"


NEXT = {
    "llava_next": ("vicuna-7b-v1.5", "v1", 4096, 2e-5),
    "llava_next_llama3_8b": ("Meta-Llama-3-8B-Instruct", "llava_llama_3", 6144, 2e-5),
    "llava_next_qwen15_72b": ("Qwen1.5-72B-Chat", "qwen_1_5", 32768, 1e-5),
    "llava_next_qwen15_110b": ("Qwen1.5-110B-Chat", "qwen_1_5", 32768, 1e-5),
}


@pytest.mark.parametrize("name", NEXT)
def test_llava_next_is_the_published_recipe(name: str, capsys: pytest.CaptureFixture) -> None:
    lm, template, length, rate = NEXT[name]
    config = paper(name, capsys)
    llm, align, instruct = (
        config["model"]["llm"],
        *(config["stages"][stage] for stage in ("align", "instruct")),
    )
    assert llm["name"].endswith(lm) and llm["template"] == template
    assert config["model"]["newline"] is True
    assert align == paper("llava15", capsys)["stages"]["align"]
    recipe, data = instruct, instruct["data"]
    rates = {"encoder": 2e-6, "connector": rate, "llm": rate, "newline": rate}
    assert recipe["lr"] == rates and recipe["lr_scale"] == 1 and recipe["frozen"] == []
    assert (data["batch_size"], data["max_length"], data["epochs"]) == (128, length, 1)
    views = data["views"]
    assert views["grids"] == "1x2, 2x1, 2x2, 3x1, 1x3"
    assert (views["merge"], views["base"], views["max_tiles"]) == ("spatial_unpad", True, None)
    assert config["data"]["views"] == data["views"]


def test_llava15_hd_is_llava15_on_tiles(capsys: pytest.CaptureFixture) -> None:
    config, base = paper("llava15_hd", capsys), paper("llava15", capsys)
    assert config["model"]["encoder"]["name"] == "openai/clip-vit-large-patch14"
    instruct = config["stages"]["instruct"]
    rates = {"connector": 2e-5, "llm": 2e-5, "newline": 2e-5}
    assert instruct["lr"] == rates
    grids = set(parse_grids(instruct["data"]["views"]["grids"]))
    assert grids == {(w, h) for w in range(1, 7) for h in range(1, 7) if w * h <= 6}
    assert config["stages"]["align"] == base["stages"]["align"]


@pytest.mark.parametrize(
    ("name", "lm", "width"),
    [("llava15", "vicuna_13b_v15", "13b-v1.5"), ("llava10", "vicuna_13b_v0", "13b")],
)
def test_13b_is_one_option(name: str, lm: str, width: str, capsys: pytest.CaptureFixture) -> None:
    config = paper(name, capsys, f"--model.llm={REPOSITORY}/configs/lm/{lm}.yaml")
    assert width in config["model"]["llm"]["name"]
