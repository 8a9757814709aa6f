"""Record: what a stage did - steps, samples, tokens, seconds, FLOPs - and what its bar shows."""

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor

from llava_lab.core.progress import BAR_SECONDS, progress, say
from llava_lab.train.parts import Selection, names_of, parts_of, weights_of_part
from llava_lab.train.stage import Stage

EDGE = 10  # steps that the first and the last loss are a mean of


class Record(Callback):
    """Counts a stage's work on all devices, over interruptions too, and logs its speed.

    Args:
        stage: The stage.
    """

    def __init__(self, stage: Stage):
        self.stage = stage
        self.counts: Counter[str] = Counter()
        self.seconds, self.planned = 0.0, 0
        # Losses stay on the device until they are asked for: reading one waits for its step.
        self.first: list[Tensor | float] = []
        self.last: deque[Tensor | float] = deque(maxlen=EDGE)
        self.clock = 0.0
        self.bar = (0.0, 0)
        self.held_out: dict[str, float] = {}
        self.validated = -1  # step after which the held-out numbers were taken

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "counts": dict(self.counts),
            "seconds": self.seconds,
            "first": [float(loss) for loss in self.first],
            "last": [float(loss) for loss in self.last],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.counts = Counter(state_dict["counts"])
        self.seconds = state_dict["seconds"]
        self.first = list(state_dict["first"])
        self.last = deque(state_dict["last"], maxlen=EDGE)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the numbers of the held-out rows."""
        if trainer.sanity_checking:
            return
        self.validated = trainer.global_step
        self.held_out = {
            name.removeprefix("held_out_"): float(value)
            for name, value in sorted(trainer.callback_metrics.items())
            if name.startswith("held_out_")
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.planned = trainer.datamodule.steps()  # type: ignore[attr-defined]
        self.start()

    def start(self) -> None:
        """Count time from here on; what was computed since the last step was no training."""
        self.clock = time.monotonic()
        self.bar = (self.clock, self.counts["tokens"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step when it is whole; log tokens a second over the last second or more."""
        now = time.monotonic()
        self.seconds += now - self.clock
        self.clock = now
        if "means" not in outputs:
            return
        for name, count in outputs["work"].items():
            self.counts[name] += count
        loss = outputs["means"]["loss"].detach()
        if len(self.first) < EDGE:
            self.first.append(loss)
        self.last.append(loss)
        since, tokens = self.bar
        if now - since >= 1.0:
            speed = (self.counts["tokens"] - tokens) / (now - since)
            self.bar = (now, self.counts["tokens"])
            # A number of Python would be copied to the device, and one there read for the bar.
            speed = torch.tensor(speed)
            pl_module.log("tokens_per_second", speed, prog_bar=True, batch_size=1)
        for name, rate in self._rates(trainer).items():
            pl_module.log(f"rate/{name}", torch.tensor(rate), batch_size=1)

    @staticmethod
    def _rates(trainer: Trainer) -> dict[str, float]:
        return {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the stage ends before its last step."""
        if (step := trainer.global_step) < self.planned:
            say(f"stage {self.stage.name}: ends at step {step:,} of {self.planned:,}")

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """The stage's entry in results.json; `of_steps` says that it ended before its last step."""
        early = trainer.global_step < self.planned
        return {
            "steps": trainer.global_step,
            **({"of_steps": self.planned} if early else {}),
            "samples": self.counts["samples"],
            "tokens": self.counts["tokens"],
            "seconds": round(self.seconds, 2),
            "loss_first": sum(map(float, self.first)) / max(1, len(self.first)),
            "loss_last": sum(map(float, self.last)) / max(1, len(self.last)),
            "visual_tokens_mean": self.counts["visual_tokens"]
            / max(1, self.counts["visual_samples"]),
            "flops": self.flops(trainer.lightning_module),
            "held_out": self.held_out,
        }

    def flops(self, model: Any) -> float:
        """Floating-point operations of what was computed; stored features cost nothing."""
        costs = part_costs(model, self.stage.selection, model.seen(self.counts))
        return sum(costs.values())


def part_costs(model: Any, selection: Selection, seen: Mapping[str, int]) -> dict[str, float]:
    """Operations of each part, in matrix products with weights; attention scores apart.

    A weight costs 2 a token forward; 2 more for the gradient of its inputs, if it stands behind
    one that trains, or is one; and 2 for its own gradient where it trains itself. Embeddings that
    are the output layer, too, count once, as that; others count beside it, although they are looked
    up (1.9 % of Vicuna-7B). What adapters compute themselves is left out. Of a mixture of experts
    all count for every token, also those that it is not routed to.

    Args:
        model: The model without adapters.
        selection: What trains.
        seen: Tokens that each part sees, in the order in which they are computed.
    """
    costs, before = {}, False
    parts = parts_of(model)
    for part, tokens in seen.items():
        weights = 0
        for weight, names in names_of(weights_of_part(part, parts[part])):
            before = before or selection.key(*names) is not None
            weights += weight.numel() * (1 + before + selection.trains(*names))
        costs[part] = 2.0 * weights * tokens
    return costs


def run_cost(
    model: Any, stages: Mapping[str, Stage], records: Sequence[Mapping[str, Any]], seconds: float
) -> dict[str, Any]:
    """What a run cost, for results.json.

    Args:
        model: The model, whole.
        stages: Its stages by name.
        records: What each of them did.
        seconds: Since the run began.
    """
    last = records[-1] if records else None
    return {
        "parameters": sum(map(model.size, parts_of(model))),
        "trainable_parameters": stages[last["name"]].size(model) if last else 0,
        "visual_tokens_mean": last["visual_tokens_mean"] if last else 0,
        "train_flops": sum(record["flops"] for record in records),
        "seconds": seconds,
        "seconds_trained_here": sum(r["seconds"] for r in records if not r["reused"]),
    }


class Bar(TQDMProgressBar):
    """Lightning's bar, with the stage's name, that moves by time and not by steps.

    Args:
        name: The stage's name, or what the questions are called.
    """

    def __init__(self, name: str):
        super().__init__()
        self.name, self.moved = name, 0.0

    def _bar(self, **options: Any) -> Any:
        return progress(self.name, disable=self.is_disabled, delay=0, **options)

    def init_train_tqdm(self) -> Any:
        """A bar for the whole stage."""
        return self._bar(leave=True)

    def init_validation_tqdm(self) -> Any:
        """A bar for held-out rows, below the stage's."""
        return self._bar(position=int(self.trainer.state.fn != "validate"))

    def init_test_tqdm(self) -> Any:
        """A bar for questions."""
        return self._bar(leave=True)

    init_predict_tqdm = init_test_tqdm

    @property
    def validation_description(self) -> str:
        """Stands in front of the held-out rows' bar."""
        return f"{self.name}, held-out rows"

    @property
    def test_description(self) -> str:
        """Stands in front of the questions' bar."""
        return self.name

    predict_description = test_description

    def _should_update(self, current: int, total: int) -> bool:
        now = time.monotonic()
        if self.is_disabled or (now - self.moved < BAR_SECONDS and current != total):
            return False
        self.moved = now
        return True

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Keep the stage's name in place of an epoch's number."""
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(self.name)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """End the bars' lines, so that a message has a line of its own."""
        for name in ("train", "val", "test", "predict"):
            if (bar := getattr(self, f"_{name}_progress_bar")) is not None:
                bar.close()

    def get_metrics(self, trainer: Trainer, pl_module: Any) -> dict[str, Any]:
        """The loss as it is now, and without the version number."""
        shown = super().get_metrics(trainer, pl_module)
        found = trainer.callback_metrics if trainer.training else {}
        loss = {"loss": found["loss"].item()} if "loss" in found else {}
        return {**loss, **{name: value for name, value in shown.items() if name != "v_num"}}
