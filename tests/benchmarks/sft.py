"""A step of instruction tuning against transformers: tokens a second, share of the peak, memory.

    python tests/benchmarks/sft.py [--size 135m] [--device cuda] [--rounds 3] [--json FILE]
    python tests/benchmarks/sft.py --ways bare        what `fit` costs over a bare loop
    python tests/benchmarks/sft.py --kernels liger    both sides with liger's norms and MLPs

Needs accelerate (the extra `bench`). `small` takes minutes on two cores, `1b` two minutes on a GPU.

Random weights in published shapes; an LM and a two-layer connector train, the encoder is frozen.
Rows are like those of LLaVA-1.5's mix: 6 % text alone (150 to 1,400 answer tokens), 29 % bundles of
questions (60 to 600), 65 % conversations (4 to 400), evenly drawn; each has as many tokens of
prompt as of answers, text alone none, and 40 more. Rows with an image have one view. On a GPU the
encoder computes it, in bfloat16; on a CPU its features are at hand in float32, as from a feature
store.

    ours            the stage under Lightning's trainer, as `fit` runs it
    bare            the same model, batches and optimizer in a loop of ten lines
    padded          transformers' LlavaForConditionalGeneration around the very same modules under
                    HF's Trainer, SDPA, rows in random order, padded to the longest of a batch
    grouped         the same with rows grouped by length: all are sorted and cut into batches, whose
                    order is random, as its trainer does with many more rows than a pass has

First, loss and gradients of four rows are compared. Then each way passes once over all rows in each
round, in turn; a short pass of each comes before. Tokens are those of rows, padding does not count.
MFU is 6 operations a token and weight of the LM, and 2 of the encoder, over the measured peak of
matrix products; `useful` counts the output layer at tokens with a label alone, which is all that
the loss needs. What is computed twice, and attention, count in neither. `padding` is a share of
rows' tokens.
"""

import argparse
import logging
import random
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from common import (
    SIZES,
    clock,
    freed,
    make_model,
    medians,
    most_memory,
    options,
    peak,
    precision,
    prepared,
    report,
    say,
)
from lightning.pytorch import Callback
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava_lab.data.loader import StageLoader, split_step
from llava_lab.data.modules.stage import StageDataModule
from llava_lab.data.packing import Batch, EncodedSample, Segment
from llava_lab.data.tokens import IGNORE, VISUAL
from llava_lab.data.views.square import Square
from llava_lab.model.kernels import use_kernels
from llava_lab.train.loss import NextToken
from llava_lab.train.normalize import StepLoss
from llava_lab.train.record import Record
from llava_lab.train.stage import Stage
from llava_lab.train.trainer import make_trainer

RATE, CLIP = 1e-6, 1.0
KINDS = ((0.06, 150, 1400), (0.35, 60, 600), (1.0, 4, 400))  # cumulated share, answer tokens
IMAGE = 5  # stands for a visual token in transformers' ids


def draw(number: int, model: Any, words: int, pixels: bool) -> list[EncodedSample]:
    """Rows of the mix, the same ones for everyone."""
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    spec = model.view_spec
    layout = Square().layout((640, 480), spec)
    rows = []
    for index in range(number):
        chance = rng.random()
        kind = next(place for place, (share, *_) in enumerate(KINDS) if chance < share)
        answer = rng.randint(*KINDS[kind][1:])
        prompt = 40 + (answer if kind else 0)
        ids = [rng.randrange(10, words) for _ in range(prompt + answer)]
        seen = [VISUAL] * (layout.tokens if kind else 0)
        labels = [IGNORE] * (len(seen) + prompt) + ids[prompt:]
        shape = (1, 3, spec.image_size, spec.image_size) if pixels else (1, layout.tokens)
        shape = shape if pixels else (*shape, model.encoder.width)
        views = torch.randn(shape, generator=generator) if kind else None
        shown = [layout] if kind else []
        rows.append(EncodedSample([Segment(seen + ids, labels)], views, shown, f"row {index}"))
    return rows


class Rows(StageDataModule):
    """Rows that are encoded, in the order of their numbers."""

    def __init__(self, rows: list[EncodedSample], batch: int):
        super().__init__(batch)
        self.rows = rows

    def lengths(self) -> tuple[list[int], list[int]]:
        return [len(row.segments[0].ids) for row in self.rows], [0] * len(self.rows)

    def order(self) -> list[list[int]]:
        every = list(range(len(self.rows)))
        return [every[n : n + self.batch_size] for n in range(0, len(every), self.batch_size)]

    def train_rows(self) -> Any:
        return self.rows

    def content(self) -> str:
        return ""


class Tower(nn.Module):
    """Our encoder as transformers' model wants one."""

    def __init__(self, encoder: Any, dtype: torch.dtype):
        super().__init__()
        self.encoder, self.dtype = encoder, dtype

    @torch.no_grad()
    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        features = pixel_values
        if features.ndim == 4:
            features = self.encoder(features).flatten(1, 2)
        return BaseModelOutputWithPooling(hidden_states=(features.to(self.dtype),))


def theirs_of(model: Any) -> Any:
    """Transformers' model around our modules."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    width = model.encoder.width
    small = CLIPVisionConfig(hidden_size=width, num_attention_heads=1, num_hidden_layers=1)
    config = LlavaConfig(
        vision_config=small,  # never built: the tower is ours
        text_config=model.llm.model.config,
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        projector_hidden_act="gelu",
    )
    with torch.device("meta"):
        theirs = LlavaForConditionalGeneration(config)
    inner = theirs.model
    inner.vision_tower = Tower(model.encoder, model.connector[0].weight.dtype)
    inner.language_model = model.llm.model.model
    inner.multi_modal_projector.linear_1 = model.connector[0]
    inner.multi_modal_projector.linear_2 = model.connector[2]
    theirs.lm_head = model.llm.model.lm_head
    return theirs


def padded(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows of a batch, filled up to the longest."""
    longest = max(len(row["input_ids"]) for row in rows)

    def filled(name: str, fill: int) -> Tensor:
        return torch.tensor([r[name] + [fill] * (longest - len(r[name])) for r in rows])

    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    batch = {"input_ids": filled("input_ids", 0), "labels": filled("labels", IGNORE)}
    batch["attention_mask"] = (torch.arange(longest)[None] < lengths[:, None]).long()
    if views := [row["pixel_values"] for row in rows if row["pixel_values"] is not None]:
        batch["pixel_values"] = torch.cat(views)
    return batch


def as_theirs(row: EncodedSample) -> dict[str, Any]:
    """A row as transformers takes it."""
    (segment,) = row.segments
    ids = [IMAGE if token == VISUAL else token for token in segment.ids]
    return {"input_ids": ids, "labels": segment.labels, "pixel_values": row.views}


def by_length(rows: list[EncodedSample], batch: int) -> list[EncodedSample]:
    """Rows in batches of similar lengths, the batches in random order."""
    every = sorted(rows, key=lambda row: len(row.segments[0].ids))
    batches = [every[start : start + batch] for start in range(0, len(every), batch)]
    random.Random(0).shuffle(batches)
    return [row for each in batches for row in each]


class Bench:
    """The ways, around one model.

    Args:
        given: The command line's options.
    """

    def __init__(self, given: argparse.Namespace):
        self.device, self.batch, self.recompute = given.device, given.batch, given.recompute
        self.precision = precision(given.dtype)
        self.model = make_model(SIZES[given.size], given.device, given.dtype)
        use_kernels(self.model.llm.model, given.kernels)  # of the modules that both sides share
        self.theirs = theirs_of(self.model)
        pixels = given.device.type == "cuda"
        words = self.model.llm.model.config.vocab_size
        self.rows = draw(given.batch * given.steps, self.model, words, pixels)
        if not pixels:
            self.model.encoder = self.model.encoder.requires_grad_(False)
        self.model.cpu = lambda: self.model  # where Lightning would leave it after every fit
        self.folder = Path(tempfile.mkdtemp())
        self.seconds, self.losses, self.computed = 0.0, [], 0

    def stage(self, rows: list[EncodedSample]) -> Stage:
        """The stage over rows."""
        kept: Any = "products" if self.recompute else False
        return Stage(
            Rows(rows, self.batch),
            NextToken(),
            {"llm": RATE, "connector": RATE},
            schedule="constant",
            warmup_ratio=0.0,
            gradient_checkpointing=kept,
        )

    def ours_again(self) -> None:
        """Set the shared modules up for our forest."""
        self.model.llm.model.gradient_checkpointing_disable()
        self.model.llm.model.set_attn_implementation("llava_lab_forest")
        self.model.requires_grad_(True)

    def ours(self, rows: list[EncodedSample]) -> None:
        """As `fit` runs a stage."""
        self.ours_again()
        stage, bench = self.stage(rows), self
        record = Record(stage)

        class Watch(Callback):
            def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, at: int) -> None:
                if at == 0:
                    bench.seconds = clock(bench.device)

            def on_train_batch_end(
                self, trainer: Any, module: Any, outputs: Any, batch: Any, at: int
            ) -> None:
                if at == trainer.num_training_batches - 1:
                    bench.seconds = clock(bench.device) - bench.seconds

        given = {
            "accelerator": "gpu" if self.device.type == "cuda" else "cpu",
            "devices": 1,
            "logger": None,
            "precision": self.precision,
            "enable_progress_bar": False,
            "gradient_clip_val": CLIP,
        }
        callbacks = [Watch(), stage, record]
        trainer = make_trainer(given, self.folder, "sft", callbacks, Callback())
        trainer.fit(self.model, datamodule=stage.data)
        self.losses = [float(loss) for loss in record.first]

    def bare(self, rows: list[EncodedSample]) -> None:
        """The same in a loop."""
        self.ours_again()
        self.model.to(self.device)
        stage = self.stage(rows)
        stage.prepare(self.model)
        one = SimpleNamespace(accumulate_grad_batches=1, world_size=1, precision_plugin=None)
        one.datamodule = stage.data
        stage.trainer = one
        optimizer = stage.optimizers()["optimizer"]
        weights = [each for group in optimizer.param_groups for each in group["params"]]
        step = StepLoss(stage.loss, "step")
        holder = _Holder(self.model, one)
        lengths = stage.data.lengths()[0]
        order = [split_step(s, lengths, accumulate=1, rank=0, world=1) for s in stage.data.order()]
        loader = StageLoader(rows, order, stage.data.collate, device=self.device)
        start, found = clock(self.device), []
        for micro in loader:
            result = step.train(holder, micro.to(self.device, non_blocking=True))
            result["loss"].backward()
            nn.utils.clip_grad_norm_(weights, CLIP)
            optimizer.step()
            optimizer.zero_grad()
            found.append(result["means"]["loss"].detach())
        self.seconds = clock(self.device) - start
        self.losses = [float(loss) for loss in found]

    def hf(self, rows: list[EncodedSample]) -> None:
        """Under HF's Trainer."""
        from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

        self.model.llm.model.gradient_checkpointing_disable()
        self.model.llm.model.set_attn_implementation("sdpa")
        self.theirs.requires_grad_(True)
        self.theirs.model.vision_tower.requires_grad_(False)
        bench = self

        class Watch(TrainerCallback):
            def on_step_begin(self, arguments: Any, state: Any, *_: Any, **__: Any) -> None:
                if state.global_step == 0:
                    bench.seconds = clock(bench.device)

            def on_step_end(self, arguments: Any, state: Any, *_: Any, **__: Any) -> None:
                if state.global_step == state.max_steps:
                    bench.seconds = clock(bench.device) - bench.seconds

        arguments = TrainingArguments(
            str(self.folder / "hf"),
            use_cpu=self.device.type == "cpu",
            per_device_train_batch_size=self.batch,
            num_train_epochs=1,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_grad_norm=CLIP,
            train_sampling_strategy="sequential",
            gradient_checkpointing=self.recompute,
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        said = [as_theirs(row) for row in rows]

        def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
            batch = padded(rows)
            self.computed += batch["input_ids"].numel()
            return batch

        trainer = Trainer(self.theirs, arguments, collate, train_dataset=said, callbacks=[Watch()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        self.theirs.zero_grad()

    def same(self) -> tuple[float, float]:
        """How far losses, and gradients, of four rows are apart, over their size."""
        rows = self.rows[:4]
        self.ours_again()
        self.stage(rows).prepare(self.model)
        watched = [
            self.model.connector[0].weight,
            self.model.llm.model.model.layers[0].mlp.up_proj.weight,
        ]
        own, _ = NextToken()(self.model, Batch.pack(rows).to(self.device))
        mine = torch.autograd.grad(own, watched)
        own = own.detach()
        self.model.llm.model.gradient_checkpointing_disable()
        if self.recompute:  # or a large model would not fit
            self.model.llm.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.llm.model.set_attn_implementation("sdpa")
        batch = padded([as_theirs(row) for row in rows])
        found = self.theirs(**{name: each.to(self.device) for name, each in batch.items()}).loss
        other = torch.autograd.grad(found, watched)
        pairs = [(own, found.detach()), *zip(mine, other, strict=True)]
        apart = [float((a - b).float().norm() / b.float().norm()) for a, b in pairs]
        return apart[0], max(apart[1:])


class _Holder:
    """A model with a trainer that is none."""

    def __init__(self, model: Any, trainer: Any):
        self.model, self.trainer = model, trainer
        self.parameters, self.llm = model.parameters, model.llm

    def __call__(self, batch: Batch) -> Tensor:
        return self.model(batch)


def operations(bench: Bench) -> tuple[float, float]:
    """Operations of a pass over all rows: by the LM's size, and as far as the loss needs them."""
    model = bench.model
    batch = Batch.pack(bench.rows)
    llm, head = model.size("llm"), model.llm.head().weight.numel()
    tied = model.llm.head().weight is model.llm.model.get_input_embeddings().weight
    body = llm - (head if tied else 2 * head)
    views = 0 if batch.views is None or batch.views.ndim == 3 else batch.encoded_tokens
    seen = 2.0 * model.size("encoder") * views
    connected = 6.0 * model.size("connector") * batch.connected_tokens
    useful = 6.0 * (body * batch.tokens + head * len(batch.targets)) + seen + connected
    return 6.0 * llm * batch.tokens + seen + connected, useful


def main(given: argparse.Namespace) -> None:
    """All ways in turn, round after round."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    bench = Bench(given)
    every: dict[str, Callable[[list[EncodedSample]], None]] = {
        "ours": bench.ours,
        "bare": bench.bare,
        "padded": bench.hf,
        "grouped": lambda rows: bench.hf(by_length(rows, given.batch)),
    }
    ways = {way: every[way] for way in dict.fromkeys(["ours", *given.ways])}
    loss, gradients = bench.same()
    limit = 0.1 if given.dtype == torch.bfloat16 else 1e-4
    say(f"loss differs by {loss:.1e}, gradients by {gradients:.1e}")
    if max(loss, gradients) > limit:
        sys.exit("the two sides do not compute the same thing")
    tokens = sum(len(row.segments[0].ids) for row in bench.rows)
    top = peak(given.device, given.dtype)
    whole, useful = operations(bench)
    for run in ways.values():
        run(bench.rows[: given.batch * (2 if given.device.type == "cuda" else 1)])
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(given.rounds):
        for way, run in ways.items():
            freed(given.device)
            bench.computed = 0
            run(bench.rows)
            numbers = {"tokens/s": tokens / bench.seconds, "MFU": whole / bench.seconds / top}
            numbers |= {"useful": useful / bench.seconds / top}
            numbers |= {"padding": max(bench.computed, tokens) / tokens - 1}
            numbers |= {"GiB": most_memory(given.device) / 2**30}
            found[way].append(numbers)
            say(f"round {number + 1} {way:8} {numbers['tokens/s']:,.0f} tokens/s")
    rows = {way: medians(rounds) for way, rounds in found.items()}
    table = {
        way: {**row, "ours over it": rows["ours"]["tokens/s"] / row["tokens/s"]}
        for way, row in rows.items()
    }
    title = (
        f"SFT {given.size}, {given.device}, {given.batch} rows a step, {given.steps} steps a round"
    )
    about = {"peak": top, "tokens": tokens, "loss_differs": loss, "gradients_differ": gradients}
    report(f"{title}; peak {top / 1e12:.3g} TFLOP/s", table, given.json, **about)


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--batch", type=int, default=8, help="rows a step")
    parser.add_argument("--steps", type=int, default=3, help="steps a round")
    ways = ["bare", "padded", "grouped"]
    parser.add_argument("--ways", nargs="+", default=ways[1:], choices=ways, help="beside ours")
    parser.add_argument("--kernels", default="plain", choices=["plain", "compile", "liger"])
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing")
    main(prepared(parser))
