"""Each option of Lightning's Trainer is honoured, or refused with what to set instead."""

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, stage_options
from lightning.pytorch import Callback

from llava_lab.cli import fit as cli
from llava_lab.report.table import run_notes
from llava_lab.train.trainer import DEFAULTS, check_options, check_stage_options, deciding

EXPERIMENT = REPOSITORY / "experiments" / "llava15.yaml"
REFUSED = {
    "max_epochs": (2, "data.epochs"),
    "min_epochs": (2, "data.epochs"),
    "max_steps": (7, "data.max_steps"),
    "min_steps": (7, "data.max_steps"),
    "overfit_batches": (2, "sampling to first:N"),
    "accumulate_grad_batches": (2, "data.micro_batch_size"),
    "use_distributed_sampler": (False, "leave it out"),
    "reload_dataloaders_every_n_epochs": (1, "leave it out"),
    "default_root_dir": ("elsewhere", "--runs"),
    "enable_checkpointing": (False, "--checkpoint_seconds"),
    "barebones": (True, "leave it out"),
}
QUIET = {  # how one stage is watched and computed
    "enable_progress_bar": "false",
    "enable_model_summary": "true",
    "log_every_n_steps": 1,
    "profiler": "simple",
    "detect_anomaly": "true",
    "deterministic": "true",
    "benchmark": "false",
    "inference_mode": "false",
    "num_sanity_val_steps": 1,
    "enable_autolog_hparams": "false",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "accelerator": "cpu",
    "model_registry": "null",
    "plugins": "null",
}
DECIDING = {
    "precision": "bf16-mixed",
    "sync_batchnorm": "true",
    "gradient_clip_val": 0.5,
    "gradient_clip_algorithm": "value",
    "limit_train_batches": 1,
    "limit_val_batches": 1,
    "val_check_interval": 1,
    "check_val_every_n_epoch": 1,
    "max_time": "00:01:00:00",
}
ASKING = {"limit_test_batches": 1, "limit_predict_batches": 1}
OWN_TESTS = {"logger", "callbacks", "fast_dev_run"}


class Counted(Callback):
    """A callback of the user's own."""

    batches = 0

    def on_train_batch_end(self, *_: Any) -> None:
        Counted.batches += 1


class Ended(Callback):
    """Ends a stage after its first step, as Lightning's EarlyStopping does."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = True


def command(shortened: list[str], folder: Path, options: dict[str, Any], *more: str) -> list[str]:
    options = {**{"accelerator": "cpu"}, **options}
    trainer = [f"--trainer.{name}={value}" for name, value in options.items()]
    stages = stage_options(EXPERIMENT, folder)
    runs = f"--runs={folder / 'runs'}"
    return ["fit", "-c", str(EXPERIMENT), *shortened, *stages, *trainer, runs, *more]


def test_every_option_of_lightning_is_in_one_of_these_tests() -> None:
    tested = {*REFUSED, *QUIET, *DECIDING, *ASKING, *OWN_TESTS}
    assert tested == DEFAULTS.keys()


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_stages_set_themselves_is_refused_with_the_way_out(name: str) -> None:
    value, way_out = REFUSED[name]
    with pytest.raises(ValueError, match=rf"trainer\.{name} cannot be {value!r}: .*{way_out}"):
        check_options({name: value}, "trainer")


def test_a_refusal_comes_before_anything_is_built(shortened: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"trainer\.max_steps cannot be 7: .*data\.max_steps"):
        cli.main(command(shortened, tmp_path, {"max_steps": 7}))
    with pytest.raises(SystemExit, match="seed_everything: Expected a"):
        cli.main(command(shortened, tmp_path, {}, "--seed_everything=false"))
    assert not (tmp_path / "runs").exists()


def test_a_stages_own_options_are_checked_as_well(shortened: list[str], tmp_path: Path) -> None:
    for options, message in (
        ({"max_steps": 3}, "place.max_steps cannot be 3: .* data.max_steps"),
        ({"max_stepz": 3}, "place: no option 'max_stepz'; did you mean 'max_steps'"),
        *(
            ({name: 2}, f"place.{name}: set trainer.{name}, which all stages share")
            for name in ("logger", "devices", "num_nodes", "strategy", "accelerator")
        ),
    ):
        with pytest.raises(ValueError, match=message):
            check_stage_options(options, "place")
    for option, message in (
        ("{max_steps: 3}", "stages.align.trainer.max_steps cannot be 3"),
        ("{gradient_clip_algorithm: x}", "trainer: .*`gradient_clip_algorithm` x is invalid"),
    ):
        with pytest.raises(SystemExit, match=message):
            cli.main(command(shortened, tmp_path, {}, f"--stages.align.trainer={option}"))


def fitted(shortened: list[str], folder: Path, options: dict[str, Any], *more: str) -> list[dict]:
    """Records of the stages of a short fit with these options."""
    cli.main(command(shortened, folder, options, *more))
    found = [json.loads(path.read_text()) for path in folder.glob("runs/*/*/stages/*/stage.json")]
    return sorted(found, key=lambda record: record["name"])


def test_options_that_watch_a_stage_change_nothing_in_it(
    shortened: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (plain,) = fitted(shortened, tmp_path / "plain", {}, "--stage=align")
    capsys.readouterr()
    (watched,) = fitted(shortened, tmp_path / "watched", QUIET, "--stage=align")
    said = capsys.readouterr()
    assert "align:" not in said.err and "Epoch 0" not in said.err
    for key in ("fingerprint", "steps", "loss_first", "loss_last", "held_out"):
        assert watched[key] == plain[key], key


def test_options_that_decide_are_honoured_and_are_another_stage(
    shortened: list[str], tmp_path: Path
) -> None:
    (plain,) = fitted(shortened, tmp_path, {}, "--stage=align")
    (limited,) = fitted(shortened, tmp_path / "other", DECIDING, "--stage=align")
    assert (plain["steps"], limited["steps"]) == (2, 1)
    assert limited["fingerprint"] != plain["fingerprint"]
    for name, value in DECIDING.items():
        if name != "check_val_every_n_epoch":  # here with the default's value
            assert deciding({name: value}) == {name: value}
    records = fitted(shortened, tmp_path, {"limit_train_batches": 1}, "--stage=align")
    assert sorted(record["steps"] for record in records) == [1, 2], "trained, not reused"


def test_fast_dev_run_trains_one_batch_and_is_never_taken_for_the_run(
    shortened: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    quick = fitted(shortened, tmp_path, {"fast_dev_run": "true"})
    assert [record["steps"] for record in quick] == [1, 1]
    cli.main(command(shortened, tmp_path, {}, "--dry_run"))
    said = capsys.readouterr().out
    assert said.count("to train") == 2 and "benchmarks: to ask" in said


def test_loggers_callbacks_and_bars_of_the_users_own_are_taken(
    shortened: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    logger = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": str(tmp_path / "logs"), "name": "csv", "version": "one"},
    }
    callbacks = [
        {"class_path": "test_trainer.Counted"},
        {"class_path": "lightning.pytorch.callbacks.RichProgressBar"},
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"dirpath": str(tmp_path / "kept"), "every_n_train_steps": 1},
        },
    ]
    Counted.batches = 0
    options = {"logger": json.dumps(logger), "callbacks": json.dumps(callbacks)}
    fitted(shortened, tmp_path, {**options, "log_every_n_steps": 1})
    rows = list(csv.DictReader((tmp_path / "logs/csv/one/metrics.csv").open()))
    names = {name for row in rows for name, value in row.items() if value}
    assert {"align-loss", "instruct-loss"} <= names
    assert not list(tmp_path.rglob("events.out.tfevents*")), "TensorBoard beside the user's logger"
    assert list((tmp_path / "kept").glob("*.ckpt"))
    import test_trainer

    assert test_trainer.Counted.batches == 4


def test_a_stage_that_ends_before_its_last_step_says_so(
    shortened: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = {"callbacks": json.dumps([{"class_path": "test_trainer.Ended"}])}
    (record,) = fitted(shortened, tmp_path, options, "--stage=align")
    assert (record["steps"], record["of_steps"]) == (1, 2)
    assert "stage align: ends at step 1 of 2" in capsys.readouterr().out
    note = "Stage align ended at step 1 of 2, by trainer.max_time or a callback."
    assert run_notes({"stages": [record]}) == [note]


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_loggers_of_other_packages_are_taken_where_they_are_there(
    package: str, shortened: list[str], tmp_path: Path
) -> None:
    kind, arguments = {
        "wandb": ("WandbLogger", {"offline": True, "save_dir": str(tmp_path)}),
        "mlflow": ("MLFlowLogger", {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}),
    }[package]
    logger = {"class_path": f"lightning.pytorch.loggers.{kind}", "init_args": arguments}
    options = {"logger": json.dumps(logger), "log_every_n_steps": 1}
    if importlib.util.find_spec(package) is None:
        with pytest.raises(SystemExit, match=package):
            cli.main(command(shortened, tmp_path, options))
        return
    assert [record["steps"] for record in fitted(shortened, tmp_path, options)] == [2, 2]
    if package == "mlflow":
        client = importlib.import_module("mlflow").MlflowClient(arguments["tracking_uri"])
        (run,) = client.search_runs(["1"])
        assert {"align-loss", "instruct-loss"} <= run.data.metrics.keys()


def test_held_out_numbers_are_those_of_the_last_step(shortened: list[str], tmp_path: Path) -> None:
    more = ("--stages.align.data.max_steps=3", "--stages.align.data.hold_out=0.2", "--stage=align")
    (each,) = fitted(shortened, tmp_path / "a", {}, *more)
    (some,) = fitted(shortened, tmp_path / "b", {"val_check_interval": 2}, *more)
    assert each["held_out"] == some["held_out"]


def test_unknown_options_are_named() -> None:
    with pytest.raises(ValueError, match="place: no option 'presicion'; did you mean 'precision'"):
        check_options({"presicion": 16}, "place")
    check_options({name: value for name, value in DEFAULTS.items()}, "place")
    assert deciding(DEFAULTS) == {}


def test_a_plugin_decides_where_it_is_one_of_precision() -> None:
    plugins = [
        {"class_path": f"lightning.pytorch.plugins.{name}"}
        for name in ("DoublePrecision", "io.TorchCheckpointIO")
    ]
    assert deciding({"plugins": None}) == deciding({"plugins": plugins[1]}) == {}
    assert deciding({"plugins": plugins}) == {"plugins": plugins[:1]}
