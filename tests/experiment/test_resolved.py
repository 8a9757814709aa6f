"""The resolved configuration of every experiment at every scale: nothing moves unnoticed.

Where a value is meant to change, `python tests/experiment/test_resolved.py` writes the files anew,
and the commit says why.
"""

import json
from pathlib import Path

import pytest
from conftest import REPOSITORY

from llava_lab.data.chat import get_template
from llava_lab.experiment.compose import flat
from llava_lab.experiment.experiment import Experiment

GOLDEN = REPOSITORY / "tests" / "golden" / "configurations"
SCALES = sorted((REPOSITORY / "configs" / "scale").glob("*.yaml"))
EXPERIMENTS = sorted((REPOSITORY / "experiments").glob("*.yaml"))
CASES = [
    (experiment, scale)
    for experiment in EXPERIMENTS
    for scale in SCALES
    if experiment.stem != "tiny_parts" or scale.stem == "tiny"
]


def resolved(experiment: Path, scale: Path) -> dict:
    files = [experiment] if experiment.stem == "tiny_parts" else [experiment, scale]
    config = Experiment.read(*files).config
    # Lightning's defaults are Lightning's; what we set is held.
    config = {**config, "trainer": {k: v for k, v in config["trainer"].items() if v is not None}}
    return dict(flat(json.loads(json.dumps(config))))


def golden_file(experiment: Path, scale: Path) -> Path:
    return GOLDEN / f"{experiment.stem}.{scale.stem}.json"


@pytest.mark.parametrize(
    ("experiment", "scale"), CASES, ids=[f"{e.stem}-{s.stem}" for e, s in CASES]
)
def test_no_value_moved(experiment: Path, scale: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAVA_DATA", raising=False)
    expected = json.loads(golden_file(experiment, scale).read_text())
    found = resolved(experiment, scale)
    keys = expected.keys() | found.keys()
    moved = {k: (expected.get(k), found.get(k)) for k in keys if expected.get(k) != found.get(k)}
    assert not moved


@pytest.mark.parametrize(
    ("experiment", "scale"), CASES, ids=[f"{e.stem}-{s.stem}" for e, s in CASES]
)
def test_every_stage_has_a_template_that_can_be_masked_as_it_asks(
    experiment: Path, scale: Path
) -> None:
    values = json.loads(golden_file(experiment, scale).read_text())
    ours = values["model.llm.template"]
    stages = {key.split(".")[1] for key in values if key.startswith("stages.")}
    for stage in stages:
        data = f"stages.{stage}.data."
        get_template(values.get(data + "template") or ours, values.get(data + "masking", "correct"))


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_is_a_diff_that_is_read_in_a_minute(experiment: Path) -> None:
    lines = [line for line in experiment.read_text().splitlines() if line.split("#")[0].strip()]
    if experiment.stem != "tiny_parts":  # which makes the parts of the others, from nothing
        assert 2 <= len(lines) <= 25, len(lines)


def write() -> None:
    """Write the files anew."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for experiment, scale in CASES:
        text = json.dumps(resolved(experiment, scale), indent=0, sort_keys=True)
        golden_file(experiment, scale).write_text(text + "\n")


if __name__ == "__main__":
    write()
