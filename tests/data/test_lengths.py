"""Lengths in tokens are those of the encoded rows, and are counted once."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from test_preference import tiny

from llava_lab.data.loader import split_step
from llava_lab.data.modules import lengths
from llava_lab.data.modules.image import ImageDataModule
from llava_lab.data.source import Source
from llava_lab.data.views.pad import Pad


@pytest.fixture
def sources(tmp_path: Path, cache: Path) -> list[Source]:
    found = []
    for name, weight in (("short", 1.0), ("long", 2.0), ("left_out", 0.0)):
        rows = []
        for number in range(12):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (number, len(name), 0)).save(tmp_path / name / f"{number}.png")
            asked = "<image>\n" * (number % 2) + "What is it?"
            told = "A dog. " * 2 * (number + 1)
            talk = [{"from": "human", "value": asked}, {"from": "gpt", "value": told}]
            image = {"image": f"{name}/{number}.png"} if number % 2 else {}
            rows.append({"id": f"{name}{number}", **image, "conversations": talk})
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        found.append(Source(tmp_path / f"{name}.json", tmp_path, weight=weight))
    return found


def test_costs_are_the_tokens_of_the_encoded_rows_and_are_counted_once(
    sources: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, counted = tiny(), []
    real = lengths._length
    monkeypatch.setattr(lengths, "_length", lambda *each: counted.append(1) or real(*each))

    def made(**options: Any) -> ImageDataModule:
        data = ImageDataModule(sources, Pad(), 6, max_length=70, hold_out=0.2, **options)
        data.read(model)
        return data

    data = made()
    costs = lengths.costs_of(data, model)
    rows = data.encoded(data.samples, model)
    every = [len(row.segments[0].ids) for row in rows]
    assert costs == every and max(costs) == 70 and len(counted) == 24
    assert lengths.costs_of(made(), model) == costs and len(counted) == 24
    monkeypatch.setattr(ImageDataModule, "model", model)
    by_words, by_tokens = made(), made(deal_by="tokens")
    assert by_words.costs() == by_words.lengths()[0] and by_tokens.costs() == costs
    assert by_words.order() == by_tokens.order()

    device = SimpleNamespace(root_device=torch.device("cpu"))
    by_tokens.trainer = SimpleNamespace(global_rank=1, world_size=2, strategy=device)
    loader = by_tokens.train_dataloader()
    assert loader.order.steps == [
        split_step(step, costs, accumulate=1, rank=1, world=2) for step in by_words.order()
    ]
