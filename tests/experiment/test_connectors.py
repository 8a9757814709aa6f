"""Connectors that give fewer features than they get are trained and asked like any other."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, stage_options

from llava_lab.__main__ import main
from llava_lab.cli import fit as cli

POINTS = yaml.safe_load((REPOSITORY / "sweeps" / "connector.yaml").read_text())["axes"]["connector"]


def chosen(name: str) -> str:
    return f"--model.connector={json.dumps(POINTS[name]['model.connector'])}"


def fitted(experiment: str, shortened: list[str], folder: Path, *options: str) -> Path:
    """A run of two steps a stage."""
    path = REPOSITORY / "experiments" / f"{experiment}.yaml"
    cli.main(["fit", "-c", str(path), *shortened, *stage_options(path, folder), *options])
    (run,) = folder.glob("runs/*/*/results.json")
    return run.parent


@pytest.mark.parametrize("name", [name for name in POINTS if name.endswith(", 9")])
def test_nine_features_are_nine_tokens_in_training_and_in_answers(
    name: str, shortened: list[str], small_world: Path, tmp_path: Path
) -> None:
    run = fitted("llava15", shortened, tmp_path, chosen(name))
    found = json.loads((run / "results.json").read_text())
    assert found["cost"]["visual_tokens_mean"] == 9
    assert [stage["steps"] for stage in found["stages"]] == [2, 2]
    predicted = [json.loads(line) for line in (run / "predictions" / "questions.jsonl").open()]
    (questions,) = small_world.rglob("questions.jsonl")
    out = tmp_path / "answers.jsonl"
    arguments = ["--images", str(small_world / "images"), "--max-new-tokens", "3"]
    main(["answer", str(run), str(questions), "--out", str(out), *arguments])
    said = {str(row["question_id"]): row["text"] for row in map(json.loads, out.open())}
    assert said == {str(row["id"]): row["prediction"] for row in predicted}


def test_tiles_and_frames_are_shuffled_and_pooled(shortened: list[str], tmp_path: Path) -> None:
    trained, asked = "stages.instruct.data.init_args.views.init_args", "data.views.init_args"
    pool = json.dumps({"stride": 2, "mode": "max", "position": "after"})
    options = [chosen("pixel_shuffle, 9"), f"--{trained}.image.init_args.pool={pool}"]
    for views in (trained, asked):
        options += [f"--{views}.stride=3", f"--{views}.position=after"]
    run = fitted("llava_next_video", shortened, tmp_path, *options)
    found = json.loads((run / "results.json").read_text())
    # A feature is left of 36 of a frame, and of each tile.
    assert 0 < found["cost"]["visual_tokens_mean"] < 16


def test_what_does_not_go_together_is_one_message(
    shortened: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        fitted("llava_next", shortened, tmp_path, chosen("resampler, 9"))
    said = capsys.readouterr().err
    assert "(Resampler) gives lies in no map: set merge=flat" in said
    assert "Traceback" not in said and not list(tmp_path.glob("runs/*/*/results.json"))
