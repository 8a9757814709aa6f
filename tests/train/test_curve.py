"""A short fit of the tiny scale keeps its loss curve: a refactoring that moves it is none."""

import csv
import json
from pathlib import Path

import pytest
from conftest import REPOSITORY

from llava_lab.experiment.experiment import Experiment

GOLDEN = REPOSITORY / "tests" / "golden" / "loss_curve.json"


def test_losses_of_both_stages_are_those_that_were_kept(small_world: Path, tmp_path: Path) -> None:
    logger = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "save_dir": str(tmp_path),
        "name": "csv",
        "version": "one",
    }
    options = {
        "tiny_world": None,
        "paths.root": str(small_world),
        "trainer.logger": logger,
        "trainer.log_every_n_steps": 1,
        "data.benchmarks": [],
    }
    for stage in ("align", "instruct"):
        data = {"max_steps": 10, "batch_size": 4, "feature_store": str(tmp_path / "features")}
        options |= {f"stages.{stage}.data.{key}": value for key, value in data.items()}
    Experiment.read(REPOSITORY / "experiments" / "llava15.yaml").changed(options).fit(
        tmp_path / "runs"
    )
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    found = {
        stage: [float(row[f"{stage}-loss"]) for row in rows if row.get(f"{stage}-loss")]
        for stage in ("align", "instruct")
    }
    expected = json.loads(GOLDEN.read_text())
    assert found.keys() == expected.keys()
    for stage, losses in expected.items():
        # Processors of other kinds round apart; a change of the recipe is far beyond that.
        assert found[stage] == pytest.approx(losses, rel=1e-4), stage
