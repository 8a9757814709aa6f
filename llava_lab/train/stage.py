"""10. Stage: what is read, what is minimised, and which parts train at which rates."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from lightning import seed_everything
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from llava_lab.core.numbers import at_least, shares
from llava_lab.data.modules.stage import StageDataModule, run_seed
from llava_lab.train.checkpoint_files import name_states
from llava_lab.train.feature_store import store_features
from llava_lab.train.idle import refuse_idle
from llava_lab.train.kept import check_every
from llava_lab.train.lora import Lora, merge
from llava_lab.train.loss import Loss
from llava_lab.train.muon import Muon, check_matrices, hidden_matrices
from llava_lab.train.normalize import Normalization, StepLoss
from llava_lab.train.parts import (
    Selection,
    hold_statistics,
    names_of,
    parts_of,
    train_only,
    weights_of,
)
from llava_lab.train.precision import adamw, check_held, master_of, precision_of
from llava_lab.train.recompute import recompute, recompute_frozen
from llava_lab.train.split import check_split


class Stage(Callback):
    """One stage: what it reads, what it minimises, and which parts train at which rates.

    All parts that are not named in `lr` are frozen. Biases and norm weights are never decayed.

    Args:
        data: What the stage reads.
        loss: What is minimised.
        lr: Peak learning rates by part: any part of the model, and `loss` where the loss has
            weights of its own; `{connector: 1e-3}`. A key may go on below a part,
            `encoder.blocks.20-23` or `llm.self_attn`: its words are those of a weight's name in
            order, of which some may be left out. Of the keys that choose a weight the one of most
            words decides. What has no rate, or null, is frozen.
        lr_scale: All rates times this: a scale's models may learn at other rates than the
            published ones, but at the same ratios between parts.
        frozen: Parts, or keys below them, that stay frozen although they have a rate: what a scale
            has no budget for.
        schedule: How the rate falls after warm-up: to zero along a cosine or a line, or not.
        warmup_ratio: Share of the steps in which the rate rises from zero, as transformers counts.
        weight_decay: Of all weight matrices.
        optimizer: `adamw` with eps 1e-8, as every published recipe; or `muon` for the matrices
            inside a part, with AdamW for its embeddings, output layer, norms and biases. Muon
            computes in bfloat16, so that what devices add up in another order shows in its
            third digit.
        betas: AdamW's; the default is that of the trainers that made the published models.
        gradient_checkpointing: Recompute the LM's activations in the backward pass: all but each
            layer's input (true), which costs a forward pass more; or all but what attention and
            the matrix products gave (`products`; products narrower than their input apart), which
            costs next to nothing and more than halves the memory of activations. Layers that have
            dropout of their own (Falcon, OPT) are recomputed only where they train.
        lora: Adapters that train in place of weights, at their rates, or null.
        normalization: What the loss of an optimizer step is. `step`: the sum over all its
            supervised tokens (pairs, pictures) divided by their number, so that it is the same
            however the step is split into micro-batches and over devices. `micro_batch`: the mean
            over micro-batches of each one's own mean, as in the released LLaVA trainers, where a
            row counts for more beside short ones (haotian-liu/LLaVA#1407,
            hiyouga/LLaMA-Factory#7443); the outcome then depends on the number of devices.
        evaluate_every: Ask the run's benchmarks every so many optimizer steps, or after each such
            share of the stage (0.25: four times), and at its end. Scores stand in results.json
            beside what was spent until then; training is the same without, bit for bit.
        keep_every: Keep the weights every so many steps, or after each such share of the stage:
            files in `stages/NAME/kept`, each a MODEL for `answer`, `export` and `chat`.
        trainer: Options of Lightning's Trainer that differ in this stage.
    """

    idle = ("evaluate_every", "keep_every")  # they watch

    def __init__(
        self,
        data: StageDataModule,
        loss: Loss,
        lr: dict[str, float | None],
        lr_scale: float = 1.0,
        frozen: tuple[str, ...] = (),
        schedule: Literal["cosine", "linear", "constant"] = "cosine",
        warmup_ratio: float = 0.03,
        weight_decay: float = 0.0,
        optimizer: Literal["adamw", "muon"] = "adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        gradient_checkpointing: bool | Literal["products"] = False,
        lora: Lora | None = None,
        normalization: Normalization = "step",
        evaluate_every: int | float | None = None,
        keep_every: int | float | None = None,
        trainer: dict[str, Any] | None = None,
    ):
        at_least(0, lr_scale=lr_scale, weight_decay=weight_decay)
        shares(warmup_ratio=warmup_ratio)
        adapted = () if lora is None else lora.parts
        self.selection = Selection(lr, frozen, adapted, lr_scale)
        self.lr = self.selection.lr
        self.data, self.loss, self.schedule = data, loss, schedule
        self.warmup_ratio, self.weight_decay = warmup_ratio, weight_decay
        self.optimizer, self.betas = optimizer, betas
        self.gradient_checkpointing = gradient_checkpointing
        self.lora, self.normalization = lora, normalization
        self.evaluate_every = check_every("evaluate_every", evaluate_every)
        self.keep_every = check_every("keep_every", keep_every)
        self.trainer_options = dict(trainer or {})
        self.model: Any = None
        self.trainer: Any = None

    @property
    def name(self) -> str:
        """The stage's name, which it has from its experiment."""
        return str(self.data.name)

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        """Freeze and free parts, hand the model its loss and optimizer, fill the data's stores."""
        self.prepare(pl_module)
        self.trainer = trainer
        if stage == "fit":
            self._check_held(pl_module, trainer.precision_plugin.precision)
        store_features(pl_module, self.trainer.datamodule, trainer)
        self.loss.prepare(pl_module, self.trainer.datamodule, trainer, stage)

    def deciding_split(self, trainer: Any) -> list[int]:
        """How a step is split, where that decides the outcome.

        Args:
            trainer: Whose devices share a step.
        """
        if self.normalization == "step":
            return []
        return [trainer.world_size, self.data.accumulate(trainer.world_size)]

    def check_split(self, model: Any, trainer: Any) -> None:
        """Refuse to split a step where its loss would depend on how, before anything is spent.

        Args:
            model: The model.
            trainer: Whose devices share a step.
        """
        check_split(self, model, trainer)

    def prepare(self, model: Any) -> None:
        """What `setup` does without a trainer.

        Raises:
            ValueError: If a key of a weight chooses none.
        """
        self.model = model
        model.loss, model.step_loss = self.loss, StepLoss(self.loss, self.normalization)
        model.optimizers_of_stage = self.optimizers
        self.selection.check(model, self.loss)
        for weight, names in names_of(weights_of(model, self.loss)):
            weight.requires_grad_(self.selection.trains(*names))
        recompute(model.llm.model, self.gradient_checkpointing)
        self._set_modes(model)

    def _set_modes(self, model: Any) -> None:
        for part in (*parts_of(model).values(), model.loss):
            train_only(part, training=False)
        hold_statistics(model, self.selection)
        if self.gradient_checkpointing:
            recompute_frozen(model.llm.model)

    def check(self, model: Any, trainer: Mapping[str, Any]) -> None:
        """Refuse what cannot be trained here, before anything is spent.

        Args:
            model: The model.
            trainer: Options of Lightning's Trainer that all stages share.
        """
        self._check_held(model, precision_of({**trainer, **self.trainer_options}))
        if self.optimizer == "muon":
            check_matrices(self, model)
        if self.lora is not None:
            self.lora.check(model, self.selection)

    def _check_held(self, model: Any, precision: Any) -> None:
        named = names_of(weights_of(model, self.loss))
        # Adapters are of the type of the weights beside which they train.
        chosen = {n[0]: each for each, n in named if self.selection.key(*n) is not None}
        check_held({f"stages.{self.name}: {n}": w for n, w in chosen.items()}, precision)

    def check_keys(self, model: Any) -> None:
        """Refuse keys of weights that choose none, and options that do nothing.

        Raises:
            ValueError: Names the stage and the key.
        """
        try:
            self.selection.check(model, self.loss)
            refuse_idle(self, model)
        except ValueError as problem:
            raise ValueError(f"stages.{self.name}.{problem}") from None

    def begin(self, model: Any) -> None:
        """Put adapters in, where the stage trains some."""
        if self.lora is not None:
            self.selection.check(model, self.loss)
            self.lora.check(model, self.selection)
            self.lora.attach(model)
        self.prepare(model)

    def finish(self, model: Any) -> None:
        """Merge the adapters."""
        merge(model)

    def size(self, model: Any) -> int:
        """Weights that the stage trains, without those of its loss."""
        adapters = 0 if self.lora is None else self.lora.size(model)
        every = names_of(weights_of(model, nn.Module()))
        own = (weight.numel() for weight, names in every if self.selection.trains(*names))
        return adapters + sum(own)

    def keeps(self, name: str) -> bool:
        """Whether a checkpoint holds this tensor: it cannot be had from the stage before."""
        return name.startswith("loss.") or self.selection.trains(name)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw as if nothing had been drawn before, by loaders or by other stages."""
        seed_everything(run_seed(), workers=True, verbose=False)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Keep frozen parts in evaluation mode: Lightning has just set all to training."""
        self._set_modes(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let gradients go after a step: Lightning would hold them through the next forward."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            for optimizer in trainer.optimizers:
                optimizer.zero_grad()

    def groups(self) -> Iterator[dict[str, Any]]:
        """Parameter groups: each key's hidden, other decayed and undecayed weights at its rate."""
        named = names_of(weights_of(self.model, self.model.loss))
        keys = [(self.selection.key(*names), weight) for weight, names in named]
        hidden = hidden_matrices(self.model) if self.optimizer == "muon" else set()
        for name, rate in self.lr.items():
            weights = [each for key, each in keys if key == name and each.requires_grad]
            kinds = [
                ([w for w in weights if w in hidden], self.weight_decay, True),
                ([w for w in weights if w.ndim > 1 and w not in hidden], self.weight_decay, False),
                ([w for w in weights if w.ndim <= 1], 0.0, False),
            ]
            for chosen, decay, muon in kinds:
                if chosen:
                    group = {"params": chosen, "lr": rate, "weight_decay": decay, "name": name}
                    yield group | {"hidden": muon}

    def optimizers(self) -> dict[str, Any]:
        """The optimizer and the schedule, in the form that Lightning asks for."""
        master = master_of(self.trainer.precision_plugin)
        groups = [{**g, "params": [master(each) for each in g["params"]]} for g in self.groups()]
        make = Muon if self.optimizer == "muon" else adamw
        optimizer: torch.optim.Optimizer = make(groups, self.betas)
        weights = names_of(weights_of(self.model, self.model.loss))
        names = {id(master(weight)): names[0] for weight, names in weights}
        for each in getattr(optimizer, "inner", [optimizer]):
            name_states(each, names)
        # Not Lightning's own estimate: it sets the loader up too early, and a checkpoint's position
        # would never reach it.
        steps = self.trainer.datamodule.steps()
        scheduler = LambdaLR(optimizer, lambda step: self.factor(step, steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def factor(self, step: int, steps: int) -> float:
        """Share of the peak rate at a step, as transformers' schedules of the same names."""
        warmup = math.ceil(steps * self.warmup_ratio)
        if step < warmup:
            return step / max(1, warmup)
        done = (step - warmup) / max(1, steps - warmup)
        if self.schedule == "cosine":
            return max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
        return max(0.0, 1.0 - done) if self.schedule == "linear" else 1.0

    def trained(self, model: Any) -> dict[str, Tensor]:
        """The tensors that this stage has changed, under the model's names; those tied once."""
        tied: dict[int, list[tuple[str, Tensor]]] = {}
        for part, module in parts_of(model).items():
            for name, tensor in module.state_dict(prefix=f"{part}.").items():
                tied.setdefault(tensor.data_ptr(), []).append((name, tensor))
        return dict(
            named[0]
            for named in tied.values()
            if self.selection.key(*(name for name, _ in named)) is not None
        )
