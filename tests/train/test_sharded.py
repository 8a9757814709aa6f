"""Devices that share a model out learn what one learns, and none waits for ever."""

import itertools
import json
import os
import shutil
import socket
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import LLAMA
from lightning.pytorch import Callback, LightningDataModule, Trainer
from safetensors.torch import load_file, save_file
from torch import nn

from llava_lab.data.geometry import Layout
from llava_lab.data.loader import StageLoader, split_step
from llava_lab.data.packing import Batch, EncodedSample, Segment
from llava_lab.data.tokens import IGNORE, VISUAL
from llava_lab.model.connector.mlp import MLP
from llava_lab.model.encoder.timm import TimmEncoder
from llava_lab.model.llava import Llava
from llava_lab.model.llm import CausalLM
from llava_lab.train.checkpoint import StageCheckpoint
from llava_lab.train.doubles import layers
from llava_lab.train.loss import NextToken
from llava_lab.train.sharded import Sharded
from llava_lab.train.stage import Stage
from llava_lab.train.turns import Turns, ranks_apart

CONFIG = {**LLAMA, "tie_word_embeddings": True}
# Rows of a step, a letter each: a picture, or text. Of two devices one has text alone, at times.
STEPS = ["pttt", "tttt", "tppt", "tt"]
MICRO = 2
REDUCED: list[str] = []  # gradients that were reduced in this process


def counted(name: str) -> Any:
    own = getattr(dist, name)

    def reduce(*given: Any, **named: Any) -> Any:
        REDUCED.append(name)
        return own(*given, **named)

    return reduce


def make_model() -> Llava:
    torch.manual_seed(0)
    # A key's bias changes nothing after the softmax: its gradient is rounding.
    options = {"embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2, "qkv_bias": False}
    encoder = TimmEncoder("vit_tiny_patch16_224", -1, False, False, 64, None, options)
    llm = CausalLM(None, "v1", pretrained=False, config=CONFIG, tokenizer="asset:tokenizer")
    return Llava(encoder, MLP, llm, newline=True)


def make_rows(model: Llava) -> list[EncodedSample]:
    layout = Layout((model.view_spec.block(),))
    generator, rows = torch.Generator().manual_seed(1), []
    for number, kind in enumerate("".join(STEPS)):
        words = torch.randint(10, 700, (5 + 3 * (number % 4),), generator=generator).tolist()
        ids = [VISUAL] * layout.tokens + words if kind == "p" else words
        labels = [IGNORE] * (len(ids) - len(words) + 1) + words[1:]
        view = torch.randn(1, 3, 64, 64, generator=generator)
        seen = (view, [layout]) if kind == "p" else (None, [])
        rows.append(EncodedSample([Segment(ids, labels)], *seen, f"row {number}"))
    return rows


class Rows(LightningDataModule):
    """The steps, each split over devices and micro-batches."""

    features = feature_store = None
    name = "stage"

    def __init__(self, rows: list[EncodedSample]):
        super().__init__()
        self.rows = rows

    def stored_images(self) -> list[Path]:
        return []

    def steps(self) -> int:
        return len(STEPS)

    def train_dataloader(self) -> StageLoader:
        trainer: Any = self.trainer
        share = {
            "accumulate": trainer.accumulate_grad_batches,
            "rank": trainer.global_rank,
            "world": trainer.world_size,
        }
        steps, first = [], 0
        for kinds in STEPS:
            rows = list(range(first, first + len(kinds)))
            steps.append(split_step(rows, [1] * len(self.rows), **share))
            first += len(kinds)
        return StageLoader(self.rows, steps, lambda rows, part: Batch.pack(rows))


class Watch(Callback):
    """Keeps losses, and after which backward passes gradients had been reduced."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.reduced = [len(REDUCED)]
        self.apart: dict[str, torch.Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """One device computes three batches, the other one, of text."""
        rows = make_rows(pl_module)
        own = [rows[:2], rows[4:6], rows[8:12]] if trainer.global_rank == 0 else [rows[1:4]]
        with torch.no_grad(), ranks_apart(trainer, pl_module):
            for number, each in enumerate(own):
                self.apart[f"{trainer.global_rank}.{number}"] = pl_module(Batch.pack(each))

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        self.reduced.append(len(REDUCED))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        if "means" in outputs:
            self.losses.append(float(outputs["means"]["loss"]))


WHOLE = ("encoder", "connector", "newline", "llm")
# As with LoRA: words are frozen, so that rows of text have nothing below the first layer.
LAYERS = ("connector", "newline", "llm.model.model.layers")


def fit(
    folder: Path,
    strategy: Any,
    devices: int = 1,
    optimizer: str = "adamw",
    trained: tuple[str, ...] = WHOLE,
) -> None:
    """Train in this process, one of a job's, and write what came of it."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    model = make_model()
    rows = Rows(make_rows(model))
    lr = dict.fromkeys(trained, 1e-2)
    stage = Stage(rows, NextToken(), lr, schedule="constant", warmup_ratio=0, optimizer=optimizer)
    watch = Watch()
    checkpoint = StageCheckpoint(folder, "fingerprint", stage, 0.0)
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        max_epochs=1,
        accumulate_grad_batches=MICRO if devices > 1 else 1,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        callbacks=[watch, stage, checkpoint],
    )
    stage.begin(model)
    model.strict_loading = False
    trainer.fit(model, datamodule=rows, ckpt_path=checkpoint.newest())
    found = {"losses": watch.losses, "reduced": watch.reduced}
    (folder / f"{trainer.global_rank}.json").write_text(json.dumps(found))
    save_file(watch.apart, folder / f"apart{trainer.global_rank}.safetensors")
    if trainer.is_global_zero:
        save_file(stage.trained(model), folder / "weights.safetensors")


def rank(number: int, port: int, folder: Path) -> None:
    """One of two processes: never whole, then with gradients that are reduced at once."""
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": 0, "LOCAL_RANK": number}
    os.environ |= {name: str(value) for name, value in names.items()}
    for name in [each for each in dir(dist) if each.startswith("reduce_scatter")]:
        setattr(dist, name, counted(name))
    fit(folder / "shared", Sharded(whole=(), whole_answers=False), 2)
    fit(folder / "muon", Sharded(whole_gradients=False), 2, "muon")
    fit(folder / "layers", Sharded(whole=(), whole_gradients=False), 2, trained=LAYERS)


def close(one: Path, other: Path, apart: float = 1e-5) -> None:
    weights, theirs = (
        load_file(one / "weights.safetensors"),
        load_file(other / "weights.safetensors"),
    )
    assert weights.keys() == theirs.keys() and len(weights) > 20
    for name, weight in weights.items():
        assert torch.allclose(weight, theirs[name], atol=apart), name


def losses(folder: Path) -> list[float]:
    return json.loads((folder / "0.json").read_text())["losses"]


@pytest.mark.timeout(120)
def test_two_devices_that_share_a_model_out_learn_what_one_learns(tmp_path: Path) -> None:
    """Accumulated, with text alone on one of them, tied weights, a trained encoder and clipping."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    torch.multiprocessing.start_processes(
        rank, args=(port, tmp_path), nprocs=2, start_method="fork"
    )
    fit(tmp_path / "one", "auto")
    fit(tmp_path / "muon one", "auto", optimizer="muon")
    fit(tmp_path / "layers one", "auto", trained=LAYERS)
    assert losses(tmp_path / "shared") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    close(tmp_path / "one", tmp_path / "shared")
    close(tmp_path / "layers one", tmp_path / "layers")
    for name, each in (("shared", False), ("muon", True)):  # micro-batches but a step's last
        counts = itertools.pairwise(json.loads((tmp_path / name / "0.json").read_text())["reduced"])
        assert [now > before for before, now in counts] == [each, True] * len(STEPS)
    # Muon computes in bfloat16, which shows soon.
    muon, theirs = (losses(tmp_path / name) for name in ("muon one", "muon"))
    assert theirs[:2] == pytest.approx(muon[:2], abs=2e-3)
    assert abs(muon[1] - losses(tmp_path / "one")[1]) > 0.01
    alone = load_file(tmp_path / "one" / "apart0.safetensors")
    assert torch.allclose(load_file(tmp_path / "shared/apart0.safetensors")["0.2"], alone["0.2"])
    # Any other strategy goes on from the shares.
    newest, before = sorted((tmp_path / "shared").glob("step-*.ckpt"), reverse=True)
    assert newest.is_dir() and (newest / "shares.json").is_file()
    shutil.rmtree(newest)
    (tmp_path / "on").mkdir()
    before.rename(tmp_path / "on" / before.name)
    fit(tmp_path / "on", "auto")
    assert len(losses(tmp_path / "on")) == 1
    close(tmp_path / "one", tmp_path / "on")


def test_what_a_device_computes_along_with_others_moves_nothing() -> None:
    """Not the statistics of an encoder with batch norm, whatever mode its parts are in."""
    options = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    encoder = TimmEncoder("xcit_nano_12_p16_224", -1, False, False, 64, None, options)
    llm = CausalLM(None, "v1", pretrained=False, config=CONFIG, tokenizer="asset:tokenizer")
    model = Llava(encoder, MLP, llm).train()
    model.connector.eval()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    assert any("running_mean" in name for name in before)
    modes = [module.training for module in model.modules()]
    precision: Any = SimpleNamespace(forward_context=nullcontext)
    turns = Turns(model, ("llm", "encoder"), lambda step: step(), precision)
    for number in (1, 2):
        turns._compute_along(number)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes


def strategy(world: int, **options: Any) -> Sharded:
    found = Sharded(**options)
    found.cluster_environment = SimpleNamespace(world_size=lambda: world)
    return found


@pytest.mark.parametrize(
    ("options", "quantize", "message"),
    [
        ({"copies": 3}, None, "3 copies of the model are not shared out over 4 devices"),
        ({"copies": 0}, None, "0 copies"),
        ({}, "4bit", r"stages.s.lora.quantize: .* use trainer.strategy=ddp"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_before_anything_is_spent(
    options: dict[str, Any], quantize: str | None, message: str
) -> None:
    strategy(4, copies=2).check("s", None)
    with pytest.raises(ValueError, match=message):
        strategy(4, **options).check("s", quantize)


def test_layers_are_those_of_the_outermost_lists() -> None:
    model = make_model()
    for part, inner in ((model.llm, model.llm.model.model.layers), (model.encoder, None)):
        found = list(layers(part))
        assert len(found) == 2 and (inner is None or found == list(inner))
    assert list(layers(nn.Sequential(nn.Linear(1, 1), nn.ReLU()))) == []
