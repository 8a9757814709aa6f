"""Weights in bfloat16, steps in float32: nearer to float32 than bfloat16 throughout; resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from lightning.pytorch import Callback
from test_waiting import STEPS, stage_of, trainer_of
from torch import nn

from llava_lab.experiment.experiment import Experiment
from llava_lab.model.llava import Llava
from llava_lab.train.checkpoint import StageCheckpoint
from llava_lab.train.precision import BYTES, CHOICES, UNFIT, Bfloat16, as_after
from llava_lab.train.sharded import Sharded
from llava_lab.train.trainer import check_stage_options

ALL = list(BYTES)


class Seen(Callback):
    """Bytes of a trained weight on the way, and a checkpoint after the second step."""

    def __init__(self, checkpoint: StageCheckpoint | None = None):
        self.checkpoint, self.kinds = checkpoint, set()
        self.last: dict[str, torch.Tensor] = {}
        self.found: tuple[int, int, int] | None = None

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.kinds |= {weight.dtype for weight in module.parameters()}
        exact = as_after(trainer.precision_plugin)
        self.last = {name: exact(each).clone() for name, each in module.state_dict().items()}
        if self.checkpoint is not None and trainer.global_step == 2:
            self.checkpoint.save(trainer)
            self.checkpoint = None

    def on_before_backward(self, trainer: Any, module: Any, loss: Any) -> None:
        weight = module.llm.model.model.layers[0].mlp.up_proj.weight
        optimizer = trainer.optimizers[0]
        if not optimizer.state:
            return
        held = [each for group in optimizer.param_groups for each in group["params"]]
        (own,) = [each for each in held if each.shape == weight.shape and each in optimizer.state][
            :1
        ]
        states = [optimizer.state[own][name] for name in ("exp_avg", "exp_avg_sq")]
        states += [] if any(each is weight for each in held) else [own]
        size = weight.element_size()  # a gradient has its weight's type
        self.found = (size, size, sum(each.element_size() for each in states))


def fitted(precision: str, folder: Path, newest: Path | None = None, save: bool = False) -> Any:
    model, stage = stage_of("sft")
    stage.lr = {name: 1e-4 for name in stage.lr}
    checkpoint = StageCheckpoint(folder, "f" * 64, stage, 1e9)
    seen = Seen(checkpoint if save else None)
    options = {"accelerator": "cpu", "precision": precision}
    callbacks = [stage, checkpoint, seen]
    trainer = trainer_of(stage, folder, callbacks, **options)
    model.strict_loading = False
    trainer.fit(model, datamodule=stage.data, ckpt_path=newest, weights_only=True)
    assert trainer.global_step == STEPS
    return model, seen, checkpoint


def state(model: Llava) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {each: fitted(each, tmp_path_factory.mktemp("fit")) for each in ALL}


@pytest.mark.parametrize("precision", ALL)
def test_a_trained_weight_takes_the_bytes_that_are_said(results: Any, precision: str) -> None:
    model, seen, _ = results[precision]
    assert seen.found == BYTES[precision]
    assert seen.kinds == {torch.bfloat16 if BYTES[precision].held == 2 else torch.float32}
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ALL)
def test_what_a_weight_will_be_is_known_while_it_trains(results: Any, precision: str) -> None:
    model, seen, _ = results[precision]
    assert all(seen.last[name].equal(tensor) for name, tensor in model.state_dict().items())


def test_steps_in_float32_are_nearer_to_float32_than_bfloat16_throughout(results: Any) -> None:
    began, _ = stage_of("sft")
    exact, own = state(results["32-true"][0]), began.state_dict()

    def away(precision: str) -> float:
        found = state(results[precision][0])
        trained = [name for name in exact if not torch.equal(exact[name], own[name])]
        return float(sum(((found[name] - exact[name]) ** 2).sum() for name in trained)) ** 0.5

    assert 0 < 2 * away("bf16-master") < away("bf16-true")
    assert away("bf16-mixed") < away("bf16-true")


@pytest.mark.parametrize("precision", ["bf16-master", "bf16-true"])
def test_what_is_frozen_is_afterwards_as_it_was(results: Any, precision: str) -> None:
    began, _ = stage_of("sft")
    after = results[precision][0].encoder.state_dict()
    for name, tensor in began.encoder.state_dict().items():
        assert torch.equal(after[name], tensor), name


@pytest.mark.parametrize("precision", ["bf16-master", "bf16-true"])
def test_statistics_that_do_not_move_are_afterwards_as_they_were(precision: Any) -> None:
    layers = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(2))
    for name, buffer in layers.named_buffers():
        buffer.copy_(torch.rand(4) + 0.3 if "running" in name else buffer)
    layers[0].eval().requires_grad_(False)
    before = {name: each.clone() for name, each in layers.state_dict().items()}
    plugin = Bfloat16(precision)
    plugin.convert_module(layers)
    held = plugin.master(layers[1].weight)
    assert held.dtype == (torch.float32 if precision == "bf16-master" else torch.bfloat16)
    for layer in layers:
        layer(torch.randn(3, 4, dtype=torch.bfloat16))
    exact = as_after(plugin)
    foreseen = {name: exact(each) for name, each in layers.state_dict().items()}
    plugin.teardown()
    after = layers.state_dict()
    assert all(after[name].equal(each) for name, each in foreseen.items())
    moved = {name for name in after if not after[name].equal(before[name])}
    moved -= {"1.weight", "1.bias"}
    assert moved == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-master"])
def test_what_trains_in_bfloat16_loses_steps_and_is_refused(precision: Any, tmp_path: Path) -> None:
    model, stage = stage_of("sft")
    stage.check(model, {"precision": precision})
    model.llm.bfloat16()
    message = rf"llm\.\S+ trains and was made in bfloat16, .*{precision} takes.*dtype to float32"
    with pytest.raises(ValueError, match=message):
        stage.check(model, {"precision": precision})
    trainer = trainer_of(stage, tmp_path, [stage], accelerator="cpu", precision=precision)
    with pytest.raises(ValueError, match=message):
        trainer.fit(model, datamodule=stage.data)
    stage.check(model, {"precision": "bf16-true"})
    stage.trainer_options = {"precision": "bf16-true"}
    stage.check(model, {"precision": precision})
    stage.check(model, {"plugins": [Bfloat16("bf16-true")]})


def test_what_was_trained_is_kept_in_float32(results: Any) -> None:
    weight = results["bf16-master"][0].connector[0].weight
    assert not torch.equal(weight, weight.bfloat16().float())
    weight = results["bf16-true"][0].connector[0].weight
    assert torch.equal(weight, weight.bfloat16().float())


@pytest.mark.parametrize("precision", ALL)
def test_a_stage_goes_on_bit_for_bit(results: Any, precision: str, tmp_path: Path) -> None:
    _, _, checkpoint = fitted(precision, tmp_path, save=True)
    newest = checkpoint.newest()
    assert newest is not None
    again = state(fitted(precision, tmp_path, newest)[0])
    for name, tensor in state(results[precision][0]).items():
        assert torch.equal(again[name], tensor), name


def test_a_sharded_strategy_has_it_by_another_name() -> None:
    strategy = Sharded()
    strategy.precision_plugin = Bfloat16("bf16-master")
    with pytest.raises(ValueError, match="under bf16-mixed; set that"):
        strategy.check("sft", None)


def test_an_experiment_names_it_like_any_other_precision() -> None:
    experiment = Experiment.read(REPOSITORY / "experiments" / "llava15.yaml")
    for each in ALL:
        found = experiment.changed({"trainer.precision": each}).options.trainer.precision
        assert found == each and each in CHOICES
    with pytest.raises(ValueError, match=r"trainer\.precision: .*bf16-master"):
        _ = experiment.changed({"trainer.precision": "bf17"}).options


@pytest.mark.parametrize("precision", UNFIT)
def test_what_would_convert_no_batch_of_ours_is_refused_in_a_stage_too(precision: Any) -> None:
    with pytest.raises(ValueError, match=r"stages\.x\.trainer\.precision cannot be .*bf16-master"):
        check_stage_options({"precision": precision}, "stages.x.trainer")
