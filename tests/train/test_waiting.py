"""Between two optimizer steps nothing is read from the device and nothing waits to reach it.

There is no GPU where these tests run by default. So tensors are marked that would lie on one: the
weights, what is moved, and all that is computed of them. What would wait for a GPU is then every
call that reads a marked tensor, asks how many it selects, or copies an unmarked one there.
"""

import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import LLAMA
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from llava_lab.data.loader import MicroBatch
from llava_lab.data.modules.answers import AnswerRow
from llava_lab.data.modules.phrases import PhraseBatch
from llava_lab.data.modules.preference import Pairs
from llava_lab.data.modules.stage import StageDataModule
from llava_lab.data.packing import Batch, EncodedSample, Segment, tensors
from llava_lab.data.tokens import IGNORE, VISUAL
from llava_lab.data.views.anyres import AnyRes
from llava_lab.model.connector.mlp import MLP
from llava_lab.model.encoder.timm import TimmEncoder
from llava_lab.model.llava import Llava
from llava_lab.model.llm import CausalLM
from llava_lab.train.contrastive import SigmoidContrast
from llava_lab.train.kto import KTO, JudgedBatch, JudgedRow
from llava_lab.train.loss import Loss, NextToken
from llava_lab.train.preference import DPO
from llava_lab.train.record import Record
from llava_lab.train.stage import Stage
from llava_lab.train.trainer import make_trainer

aten = torch.ops.aten
READS = {"item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__", "__index__"}
COUNTS = (
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.equal.default,
)
STEPS = 4


def mark(values: Any) -> Any:
    for each in tree_flatten(values)[0]:
        if isinstance(each, Tensor):
            each.on_gpu = True
    return values


def marked(values: Any) -> list[Tensor]:
    return [each for each in tree_flatten(values)[0] if getattr(each, "on_gpu", False)]


def place() -> str:
    """The innermost lines of the package and of Lightning that led here."""
    frames = [
        f
        for f in traceback.extract_stack()
        if "llava_lab/" in f.filename or "lightning" in f.filename
    ]
    ends = ("/".join(f.filename.rsplit("/", 2)[-2:]) for f in frames[:-4:-1])
    return " < ".join(f"{end}:{f.lineno}" for end, f in zip(ends, frames[::-1], strict=False))


class Calls(TorchFunctionMode):
    """Calls of Python that read a marked tensor, or copy an unmarked one to the device."""

    def __init__(self, found: list[str]):
        super().__init__()
        self.found = found

    def __torch_function__(self, call: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        name, named = getattr(call, "__name__", ""), named or {}
        if name in READS and marked(given):
            self.found.append(f"{name} at {place()}")
        goes = named.get("device") is not None or any(isinstance(x, torch.device) for x in given)
        copies = name in ("tensor", "as_tensor", "to") and goes
        if copies and not marked(given) and not named.get("non_blocking"):
            # Lightning keeps a logged value where it is; plans of attention are pinned on a GPU.
            files = [frame.filename for frame in traceback.extract_stack()]
            if not any("logger_connector" in file or "attention" in file for file in files):
                self.found.append(f"a copy to the device by {name} at {place()}")
        result = call(*given, **named)
        return mark(result) if goes else result


class Operations(TorchDispatchMode):
    """Marks what is computed of marked tensors, and finds operations whose size a value decides."""

    def __init__(self, found: list[str]):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, call: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        named = named or {}
        inputs = marked((given, named))
        if inputs and call is aten._local_scalar_dense.default:
            self.found.append(f"a value is read at {place()}")
        masks = call in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
        by_mask = masks and any(x.dtype == torch.bool for x in given[1] if isinstance(x, Tensor))
        if inputs and (call in COUNTS or by_mask):
            self.found.append(f"{call} at {place()}")
        result = call(*given, **named)
        return mark(result) if inputs else result


class Watched(Callback):
    """Watches from the end of the second step to that of the last one."""

    def __init__(self, record: Record):
        self.record, self.found, self.modes = record, [], []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.record.bar = (-1e9, 0)  # its speed is due in every step

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, at: int
    ) -> None:
        if at == 1:
            mark([*module.parameters(), *module.buffers()])
            mark([list(state.values()) for state in trainer.optimizers[0].state.values()])
            for state in trainer.optimizers[0].state.values():
                del state["step"].on_gpu  # AdamW keeps it on the CPU
            self.modes = [Operations(self.found), Calls(self.found)]
            for mode in self.modes:
                mode.__enter__()
        if at == 2 * STEPS - 1:
            self.close()

    def close(self) -> None:
        while self.modes:
            self.modes.pop().__exit__(None, None, None)


def model_and_rows() -> tuple[Llava, list[EncodedSample]]:
    torch.manual_seed(0)
    options = {"embed_dim": 32, "depth": 1, "num_heads": 4, "mlp_ratio": 2}
    encoder = TimmEncoder("vit_tiny_patch16_224", -1, False, False, 64, None, options)
    llm = CausalLM(None, "v1", pretrained=False, config=LLAMA, tokenizer="asset:tokenizer")
    model = Llava(encoder, MLP, llm, newline=True)
    views, rows = AnyRes("2x2, 1x2"), []
    for size in ((90, 60), None, (50, 120), (64, 64)):
        layouts = [] if size is None else [views.layout(size, model.view_spec)]
        seen = [VISUAL] * sum(layout.tokens for layout in layouts)
        prompt, answer = [5, *seen, 7, 8], [9, 10, 11]
        count = sum(block.views for layout in layouts for block in layout.blocks)
        shown = torch.randn(count, 3, 64, 64) if count else None
        segments = [Segment(prompt, [IGNORE] * len(prompt))]
        segments += [Segment([*answer, n], [*answer, n], 0) for n in range(2)]
        rows.append(EncodedSample(segments, shown, layouts, f"row {len(rows)}"))
    return model, rows


def pairs(rows: list[EncodedSample]) -> Pairs:
    return Pairs.of([AnswerRow(row, None, torch.tensor([-3.0, -2.0])) for row in rows])


def judged(rows: list[EncodedSample]) -> JudgedBatch:
    said = [
        JudgedRow(row, None, torch.tensor([-3.0, -2.0]), n % 2 == 0) for n, row in enumerate(rows)
    ]
    return JudgedBatch.of(said)


def pictures(rows: list[EncodedSample]) -> PhraseBatch:
    draw = torch.Generator().manual_seed(0)  # the same ones whenever a batch is made
    pixels = torch.randn(len(rows), 3, 64, 64, generator=draw)
    phrases, truth = torch.tensor([[3, 4], [5, -1]]), torch.eye(2)[[0, 1]].repeat(2, 1)[: len(rows)]
    counted = torch.tensor([True, True])
    return PhraseBatch(pixels, phrases, truth, [16] * len(rows), ["picture"] * len(rows), counted)


CASES = {
    "sft": (NextToken, Batch.pack, {"llm": 1e-3, "connector": 1e-3, "newline": 1e-3}),
    "dpo": (lambda: DPO(sft_weight=0.1), pairs, {"llm": 1e-3, "connector": 1e-3}),
    "kto": (KTO, judged, {"llm": 1e-3}),
    "contrast": (
        lambda: SigmoidContrast(32, 768, 16, 2),
        pictures,
        {"encoder": 1e-3, "loss": 1e-3},
    ),
}


class Data(StageDataModule):
    def __init__(self, rows: list[Any], collate: Callable[[list[Any]], Any]):
        super().__init__(batch_size=4, micro_batch_size=2)
        self.rows, self.make = rows, collate

    def lengths(self) -> tuple[list[int], list[int]]:
        return [1] * len(self.rows), [0] * len(self.rows)

    def order(self) -> list[list[int]]:
        return [[0, 1, 2, 3]] * STEPS

    def train_rows(self) -> Any:
        return self.rows

    def content(self) -> str:
        return ""

    def collate(self, rows: list[Any], part: Any) -> Any:
        return self.make(rows)


def stage_of(case: str) -> tuple[Llava, Stage]:
    make, collate, rates = CASES[case]
    model, rows = model_and_rows()
    loss: Loss = make()
    loss.prepare = lambda *_: None  # the rows have the reference's numbers
    released = {"normalization": "step" if loss.rows_apart else "micro_batch"}
    return model, Stage(Data(rows, collate), loss, rates, weight_decay=0.1, **released)


def trainer_of(stage: Stage, folder: Any, callbacks: list[Callback], **options: Any) -> Trainer:
    options = {"logger": None, "enable_progress_bar": False, "gradient_clip_val": 1.0, **options}
    trainer = make_trainer(options, folder, "stage", callbacks, Callback())
    trainer.accumulate_grad_batches = stage.data.accumulate(1)
    return trainer


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Marks what Lightning moves to the device."""
    own = MicroBatch.to

    def to(self: MicroBatch, device: torch.device, non_blocking: bool = False) -> MicroBatch:
        copied = {name: each.clone() for name, each in tensors(self.batch).items()}
        return own(replace(self, batch=replace(self.batch, **copied)), device, non_blocking=True)

    monkeypatch.setattr(MicroBatch, "to", to)
    yield


@pytest.mark.parametrize("case", CASES)
def test_no_step_waits_for_the_device(case: str, moved: None, tmp_path: Any) -> None:
    model, stage = stage_of(case)
    record = Record(stage)
    watched = Watched(record)
    trainer = trainer_of(
        stage, tmp_path, [stage, watched, record], log_every_n_steps=1000, accelerator="cpu"
    )
    try:
        trainer.fit(model, datamodule=stage.data)
    finally:
        watched.close()
    assert trainer.global_step == STEPS
    assert not sorted(set(watched.found))
    assert record.summary(trainer)["loss_last"] != 0


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="asks CUDA itself what waits: needs a GPU"
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("case", CASES)
def test_no_step_waits_for_a_gpu(case: str, precision: str, tmp_path: Any) -> None:
    model, stage = stage_of(case)

    class Strict(Callback):
        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, at: int
        ) -> None:
            strict = 1 <= at < 2 * STEPS - 1
            torch.cuda.set_sync_debug_mode("error" if strict else "default")

    options = {"log_every_n_steps": 1000, "accelerator": "cuda", "devices": 1}
    options["precision"] = precision
    try:
        callbacks = [stage, Record(stage), Strict()]
        trainer_of(stage, tmp_path, callbacks, **options).fit(model, datamodule=stage.data)
    finally:
        torch.cuda.set_sync_debug_mode("default")
