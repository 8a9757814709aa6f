"""What a stage reads of a batch is in every kind that ships; a stage refuses others by name."""

import importlib
import json
import pkgutil
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
import torch
from PIL import Image
from torch import Tensor

from llava_lab.data import modules
from llava_lab.data.loader import StepPart
from llava_lab.data.modules.answers import AnswerBatch
from llava_lab.data.modules.image import ImageDataModule
from llava_lab.data.modules.phrases import PhraseBatch, PhraseDataModule
from llava_lab.data.modules.preference import Pairs, PreferenceDataModule
from llava_lab.data.modules.stage import StageDataModule
from llava_lab.data.packing import Batch, StageBatch, work
from llava_lab.data.source import Source
from llava_lab.data.views.pad import Pad
from llava_lab.model.connector.mlp import MLP
from llava_lab.model.encoder.timm import TimmEncoder
from llava_lab.model.llava import Llava
from llava_lab.model.llm import CausalLM

CONFIG = {
    "model_type": "llama",
    "vocab_size": 768,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
# Rows of each format, the third one without a picture where the format has such rows.
ROWS: dict[type, list[dict[str, Any]]] = {
    ImageDataModule: [
        {"id": name, "image": image, "conversations": [
            {"from": "human", "value": ("<image>\n" if image else "") + "What is it?"},
            {"from": "gpt", "value": f"It is {name}."},
        ]}
        for name, image in (("a", "0.png"), ("bcd", "1.png"), ("e", None))
    ],
    PhraseDataModule: [
        {"id": "a", "image": "0.png", "phrases": ["a red star", "a ring"]},
        {"id": "b", "image": "1.png", "phrases": ["a ring"]},
        {"id": "c", "image": "2.png", "phrases": ["a blue heart"]},
    ],
    PreferenceDataModule: [
        {"id": "a", "image": "0.png", "prompt": "What?", "chosen": "A cat.", "rejected": "A dog."},
        {"id": "b", "image": "1.png", "prompt": "Who?", "chosen": "Nobody.", "rejected": "Me."},
        {"id": "c", "prompt": "Why?", "chosen": "No reason.", "rejected": "I do not know."},
    ],
}  # fmt: skip
MADE = {ImageDataModule: Batch, PhraseDataModule: PhraseBatch, PreferenceDataModule: Pairs}


def shipped() -> list[type[StageDataModule]]:
    """All DataModules of `llava_lab.data.modules`."""
    for module in pkgutil.iter_modules(modules.__path__, f"{modules.__name__}."):
        importlib.import_module(module.name)
    found, new = [], [StageDataModule]
    while new:
        new = [each for kind in new for each in kind.__subclasses__()]
        found += [each for each in new if each.__module__.startswith(modules.__name__)]
    return found


@pytest.fixture(scope="module")
def model() -> Llava:
    options = {"embed_dim": 32, "depth": 1, "num_heads": 4, "mlp_ratio": 2}
    encoder = TimmEncoder("vit_tiny_patch16_224", -1, False, False, 64, None, options)
    llm = CausalLM(None, "v1", pretrained=False, config=CONFIG, tokenizer="asset:tokenizer")
    return Llava(encoder, MLP, llm)


def batch_of(kind: type, model: Llava, folder: Path, numbers: list[int]) -> Any:
    """A batch of some of a format's rows."""
    for number in range(3):
        Image.new("RGB", (40, 30), (90 * number, 9, 9)).save(folder / f"{number}.png")
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[kind]))
    where = (path, folder) if kind is PhraseDataModule else ([Source(path, folder)],)
    data = kind(*where, views=Pad(), batch_size=3)
    data.trainer = SimpleNamespace(lightning_module=model)
    data.setup("fit")
    rows = data.train_rows()
    return data.collate([rows[n] for n in numbers], StepPart(numbers, False, [0, 1, 2], 0, 1))


def test_every_shipped_kind_of_batch_is_in_these_tests() -> None:
    hints = {kind: get_type_hints(kind.collate)["return"] for kind in shipped()}
    made = {getattr(kind, "batch", hint) for kind, hint in hints.items()}
    assert made - {StageBatch, AnswerBatch} | {Batch} == set(MADE.values())


@pytest.mark.parametrize("kind", MADE, ids=lambda kind: kind.__name__)
def test_every_shipped_batch_has_what_a_stage_reads(
    kind: type, model: Llava, tmp_path: Path
) -> None:
    batch = batch_of(kind, model, tmp_path, [0, 1, 2])
    assert type(batch) is MADE[kind] and isinstance(batch, StageBatch)
    assert len(batch) == len(batch.sources) == len(batch.visual_tokens) == 3
    assert len(set(batch.sources)) == 3
    assert batch.visual_tokens[:2] == [16, 16]
    assert batch.encoded_tokens == sum(batch.visual_tokens)
    assert batch.encoded_tokens < batch.tokens and batch.lm_tokens in (0, batch.tokens)
    apart = [work(batch_of(kind, model, tmp_path, [number])) for number in range(3)]
    counts = work(batch)
    assert counts["samples"] == 3
    for name in counts.keys() - {"tokens"} if kind is PhraseDataModule else counts:
        assert counts[name] == sum(each[name] for each in apart), name


@pytest.mark.parametrize("kind", MADE, ids=lambda kind: kind.__name__)
def test_a_batch_goes_to_a_device_with_all_its_tensors(
    kind: type, model: Llava, tmp_path: Path
) -> None:
    batch = batch_of(kind, model, tmp_path, [0, 1])
    moved = batch.to(torch.device("meta"))
    assert type(moved) is type(batch)
    tensors = [f.name for f in fields(batch) if isinstance(getattr(batch, f.name), Tensor)]
    assert tensors and all(getattr(moved, name).is_meta for name in tensors)
    assert not any(getattr(batch, name).is_meta for name in tensors)
    assert moved.sources == batch.sources and moved.visual_tokens == batch.visual_tokens


def test_a_batch_that_lacks_something_is_refused_by_name() -> None:
    @dataclass
    class Half:
        sources: list[str]
        tokens: int = 3

    with pytest.raises(
        ValueError, match="Half is no batch of a stage: it has no __len__, connected_tokens, enc"
    ):
        work(Half(["row 1"]))
