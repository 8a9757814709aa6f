"""LoRA: adapters alone train, a finished stage needs no peft, an unfinished one goes on exactly."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_preference import folder, pairs_of, tiny  # noqa: F401
from test_resume import command, outcome
from torch import nn

from llava_lab.cli.fit import main
from llava_lab.convert.load import load_model
from llava_lab.model.connector.base import Connector
from llava_lab.model.llava import Llava
from llava_lab.train.answers import answer_logps
from llava_lab.train.lora import Lora, adapters, as_merged
from llava_lab.train.loss import NextToken
from llava_lab.train.preference import DPO
from llava_lab.train.stage import Stage

needs_peft = pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="peft is an extra")
LORA = Lora(rank=4, alpha=8.0, dropout=0.1)


@needs_peft
def test_adapters_and_connector_train_and_nothing_else(folder: Path) -> None:  # noqa: F811
    model = tiny()
    stage = Stage(None, NextToken(), {"connector": 2e-5, "llm": 2e-4}, lora=LORA)
    size = stage.size(model)
    stage.begin(model)
    groups = {group["name"]: group["lr"] for group in stage.groups()}
    assert groups == {"connector": 2e-5, "llm": 2e-4}
    free = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(name.startswith("connector.") or ".lora_" in name for name in free)
    assert len(adapters(model)) == 2 * 7  # q k v o gate up down; no output layer
    assert sum(w.numel() for w in model.parameters() if w.requires_grad) == size
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    _, pairs = pairs_of(model, folder)
    optimizer = torch.optim.AdamW(list(stage.groups()), lr=1e-2)
    for _ in range(2):  # B is zero at first, so that A moves at the second step
        loss, _ = stage.loss(model, pairs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = {name for name, each in model.named_parameters() if not each.equal(before[name])}
    assert moved == free


@needs_peft
def test_merged_weights_answer_as_the_adapters_did(folder: Path) -> None:  # noqa: F811
    model = tiny()
    names = set(model.state_dict())
    _, pairs = pairs_of(model, folder)
    stage = Stage(None, NextToken(), {"llm": 2e-4}, lora=LORA)
    stage.begin(model)
    with torch.no_grad():
        for layer in adapters(model).values():
            layer.lora_B["default"].weight.normal_(std=0.1)
    model.eval()
    with torch.no_grad():
        before = model(pairs)
        kept = as_merged(model, stage.trained(model), lambda weight: weight)
        stage.finish(model)
        after = model(pairs)
        changed = model.state_dict()
        plain = tiny().eval()
        untouched = plain(pairs)
        plain.load_state_dict({**plain.state_dict(), **stage.trained(model)})
        loaded = plain(pairs)
    scale = before.abs().max()
    assert (before - after).abs().max() <= 1e-5 * scale < (before - untouched).abs().max()
    assert changed.keys() == names and loaded.equal(after)
    trained = stage.trained(model)
    assert kept.keys() == trained.keys()
    assert all(kept[name].equal(weight) for name, weight in trained.items())


@needs_peft
def test_the_reference_is_the_model_with_its_adapters_off(folder: Path) -> None:  # noqa: F811
    model = tiny()
    stage = Stage(None, DPO(0.5), {"llm": 2e-3}, lora=LORA)
    stage.begin(model)
    _, pairs = pairs_of(model, folder)
    stage.on_train_epoch_start(None, model)  # the tiny encoder has running means
    optimizer = torch.optim.AdamW(list(stage.groups()))
    for _ in range(3):
        loss, _ = stage.loss(model, pairs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        model.eval()
        trained = answer_logps(model, pairs)[0]
        for layer in adapters(model).values():
            layer.enable_adapters(False)
        off = answer_logps(model, pairs)[0]
    torch.testing.assert_close(pairs.reference, off)
    assert not torch.allclose(trained, off, atol=1e-3)


def lora_command(world: Path, root: Path) -> list[str]:
    """`fit` of two stages, the second with adapters."""
    options = {"rank": 4, "alpha": 8.0, "dropout": 0.1, "targets": "all-linear"}
    words = [f"--stages.instruct.lora.{key}={value}" for key, value in options.items()]
    return [
        *command(world, root)[3:],
        *words,
        "--stages.align.data.max_steps=2",
        "--stages.instruct.data.max_steps=4",
    ]


@needs_peft
def test_an_interrupted_stage_goes_on_exactly_and_needs_no_peft_when_done(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llava_lab.core import signals
    from llava_lab.train.checkpoint import StageCheckpoint

    main(lora_command(small_world, tmp_path / "whole"))
    save = StageCheckpoint.save
    sizes = []

    def stop(self: StageCheckpoint, trainer) -> None:
        save(self, trainer)
        if self.folder.name == "instruct" and trainer.global_step == 2:
            file = max(self.folder.glob("step-*.ckpt"))
            state = torch.load(file, weights_only=True)["state_dict"]
            sizes.append({name.split(".")[0] for name in state if "lora_" not in name})
            raise signals.interruption()

    monkeypatch.setattr(StageCheckpoint, "save", stop)
    with pytest.raises(SystemExit):
        main(lora_command(small_world, tmp_path / "parts"))
    assert sizes == [{"connector"}]  # of the LM the adapters alone
    monkeypatch.setattr(StageCheckpoint, "save", save)
    main(lora_command(small_world, tmp_path / "parts"))
    whole, parts = outcome(tmp_path / "whole"), outcome(tmp_path / "parts")
    for name, tensor in whole[0]["instruct"].items():
        assert tensor.equal(parts[0]["instruct"][name]), name
    assert whole[1]["benchmarks"] == parts[1]["benchmarks"]
    cost = whole[1]["cost"]
    assert cost["trainable_parameters"] < cost["parameters"] / 4
    (run,) = (tmp_path / "whole" / "runs").glob("llava15/*")
    found = importlib.util.find_spec
    without = lambda name, *more: None if name == "peft" else found(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    model, _ = load_model(run)
    stored = load_file(run / "stages" / "instruct" / "weights.safetensors")
    assert all(model.state_dict()[name].equal(tensor) for name, tensor in stored.items())
    main(lora_command(small_world, tmp_path / "whole"))  # finished: peft is not asked for


@needs_peft
def test_adapters_go_on_any_part_and_train_at_its_rate(folder: Path) -> None:  # noqa: F811
    model = tiny()
    lora = Lora(rank=2, alpha=4.0, parts=["encoder.mlp", "llm.layers.1"])
    rates = {"encoder": 1e-3, "llm": 2e-4, "llm.layers.0": 1e-5}
    stage = Stage(None, NextToken(), rates, lora=lora)
    size = stage.size(model)
    stage.begin(model)
    found = set(adapters(model))
    assert {name.split(".")[0] for name in found} == {"encoder", "llm"}
    assert all("layers.1." in name for name in found if name.startswith("llm."))
    free = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert sum(weight.numel() for weight in free.values()) == size
    beside = {name for name in free if "lora_" not in name}
    # What no adapter stands for trains itself: the first layer, embeddings, the final norm.
    assert not any("layers.1." in name or ".mlp." in name.split("llm")[0] for name in beside)
    assert any("layers.0." in name for name in beside)
    rate = {id(w): group["lr"] for group in stage.groups() for w in group["params"]}
    for name, weight in free.items():
        part = "encoder" if name.startswith("encoder") else "llm"
        key = "llm.layers.0" if "llm.model.model.layers.0." in name else part
        assert rate[id(weight)] == rates[key], name
    _, pairs = pairs_of(model, folder)
    stage.loss(model, pairs)[0].backward()
    stage.finish(model)
    assert not adapters(model) and set(model.state_dict()) == set(tiny().state_dict())


@needs_peft
def test_a_layer_whose_name_ends_as_anothers_gets_no_adapter() -> None:
    class Nested(nn.Sequential, Connector):
        def __init__(self, in_width: int, out_width: int):
            inner = nn.Sequential(nn.Linear(out_width, out_width), nn.GELU())
            super().__init__(nn.Linear(in_width, out_width), nn.GELU(), inner)

    base = tiny()
    model = Llava(base.encoder, Nested, base.llm)
    lora = Lora(rank=2, alpha=4.0, parts=["connector.0"])
    stage = Stage(None, NextToken(), {"connector": 1e-3}, lora=lora)
    size = stage.size(model)
    stage.begin(model)
    assert set(adapters(model)) == {"connector.0"}
    assert sum(w.numel() for w in model.parameters() if w.requires_grad) == size


@pytest.mark.parametrize(
    ("parts", "rates", "message"),
    [
        (["llm.layers.0-1"], {"llm.layers.0": 1e-3}, r"lr has no rate for llm\..*layers\.1\."),
        (["llm.norm"], {"llm": 1e-3}, r"lora\.parts: llm\.norm has no linear layer"),
        (["llm.layer"], {"llm": 1e-3}, r"lora\.parts: 'llm\.layer' chooses no weight"),
    ],
)
def test_adapters_without_a_layer_or_a_rate_are_refused(
    parts: list[str], rates: dict[str, float], message: str
) -> None:
    stage = Stage(None, NextToken(), rates, lora=Lora(rank=2, alpha=4.0, parts=parts))
    with pytest.raises(ValueError, match=message):
        stage.begin(tiny())


@needs_peft
def test_without_bitsandbytes_one_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = importlib.util.find_spec
    without = lambda name, *more: None if name == "bitsandbytes" else found(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    stage = Stage(None, NextToken(), {"llm": 1e-3}, lora=Lora(rank=2, alpha=4.0, quantize="4bit"))
    with pytest.raises(ValueError, match=r"bitsandbytes, which is not there: pip install .*qlora"):
        stage.begin(tiny())


@needs_peft
@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="an extra")
def test_weights_in_4_bits_train_adapters_and_come_back_whole(folder: Path) -> None:  # noqa: F811
    model = tiny(width=64)
    names, whole = set(model.state_dict()), tiny(width=64).eval()
    parts = ["llm.self_attn", "llm.up_proj"]  # these take 64 features
    lora = Lora(rank=4, alpha=8.0, parts=parts, quantize="4bit")
    stage = Stage(None, NextToken(), dict.fromkeys(parts, 1e-2), lora=lora)
    stage.begin(model)
    layer = model.llm.model.model.layers[0].mlp.up_proj
    assert layer.get_base_layer().weight.dtype == torch.uint8
    assert {name for name in model.state_dict() if stage.keeps(name)} == {
        name for name, weight in model.named_parameters() if weight.requires_grad
    }
    _, pairs = pairs_of(model, folder)
    stage.on_train_epoch_start(None, model)  # the tiny encoder has running means
    optimizer = torch.optim.AdamW(list(stage.groups()))
    losses = []
    for _ in range(6):
        loss, _ = stage.loss(model, pairs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    model.eval()
    with torch.no_grad():
        before = model(pairs)
        stage.finish(model)
        after = model(pairs)
        scale = before.abs().max()
        assert (before - after).abs().max() <= 1e-5 * scale
        whole.load_state_dict({**whole.state_dict(), **stage.trained(model)})
        assert whole(pairs).equal(after)
    assert set(model.state_dict()) == names
    stage = Stage(None, NextToken(), {"llm": 1e-2}, lora=replace(lora, parts=["llm"]))
    with pytest.raises(ValueError, match=r"lora\.quantize: .*down_proj takes 48 features"):
        stage.begin(tiny(width=64))


def test_without_peft_one_message_says_what_to_install(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"lora needs peft.*pip install"):
        main(lora_command(small_world, tmp_path))
    assert not list(tmp_path.glob("runs/[!.]*/*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ["q_prj"]}, r"no linear layer 'q_prj' among \['down_proj'"),
        ({"rank": 0}, "rank"),
    ],
)
def test_what_cannot_be_adapted_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lora(**{"rank": 4, "alpha": 8.0, **changes}).layers(tiny())
    with pytest.raises(ValueError, match="lr has no llm"):
        Stage(None, NextToken(), {"connector": 1e-3}, lora=LORA)
