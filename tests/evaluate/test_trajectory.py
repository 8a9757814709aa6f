"""Scores and weights on the way: training is the same without them, whatever interrupts it."""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import LLAMA, REPOSITORY
from safetensors.torch import load_file

from llava_lab.convert.load import load_model
from llava_lab.core import signals
from llava_lab.evaluate import trajectory
from llava_lab.evaluate.benchmark import Benchmark
from llava_lab.evaluate.metrics.server import Server
from llava_lab.evaluate.trajectory import scaled
from llava_lab.experiment.build import Parts
from llava_lab.experiment.experiment import Experiment
from llava_lab.experiment.run import Run
from llava_lab.experiment.watch import check, check_read
from llava_lab.model.llm import CausalLM
from llava_lab.report.runs import read
from llava_lab.train.kept import steps_between
from llava_lab.train.loss import NextToken
from llava_lab.train.sharded import Sharded
from llava_lab.train.stage import Stage

WATCHED = {
    "stages.align.evaluate_every": 0.5,
    "stages.instruct.evaluate_every": 1,
    "stages.instruct.keep_every": 2,
}
STEPS = {"align": 4, "instruct": 3}


def experiment(world: Path, folder: Path) -> Experiment:
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(folder)}
    options: dict[str, Any] = {
        "tiny_world": None,
        "paths.root": str(world),
        "data.benchmarks": [
            {
                "name": "questions",
                "questions": "${paths.questions}",
                "images": "${paths.questions_images}",
                "metric": "llava_lab.evaluate.metrics.question.VQAAccuracy",
                "limit": 6,
                "blind": False,
            },
            {
                "name": "secret",  # whose server scores it: not asked on the way
                "questions": "${paths.questions}",
                "images": "${paths.questions_images}",
                "metric": "llava_lab.evaluate.metrics.server.Server",
                "limit": 1,
                "blind": False,
            },
        ],
        "data.max_new_tokens": 2,
        "data.images_per_batch": 1,
        "data.temperature": 0.5,
        "trainer.logger": {**logger, "name": "csv", "version": "one"},
        "trainer.log_every_n_steps": 1,
    }
    if importlib.util.find_spec("peft"):  # its dropout draws
        options["stages.instruct.lora"] = {"rank": 2, "alpha": 4.0, "dropout": 0.2}
    for stage, steps in STEPS.items():
        data = {"max_steps": steps, "batch_size": 4, "feature_store": str(folder / "features")}
        options |= {f"stages.{stage}.data.{key}": value for key, value in data.items()}
    return Experiment.read(REPOSITORY / "experiments" / "llava15.yaml").changed(options)


def weights(run: Run) -> dict[str, dict[str, torch.Tensor]]:
    return {path.parent.name: load_file(path) for path in run.folder.glob("stages/*/*.safetensors")}


def assert_equal(one: Run, other: Run) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys() == STEPS.keys()
    for stage, tensors in mine.items():
        assert tensors.keys() == theirs[stage].keys()
        assert all(tensors[name].equal(theirs[stage][name]) for name in tensors), stage
    for ours, its in zip(records(one), records(other), strict=True):
        for key in ("fingerprint", "samples", "tokens", "flops", "loss_first", "loss_last"):
            assert ours[key] == its[key], key


def records(run: Run) -> list[dict[str, Any]]:
    return [json.loads((run.folder / "stages" / name / "stage.json").read_text()) for name in STEPS]


@pytest.fixture(scope="module")
def plain(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("plain")
    return experiment(small_world, folder).fit(folder / "runs", last="instruct")


@pytest.fixture(scope="module")
def watched(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that a signal interrupts between the questions of its second point."""
    folder = tmp_path_factory.mktemp("watched")
    changed, own = experiment(small_world, folder).changed(WATCHED), trajectory.answer

    def interrupted(model: Any, batch: Any) -> Any:
        if list(folder.rglob("stages/align/stage.json")):  # the next stage's first question
            patch.setattr(signals._state, "came", 15)
        return own(model, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trajectory, "answer", interrupted)
        with pytest.raises(signals.Interrupted):
            changed.fit(folder / "runs", checkpoint_seconds=1000)
    assert [path.name.split("-")[1] for path in folder.rglob("step-*.ckpt")] == ["00000001"]
    return changed.fit(folder / "runs")


def test_a_stage_that_is_watched_and_interrupted_trains_as_one_that_is_not(
    plain: Run, watched: Run
) -> None:
    assert_equal(plain, watched)


def test_points_say_what_was_spent_until_then(watched: Run) -> None:
    align, instruct = read(watched.results_file).results["stages"]
    points = align["trajectory"]["points"]
    assert [point["step"] for point in points] == [2, 4]
    assert [point["samples"] for point in points] == [8, 16]
    assert points[0]["tokens"] < points[1]["tokens"] == align["tokens"]
    assert points[0]["flops"] < points[1]["flops"] == align["flops"]
    asked = watched.results["benchmark_fingerprints"]
    for stage in (align, instruct):
        assert stage["trajectory"]["asked"] == asked
        for point in stage["trajectory"]["points"]:
            (scores,) = point["benchmarks"].values()
            assert scores["accuracy"]["n"] == 6
    assert [point["step"] for point in instruct["trajectory"]["points"]] == [1, 2]


def test_loggers_have_the_scores_at_their_steps(watched: Run) -> None:
    (path,) = watched.folder.parents[2].rglob("metrics.csv")
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("instruct-questions/accuracy")]
    assert [int(row["step"]) for row in rows] == [1, 2]


def test_kept_weights_open_as_a_model(watched: Run) -> None:
    (path,) = watched.folder.glob("stages/*/kept/*")
    assert path.name == "step-00000002.safetensors" and path.parents[1].name == "instruct"
    model, _ = load_model(path, trusted=["lightning"])
    found, kept, end = model.state_dict(), load_file(path), weights(watched)["instruct"]
    assert kept.keys() == end.keys()
    assert all(found[name].equal(tensor) for name, tensor in kept.items())
    assert not all(end[name].equal(tensor) for name, tensor in kept.items())
    path.with_name("step-00000009.safetensors").write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"step-00000009\.safetensors: damaged"):
        load_model(path.with_name("step-00000009.safetensors"), trusted=["lightning"])
    path.with_name("step-00000009.safetensors").unlink()


def preview(experiment: Experiment, run: Run) -> dict[str, bool]:
    """Which stages would be reused beside a run."""
    stages = experiment.fitting(run.folder.parents[1]).preview("instruct").stages
    return {name: found is not None for name, found in stages.items()}


@pytest.mark.slow
def test_options_decide_nothing_but_a_stage_without_what_they_ask_is_trained_again(
    small_world: Path, plain: Run, watched: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    unwatched = experiment(small_world, watched.folder.parents[2])
    assert preview(unwatched, watched) == {"align": True, "instruct": True}
    assert preview(unwatched.changed(WATCHED), watched) == {"align": True, "instruct": True}
    base = experiment(small_world, plain.folder.parents[2])
    kept = base.changed({"stages.align.keep_every": 2})
    assert preview(kept, plain) == {"align": False, "instruct": True}
    assert "finished without the scores or weights" in capsys.readouterr().out
    asked = unwatched.changed({"stages.align.evaluate_every": 0.25})
    assert preview(asked, watched) == {"align": False, "instruct": True}


def test_scaled_positions_are_put_back_exactly() -> None:
    llm = CausalLM(None, "v1", pretrained=False, config=LLAMA, tokenizer="asset:tokenizer")
    before, rope = llm.model.model.rotary_emb.inv_freq.clone(), llm.model.config.rope_parameters
    with scaled(llm, 3.0):
        assert llm.scaled == 3.0 and not llm.model.model.rotary_emb.inv_freq.equal(before)
    assert llm.model.model.rotary_emb.inv_freq.equal(before)
    assert llm.scaled == 1.0 and llm.model.config.rope_parameters == rope


def test_steps_are_those_before_the_end() -> None:
    assert steps_between(None, 10) == []
    assert steps_between(4, 10) == [4, 8]
    assert steps_between(5, 10) == [5]
    assert steps_between(0.25, 10) == [2, 5, 8]
    assert steps_between(0.1, 3) == [1, 2]
    assert steps_between(1.0, 10) == steps_between(20, 10) == []


@pytest.mark.parametrize("name", ["keep_every", "evaluate_every"])
@pytest.mark.parametrize(("every", "limit"), [(10, None), (900, None), (1.0, None), (3, 3)])
def test_what_would_ask_or_keep_nothing_before_a_stages_end_is_refused(
    name: str, every: float, limit: int | None
) -> None:
    data = SimpleNamespace(steps=lambda: 10)
    stages: Any = [
        SimpleNamespace(name=each, data=data, trainer_options={}, keep_every=None)
        for each in ("align", "instruct")
    ]
    for each in stages:
        each.evaluate_every = None
        setattr(each, name, every)
    benchmarks: Any = SimpleNamespace(benchmarks=[])
    parts = Parts(
        torch.nn.Identity(),
        {each.name: each for each in stages},
        benchmarks,
        {"limit_train_batches": limit},
    )
    steps = limit or 10
    message = rf"^stages\.instruct\.{name} is {every}, and the stage has {steps} steps: nothing is"
    with pytest.raises(ValueError, match=message):
        check_read(stages[1], parts)
    if name == "evaluate_every":
        check_read(stages[0], parts)  # the end of a stage that others follow is asked
    setattr(stages[1], name, 2)
    check_read(stages[1], parts)


@pytest.mark.parametrize("every", [0, -1, 0.0, 1.5, True, float("nan")])
def test_what_names_no_steps_is_refused(every: Any) -> None:
    with pytest.raises(ValueError, match=r"keep_every is .*a number of steps \(500\), or a share"):
        Stage(SimpleNamespace(), NextToken(), {"llm": 1.0}, keep_every=every)


def test_what_cannot_be_asked_or_kept_is_said_before_anything_is_spent() -> None:
    data = SimpleNamespace(name="align", batch_size=4, accumulate=lambda world: 1)
    stage = Stage(data, NextToken(), {"llm": 1.0}, evaluate_every=3)
    secret = Benchmark("secret", "questions.jsonl", None, Server())
    for benchmarks in ([], [secret]):
        with pytest.raises(
            ValueError, match=r"align\.evaluate_every: data\.benchmarks has none that"
        ):
            check(stage, SimpleNamespace(benchmarks=benchmarks))
    shared = SimpleNamespace(world_size=2, strategy=Sharded())
    shared.strategy.check = lambda *_: None
    with pytest.raises(ValueError, match=r"evaluate_every: no device has the whole.*strategy=ddp"):
        stage.check_split(torch.nn.Identity(), shared)


@pytest.mark.slow
def test_two_devices_ask_and_keep_as_one_does(
    small_world: Path, tmp_path: Path, watched: Run
) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(experiment(small_world, tmp_path).changed(WATCHED).text())
    words = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]
    command = [sys.executable, "-m", "llava_lab", "fit", "-c", str(path), *words]
    subprocess.run([*command, f"--runs={tmp_path / 'runs'}"], check=True, timeout=300)
    (found,) = (tmp_path / "runs").glob("*/*/results.json")
    for one, two in zip(watched.results["stages"], read(found).results["stages"], strict=True):
        mine, theirs = (each["trajectory"]["points"] for each in (one, two))
        for ours, its in zip(mine, theirs, strict=True):
            assert {k: v for k, v in ours.items() if k != "benchmarks"} == {
                k: v for k, v in its.items() if k != "benchmarks"
            }
            assert ours["benchmarks"].keys() == its["benchmarks"].keys()
    assert list(found.parent.glob("stages/instruct/kept/step-00000002.safetensors"))
