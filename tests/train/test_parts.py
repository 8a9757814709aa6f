"""Keys of learning rates: which weights they choose, what they refuse, and what follows of them."""

import pytest
import torch
from test_preference import tiny
from torch import nn

from llava_lab.data.packing import Batch, EncodedSample, Segment
from llava_lab.model.llava import Llava
from llava_lab.train.loss import NextToken
from llava_lab.train.parts import PartKeys, Selection, chooses, names_of, weights_of
from llava_lab.train.record import part_costs
from llava_lab.train.stage import Stage

BLOCK = "encoder.tower.blocks.21.attn.qkv.weight"


@pytest.mark.parametrize(
    ("key", "chosen"),
    [
        ("encoder", True),
        ("encoder.blocks", True),
        ("encoder.blocks.21", True),
        ("encoder.blocks.20-23", True),
        ("encoder.tower.blocks.20-23.qkv.weight", True),
        ("encoder.qkv", True),
        ("encoder.blocks.22-23", False),
        ("encoder.blocks.2", False),
        ("encoder.21", False),  # a number directly follows the word before it
        ("encoder.0-30", False),
        ("encoder.block", False),
        ("encoder.qkv.blocks", False),
        ("llm", False),
        ("blocks", False),
        (f"{BLOCK}.more", False),
    ],
)
def test_a_key_is_words_of_a_name_in_their_order(key: str, chosen: bool) -> None:
    assert chooses(key.split("."), BLOCK.split(".")) is chosen


def test_the_key_of_most_words_decides_and_null_freezes() -> None:
    rates = {"encoder": 1e-6, "encoder.blocks.20-23": 2e-6, "encoder.blocks.21.attn": None}
    chosen = Selection(rates)
    assert chosen.key("encoder.norm.weight") == "encoder"
    assert chosen.key("encoder.tower.blocks.22.attn.qkv.weight") == "encoder.blocks.20-23"
    assert chosen.key(BLOCK) is None
    assert chosen.key("llm.norm.weight") is None
    frozen = Selection(rates | {"llm": 1e-5}, frozen=["encoder.blocks"], scale=2.0)
    assert frozen.lr == {"encoder": 2e-6, "llm": 2e-5}
    assert frozen.key("encoder.tower.blocks.22.attn.qkv.weight") is None


def test_two_keys_of_as_many_words_are_refused_by_name() -> None:
    keys = PartKeys(["encoder.blocks", "encoder.qkv", "encoder"], "lr")
    with pytest.raises(ValueError, match=r"lr: 'encoder\.blocks' and 'encoder\.qkv' both choose"):
        keys.of(BLOCK)
    assert keys.of("encoder.blocks.1.mlp.weight") == "encoder.blocks"


@pytest.mark.parametrize("key", ["", "llm.", ".layers", "llm..norm", "encoder.blocks.23-20"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="is no key; keys are a part and words below it"):
        PartKeys([key], "lr")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("encodr", r"lr: unknown part 'encodr'\. Parts are .*connector.*Did you mean 'encoder'\?"),
        ("llm.leyers.0", r"'llm\.leyers\.0' chooses no weight of the model; near are .*layers\.0"),
        ("llm.layers.7-9", r"'llm\.layers\.7-9' chooses no weight of the model; near are"),
        ("newline", "the model has no newline to train"),
        ("loss", "the model has no loss to train"),
    ],
)
def test_a_key_that_chooses_nothing_is_refused_with_what_is_near(key: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stage(None, NextToken(), {"llm": 1e-5, key: 1e-5}).prepare(tiny())


def test_a_stage_of_some_layers_trains_and_keeps_exactly_those() -> None:
    model = tiny()
    stage = Stage(None, NextToken(), {"connector": 1e-3, "llm.layers.1": 2e-5, "llm.norm": 1e-5})
    stage.prepare(model)
    inside = ("connector.", "llm.model.model.layers.1.")
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    wanted = {n for n, _ in model.named_parameters() if n.startswith(inside)}
    assert trained == wanted | {"llm.model.model.norm.weight"}
    assert set(stage.trained(model)) == trained
    assert {name for name in model.state_dict() if stage.keeps(name)} == trained
    assert stage.size(model) == sum(model.get_parameter(name).numel() for name in trained)
    rates = {group["name"]: group["lr"] for group in stage.groups()}
    assert rates == {"connector": 1e-3, "llm.layers.1": 2e-5, "llm.norm": 1e-5}
    grouped = [weight for group in stage.groups() for weight in group["params"]]
    assert {id(w) for w in grouped} == {id(model.get_parameter(name)) for name in trained}
    assert len(grouped) == len(trained)
    layers = model.llm.model.model.layers
    assert layers[1].training and layers[1].self_attn.training and not layers[0].training
    assert model.llm.training and not model.encoder.training


def test_gradients_and_updates_reach_the_chosen_layers_alone() -> None:
    model = tiny()
    stage = Stage(None, NextToken(), {"llm.layers.1": 1e-2})
    stage.prepare(model)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.AdamW(list(stage.groups()))
    ids = list(range(5, 15))
    batch = Batch.pack([EncodedSample([Segment(ids, ids)], None, [], "row 1")])
    stage.loss(model, batch)[0].backward()
    optimizer.step()
    moved = {name for name, each in model.named_parameters() if not each.equal(before[name])}
    assert moved == {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_a_part_of_the_users_own_trains_by_its_name() -> None:
    class Gated(Llava):
        def __init__(self, model: Llava):
            super().__init__(model.encoder, lambda *_: model.connector, model.llm)
            self.gate = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.Linear(4, 2))

    model = Gated(tiny())
    stage = Stage(None, NextToken(), {"gate.2": 1e-3})
    stage.prepare(model)
    assert set(stage.trained(model)) == {"gate.2.weight", "gate.2.bias"}
    assert stage.size(model) == 10
    with pytest.raises(ValueError, match="Parts are encoder, llm, connector, newline, gate, loss"):
        Stage(None, NextToken(), {"gates": 1e-3}).prepare(model)


def test_a_tied_weight_is_chosen_by_either_of_its_names() -> None:
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.llm = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5)})
            self.llm["head"].weight = self.llm["embed"].weight

    weights = weights_of(Tied(), nn.Module())
    for key in ("llm.embed", "llm.head"):
        keys = [PartKeys([key], "lr").of(*names) for _, names in names_of(weights)]
        assert keys[0] == key


def test_costs_follow_from_what_trains() -> None:
    model = tiny()
    seen = {"connector": 10, "llm": 20}
    sizes = {name: model.size(name) for name in ("connector", "llm")}
    last = sum(w.numel() for w in model.llm.model.model.layers[1].parameters())
    norm = model.llm.model.model.norm.weight.numel()
    head = model.llm.head().weight.numel()

    def costs(lr: dict[str, float], **options: object) -> dict[str, float]:
        return part_costs(model, Selection(lr, **options), seen)

    whole = {"connector": 6 * sizes["connector"] * 10, "llm": 6 * sizes["llm"] * 20}
    assert costs({"connector": 1.0, "llm": 1.0}) == whole
    align = costs({"connector": 1.0})
    assert align == {"connector": whole["connector"], "llm": 4 * sizes["llm"] * 20}
    assert costs({"encoder": 1.0})["connector"] == 2 * sizes["connector"] * 10
    adapted = costs({"llm": 1.0}, adapted=["llm"])
    assert adapted == {"connector": 2 * sizes["connector"] * 10, "llm": 4 * sizes["llm"] * 20}
    # The gradient of inputs ends at the second of two layers.
    top = costs({"llm.layers.1": 1.0})
    assert top["llm"] == 20 * (2 * sizes["llm"] + 2 * (last + norm + head) + 2 * last)
