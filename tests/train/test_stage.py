"""A stage frees what it names, at the rate it names, on the schedule of the published trainers."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import LLAMA
from lightning import seed_everything
from lightning.pytorch import Callback
from safetensors.torch import save_file
from test_waiting import stage_of, trainer_of
from torch import nn
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from llava_lab.core.modes import evaluating
from llava_lab.core.tensors import digest
from llava_lab.data.forest import Forest
from llava_lab.model.connector.base import Connector
from llava_lab.model.connector.mlp import MLP
from llava_lab.model.encoder.timm import TimmEncoder
from llava_lab.model.llava import Llava
from llava_lab.model.llm import CausalLM
from llava_lab.model.weights import load_part, read_weights, seeded
from llava_lab.train.idle import idle_lines
from llava_lab.train.loss import NextToken
from llava_lab.train.muon import Muon
from llava_lab.train.stage import Stage

CONFIG = {**LLAMA, "num_hidden_layers": 1}


@pytest.fixture
def model() -> Llava:
    options = {"embed_dim": 32, "depth": 1, "num_heads": 4, "mlp_ratio": 2}
    encoder = TimmEncoder("xcit_nano_12_p16_224", -1, False, False, 64, None, options)
    llm = CausalLM(None, "v1", pretrained=False, config=CONFIG, tokenizer="asset:tokenizer")
    return Llava(encoder, MLP, llm)


def test_parts_train_at_their_own_rates_and_the_rest_is_frozen(model: Llava) -> None:
    stage = Stage(None, NextToken(), {"connector": 1e-3, "encoder": 2e-6}, weight_decay=0.1)
    stage.prepare(model)
    assert not any(weight.requires_grad for weight in model.llm.parameters())
    groups = list(stage.groups())
    assert {(group["name"], group["lr"]) for group in groups} == {
        ("connector", 1e-3),
        ("encoder", 2e-6),
    }
    for group in groups:
        plain = all(weight.ndim <= 1 for weight in group["params"])
        assert group["weight_decay"] == (0.0 if plain else 0.1)
    freed = sum(weight.numel() for group in groups for weight in group["params"])
    assert freed == model.size("connector") + model.size("encoder")
    assert set(name.split(".")[0] for name in stage.trained(model)) == {"connector", "encoder"}


def test_a_scale_scales_rates_and_freezes_parts(model: Llava) -> None:
    rates = {"connector": 1e-3, "encoder": 2e-6, "llm": 2e-5}
    stage = Stage(None, NextToken(), rates, lr_scale=50.0, frozen=("encoder",))
    assert stage.lr == pytest.approx({"connector": 5e-2, "llm": 1e-3})
    stage.prepare(model)
    assert not any(weight.requires_grad for weight in model.encoder.parameters())
    with pytest.raises(ValueError, match="the model has no newline to train"):
        Stage(None, NextToken(), {"newline": 1.0}).prepare(model)
    with pytest.raises(ValueError, match="no part trains"):
        Stage(None, NextToken(), {"llm": 1.0}, frozen=("llm",))
    with pytest.raises(ValueError, match="unknown part 'lm'"):
        Stage(None, NextToken(), {"llm": 1.0}, frozen=("lm",)).prepare(model)


def test_muon_moves_hidden_matrices_and_adamw_the_rest(model: Llava) -> None:
    stage = Stage(None, NextToken(), {"llm": 1e-2}, optimizer="muon", weight_decay=0.1)
    stage.prepare(model)
    groups = list(stage.groups())
    hidden = [w for group in groups if group["hidden"] for w in group["params"]]
    layer = model.llm.model.model.layers[0]
    children = [*layer.self_attn.children(), *layer.mlp.children()]
    linear = [child.weight for child in children if isinstance(child, torch.nn.Linear)]
    assert len(linear) == 7
    assert {id(weight) for weight in hidden} == {id(weight) for weight in linear}
    freed = [w for group in groups for w in group["params"]]
    assert len({id(w) for w in freed}) == len(freed) == len(list(model.llm.parameters()))
    before = {id(w): w.detach().clone() for w in freed}
    optimizer = Muon(groups)
    for weight in freed:
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    for weight in hidden:
        # Orthogonal, so that all singular values of the update are near one another.
        values = torch.linalg.svdvals(weight - before[id(weight)] * (1 - 1e-2 * 0.1))
        assert values[:-1].min() > 0.3 * values.max()
    assert all(not torch.equal(w, before[id(w)]) for w in freed)


def test_muon_refuses_an_lms_matrices_that_are_no_linear_layers(model: Llava) -> None:
    stage = Stage(SimpleNamespace(name="s"), NextToken(), {"llm": 1e-2}, optimizer="muon")
    stage.check(model, {})
    small = {"vocab_size": 768, "n_embd": 32, "n_layer": 1, "n_head": 4}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    config = {"model_type": "gpt2", **small, **ends}
    model.llm = CausalLM(None, "v1", pretrained=False, config=config, tokenizer="asset:tokenizer")
    with pytest.raises(ValueError, match=r"muon: llm\.\S+c_attn\.weight is a matrix of a Conv1D"):
        stage.check(model, {})
    Stage(stage.data, NextToken(), {"llm": 1e-2}).check(model, {})


def test_where_muon_is_adamw_it_is_said(model: Llava) -> None:
    data, rates = SimpleNamespace(name="s"), {"llm.embed_tokens": 1e-3, "llm.norm": 1e-3}

    def said(optimizer: str, **more: float) -> list[str]:
        stage = Stage(data, NextToken(), rates | more, optimizer=optimizer)
        stage.check(model, {})
        return list(idle_lines(stage, model))

    assert said("muon") == [
        "stage s: optimizer=muon does nothing: no matrix of a linear layer trains, and AdamW "
        "trains all else"
    ]
    assert said("adamw") == said("muon", connector=1e-3) == []


def test_muon_goes_on_from_its_state() -> None:
    def make() -> tuple[torch.nn.Linear, Muon]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(8, 8)
        groups = [
            {"params": [layer.weight], "lr": 0.1, "hidden": True},
            {"params": [layer.bias], "lr": 0.1, "hidden": False},
        ]
        return layer, Muon(groups)

    def step(layer: torch.nn.Linear, optimizer: Muon, seed: int) -> None:
        torch.manual_seed(seed)
        optimizer.zero_grad()
        layer(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()

    whole, steady = make()
    for seed in range(4):
        step(whole, steady, seed)
    part, first = make()
    for seed in range(2):
        step(part, first, seed)
    again, second = make()
    again.load_state_dict(part.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for seed in range(2, 4):
        step(again, second, seed)
    assert torch.equal(again.weight, whole.weight) and torch.equal(again.bias, whole.bias)
    # A schedule writes the rate into the groups; it must be the one that is used.
    for group in second.param_groups:
        group["lr"] = 0.0
    step(again, second, 9)
    assert torch.equal(again.weight, whole.weight) and torch.equal(again.bias, whole.bias)


def test_a_frozen_encoder_keeps_its_running_statistics(model: Llava) -> None:
    stage = Stage(None, NextToken(), {"connector": 1e-3})
    stage.prepare(model)
    before = digest(model.encoder.state_dict())
    model.train()
    stage.on_train_epoch_start(SimpleNamespace(), model)
    model.encode(torch.randn(2, 3, 64, 64))
    assert digest(model.encoder.state_dict()) == before


def test_statistics_that_a_stage_does_not_keep_do_not_move(model: Llava) -> None:
    class Normed(Connector):
        def __init__(self, in_width: int, out_width: int):
            super().__init__()
            self.norm, self.out = nn.BatchNorm1d(in_width, affine=False), MLP(in_width, out_width)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.out(self.norm(features.flatten(0, 2)).view(features.shape))

    model = Llava(model.encoder, Normed, model.llm)
    for key, names in (("connector.out", set()), ("connector", {"running_mean", "running_var"})):
        stage = Stage(None, NextToken(), {key: 1e-3})
        stage.prepare(model)
        model.train()
        stage.on_train_epoch_start(SimpleNamespace(), model)
        before = {name: each.clone() for name, each in model.state_dict().items()}
        model.connector(torch.randn(1, 2, 2, model.encoder.width))
        moved = {n for n, each in model.state_dict().items() if not each.equal(before[n])}
        assert {n.rpartition(".")[2] for n in moved} - {"num_batches_tracked"} == names
        assert moved <= set(stage.trained(model)) and all(map(stage.keeps, moved))


@pytest.mark.parametrize("rates", [{"connector": 1e-3}, {"llm": 1e-3}], ids=["frozen", "trained"])
def test_an_lm_is_recomputed_frozen_or_not_and_only_where_a_stage_says_so(
    model: Llava, rates: dict[str, float]
) -> None:
    (layer,), calls = model.llm.model.model.layers, []
    layer.self_attn.attention_dropout = 0.5  # a frozen LM drops nothing
    layer.mlp.act_fn.register_forward_pre_hook(lambda *_: calls.append(1))
    row, found = torch.randn(6, model.llm.width, requires_grad=True), []
    for kept in (False, True, "products", False):
        stage = Stage(None, NextToken(), rates, gradient_checkpointing=kept)
        stage.prepare(model)
        model.train()
        stage.on_train_epoch_start(SimpleNamespace(), model)
        calls.clear()
        torch.manual_seed(0)
        hidden = model.llm(row, Forest((6,), (None,)))
        hidden.sum().backward()
        found.append(hidden)
        assert len(calls) == (2 if kept else 1), kept
    assert all(torch.equal(each, found[0]) for each in found)
    with evaluating(model):
        plain = model.llm(row, Forest((6,), (None,)))
    assert torch.equal(plain, found[0]) == ("llm" not in rates)


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [("cosine", get_cosine_schedule_with_warmup), ("linear", get_linear_schedule_with_warmup)],
)
def test_schedules_equal_those_of_transformers(schedule: str, theirs) -> None:
    stage = Stage(None, NextToken(), {"llm": 1.0}, schedule=schedule, warmup_ratio=0.03)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    steps = 5198  # LLaVA-1.5's second stage; ceil(0.03 x 5198) = 156 of warm-up
    wanted = theirs(optimizer, 156, steps).lr_lambdas[0]
    for step in range(0, steps + 1, 7):
        assert stage.factor(step, steps) == pytest.approx(wanted(step), abs=1e-12)


def test_what_a_stage_draws_hangs_on_nothing_before_it(tmp_path: Path) -> None:
    class Drawn(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            found.append(torch.get_rng_state())

    found: list[torch.Tensor] = []
    for before in (0, 7):
        seed_everything(3, workers=True, verbose=False)
        torch.rand(before)
        module, stage = stage_of("sft")
        trainer = trainer_of(stage, tmp_path, [stage, Drawn()], accelerator="cpu")
        trainer.fit(module, datamodule=stage.data)
    first, second = found[0], found[len(found) // 2]
    assert first.equal(second) and torch.initial_seed() == 3


def test_an_unknown_part_is_refused(model: Llava) -> None:
    with pytest.raises(ValueError, match="unknown part 'vision'"):
        Stage(None, NextToken(), {"vision": 1e-3}).prepare(model)
    with pytest.raises(ValueError, match="no part trains"):
        Stage(None, NextToken(), {})


def test_random_weights_depend_on_the_seed_and_the_name_alone() -> None:
    def draw(name: str) -> torch.Tensor:
        with seeded(name):
            return torch.randn(3)

    torch.manual_seed(1)
    first = draw("connector")
    torch.randn(100)
    assert torch.equal(draw("connector"), first)
    assert not torch.equal(draw("llm"), first)
    torch.manual_seed(2)
    assert not torch.equal(draw("connector"), first)


def test_weights_that_do_not_fit_are_listed(tmp_path, model: Llava) -> None:
    path = tmp_path / "connector.safetensors"
    weights = {key: value.clone() for key, value in model.connector.state_dict().items()}
    save_file({f"model.mm_projector.{key}": value for key, value in weights.items()}, path)
    load_part(model.connector, path, "model.mm_projector.")
    del weights["2.bias"]
    save_file(weights, path)
    with pytest.raises(ValueError, match=r"1 missing: 2\.bias"):
        load_part(model.connector, path)
    save_file({**weights, "2.bias": torch.zeros(3), "4.bias": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"1 unknown: 4\.bias"):
        load_part(model.connector, path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="damaged or cut short"):
        read_weights(path)
    with pytest.raises(FileNotFoundError, match=r"nope\.safetensors"):
        read_weights("nope.safetensors")
