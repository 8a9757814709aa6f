"""Experiments in one process do not disturb one another."""

from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from llava_lab.experiment.experiment import Experiment


@pytest.fixture
def experiment(small_world: Path, tmp_path: Path) -> Experiment:
    options = {
        "tiny_world": None,
        "paths.root": str(small_world),
        "stages.instruct.data.sources.0.sampling": "random:50%",
        "data.benchmarks": [],
    }
    for stage in ("align", "instruct"):
        data = {"max_steps": 2, "batch_size": 4, "feature_store": str(tmp_path / "features")}
        options |= {f"stages.{stage}.data.{key}": value for key, value in data.items()}
    return Experiment.read(REPOSITORY / "experiments" / "llava15.yaml").changed(options)


def test_each_experiment_keeps_its_own_seed(experiment: Experiment, tmp_path: Path) -> None:
    other = experiment.changed({"seed_everything": 1})
    alone = experiment.fit(tmp_path / "alone")
    first, second = (each.fitting(tmp_path / "both") for each in (experiment, other))
    for each in (first, second):
        each.preview()  # the seed of the process is now the second one's
    both = first.fit()
    fingerprints = [
        [stage["fingerprint"] for stage in run.results["stages"]] for run in (alone, both)
    ]
    assert fingerprints[0] == fingerprints[1]
    losses = [[stage["loss_last"] for stage in run.results["stages"]] for run in (alone, both)]
    assert losses[0] == losses[1]


def test_a_model_that_was_trained_is_no_beginning(experiment: Experiment, tmp_path: Path) -> None:
    half = "{path: '${paths.instruct}', images: '${paths.instruct_images}', sampling: '%s:50%%'}"
    named = [{**yaml.safe_load(half % name), "name": name} for name in ("first", "end")]
    weight = {"stages.instruct.data.sources.end.weight": 0}
    experiment = experiment.changed({"stages.instruct.data.sources": named, **weight})
    fitting = experiment.fitting(tmp_path / "runs")
    fitting.fit("align")
    for again in (fitting.fit, fitting.preview, fitting.test):
        with pytest.raises(ValueError, match="has changed its model"):
            again()
    run = experiment.fit(tmp_path / "runs")
    align, instruct = run.results["stages"]
    assert not align["reused"] and not instruct["reused"]
    losses = [instruct["held_out"][f"loss{name}"] for name in ("/first", "", "/end")]
    assert sorted(losses)[1] == losses[1] and losses[0] != losses[2]
    assert set(align["held_out"]) == set()
    assert len(list((tmp_path / "runs").glob("llava15/*"))) == 1
