"""Options of a stage that do nothing beside its others are refused, or said in a line."""

from pathlib import Path
from typing import Any

import pytest
from test_preference import tiny

from llava_lab.data.chat import get_template
from llava_lab.data.modules.image import ImageDataModule
from llava_lab.data.sample import Turn
from llava_lab.data.source import Source
from llava_lab.data.templates import CHAT_FORMATS
from llava_lab.data.views.pad import Pad
from llava_lab.model.llava import Llava
from llava_lab.train.idle import idle_lines
from llava_lab.train.lora import Lora
from llava_lab.train.loss import NextToken
from llava_lab.train.stage import Stage


@pytest.fixture(scope="module")
def model() -> Llava:
    return tiny()


def rows(*templates: str | None, **options: Any) -> ImageDataModule:
    """Rows of sources that name these templates; no file of theirs is read."""
    sources = [Source(Path("rows.json"), template=each) for each in templates or (None,)]
    made = ImageDataModule(sources, Pad(), 2, **options)
    made.name = "align"
    return made


def test_a_rate_of_what_is_frozen_is_said_with_what_trains_it(model: Llava) -> None:
    rates = {"llm": 1e-3, "encoder.blocks.0": 1e-5, "llm.norm": None, "llm.lm_head": 1e-4}
    frozen = ("encoder", "llm.lm_head", "connector")
    stage = Stage(rows(), NextToken(), rates, frozen=frozen)
    first, second = idle_lines(stage, model)
    assert first == (
        "stage align: lr.encoder.blocks.0 does nothing: encoder is frozen; "
        "stages.align.frozen=[llm.lm_head, connector] trains it"
    )
    assert "lr.llm.lm_head does nothing: llm.lm_head is frozen; stages.align.frozen=[enc" in second
    stage.prepare(model)
    assert not any(weight.requires_grad for weight in model.encoder.parameters())
    for part in (("encoder.norm",), ()):  # others of the key's weights train
        assert not [*idle_lines(Stage(rows(), NextToken(), {"encoder": 1.0}, frozen=part), model)]
    off = Stage(rows(), NextToken(), {"llm": 1.0, "encoder": None}, frozen=("encoder",))
    assert not [*idle_lines(off, model)]


def test_a_rate_of_weights_without_an_adapter_is_refused(model: Llava) -> None:
    for key in ("llm.embed_tokens", "llm.norm", "llm.lm_head", "llm.input_layernorm"):
        rates = {"connector": 1e-3, "llm": 1e-4, key: 1e-3}
        adapted = Stage(rows(), NextToken(), rates, lora=Lora(rank=2, alpha=4.0))
        with pytest.raises(ValueError, match=rf"stages\.align\.lr\.{key} does nothing: none of"):
            adapted.check_keys(model)
        Stage(rows(), NextToken(), rates).check_keys(model)
    beside = Lora(rank=2, alpha=4.0, parts=["llm.layers"])
    for key in ("llm.embed_tokens", "llm.q_proj"):  # trains itself; gets adapters
        Stage(rows(), NextToken(), {"llm": 1e-4, key: 1e-3}, lora=beside).check_keys(model)


def test_a_decay_of_vectors_is_refused(model: Llava) -> None:
    with pytest.raises(ValueError, match=r"stages\.align\.weight_decay: 0\.1 does nothing"):
        Stage(rows(), NextToken(), {"llm.norm": 1.0}, weight_decay=0.1).check_keys(model)
    for rates in ({"llm.norm": 1.0, "llm.lm_head": 1.0}, {"connector": 1.0}):
        Stage(rows(), NextToken(), rates, weight_decay=0.1).check_keys(model)


def test_a_position_of_what_stands_alone_is_refused(model: Llava) -> None:
    rates = {"connector": 1.0}
    for position in ("last", "first_or_last"):
        options: dict[str, Any] = {"template": "plain", "image_position": position}
        with pytest.raises(ValueError, match=rf"align\.data\.image_position: {position} does no"):
            Stage(rows(**options), NextToken(), rates).check_keys(model)
        Stage(rows("v1", None, **options), NextToken(), rates).check_keys(model)
        Stage(rows(image_position=position), NextToken(), rates).check_keys(model)
    # As experiments/llava10.yaml has it, behind which the template may be another.
    kept = rows(template="plain", image_position="keep")
    Stage(kept, NextToken(), rates).check_keys(model)


@pytest.mark.parametrize("name", CHAT_FORMATS)
@pytest.mark.parametrize("masking", ["released", "all"])
def test_a_masking_is_said_to_do_nothing_exactly_where_labels_are_those_of_correct(
    name: str, masking: Any, model: Llava, byte_tokenizer, llama_tokenizer
) -> None:
    tokenizer = byte_tokenizer if CHAT_FORMATS[name].special else llama_tokenizer
    turns = [Turn("user", "<image>\nWhat is there?"), Turn("assistant", "A dog.")]
    labels = [
        get_template(name, each).encode(turns, tokenizer, [3], "row").labels
        for each in ("correct", masking)
    ]
    stage = Stage(rows(template=name, masking=masking), NextToken(), {"connector": 1.0})
    lines = [*idle_lines(stage, model)]
    said = f"stage align: data.masking={masking} does nothing: with template {name} it trains on"
    assert bool(lines) == (labels[0] == labels[1])
    assert all(said in line for line in lines)
    both = rows(name, "v0" if masking == "released" else "v1", masking=masking)
    assert not [*idle_lines(Stage(both, NextToken(), {"connector": 1.0}), model)]
