"""diff, and the other verbs whose output scripts read."""

import json
from pathlib import Path

import pytest
from conftest import REPOSITORY
from test_anyres import GOLDEN

from llava_lab.__main__ import main

EXPERIMENTS = REPOSITORY / "experiments"


def printed(capsys: pytest.CaptureFixture, *arguments: str) -> list[dict]:
    main([*arguments, "--format=json"])
    return json.loads(capsys.readouterr().out)


def differing(capsys: pytest.CaptureFixture, *arguments: str) -> dict[str, tuple]:
    (grid,) = printed(capsys, "diff", *arguments)
    return {row[0]: tuple(row[1:]) for row in (list(row.values()) for row in grid["rows"])}


def test_two_versions_differ_in_what_the_paper_changed(capsys: pytest.CaptureFixture) -> None:
    left, right = (f"{EXPERIMENTS}/{name}.yaml" for name in ("llava_next", "llava_next_llama3_8b"))
    paper = str(REPOSITORY / "configs" / "scale" / "paper.yaml")
    found = differing(capsys, left, right, "-c", paper)
    assert found["stages.instruct.data.max_length"] == (4096, 6144)
    assert found["stages.instruct.data.masking"] == ("correct", "released")
    others = {key for key in found if not key.startswith("model.llm.")}
    others -= {"stages.instruct.data.max_length", "stages.instruct.data.masking"}
    assert others == {"experiment", "stages.align.trainer.gradient_clip_val"}


def test_points_of_a_sweep_and_runs_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    sweep = REPOSITORY / "sweeps" / "grid_size.yaml"
    found = differing(capsys, f"{sweep}:2x2", f"{sweep}:3x3")
    assert found == {
        "stages.instruct.data.views.grids": ("2x2", "(1x1)...(3x3)"),
        "data.views.grids": ("2x2", "(1x1)...(3x3)"),
    }
    with pytest.raises(SystemExit, match="there is no point '9x9'; its points are '1x1', '2x2'"):
        main(["diff", f"{sweep}:9x9", f"{sweep}:2x2"])
    run = tmp_path / "run"
    run.mkdir()
    experiment = f"{EXPERIMENTS}/llava15.yaml"
    main(["fit", "-c", experiment, "--print_config", "--model.connector.depth=3"])
    (run / "config.yaml").write_text(capsys.readouterr().out)
    assert differing(capsys, str(run), experiment) == {"model.connector.depth": (3, 2)}
    main(["diff", experiment, experiment])
    assert "They are the same experiment." in capsys.readouterr().out


PAPER = ("-c", str(REPOSITORY / "configs" / "scale" / "paper.yaml"))


def test_a_plan_is_of_the_picture_that_is_named(capsys: pytest.CaptureFixture) -> None:
    files = ("-c", f"{EXPERIMENTS}/llava_next.yaml", *PAPER)
    grids = printed(capsys, "plan", *files, "--image-size=333x500")
    (instruct,) = (g for g in grids if g["title"].startswith("Stage instruct"))
    assert "333x500 pixels" in instruct["title"]
    rows = {what: value for what, value, *_ in (row.values() for row in instruct["rows"])}
    (expected,) = (tokens for size, _, _, tokens in GOLDEN if size == (333, 500))
    assert rows["visual tokens"] == expected


def test_a_plan_of_too_many_frames_says_how_many_fit(capsys: pytest.CaptureFixture) -> None:
    files = ("-c", f"{EXPERIMENTS}/llava_next_video.yaml", *PAPER)
    message = r"stages.instruct: 99 frames are 14,257 .* At most 26 fit"
    with pytest.raises(SystemExit, match=message):
        main(["plan", *files, "--frames=99"])
    titles = [grid["title"] for grid in printed(capsys, "plan", *files, "--frames=8")]
    assert any(each.startswith("Stage instruct; a row is 8 frames of 640x480") for each in titles)


def test_a_dry_run_of_a_sweep_is_read_by_scripts(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "some.yaml"
    experiment = f"{EXPERIMENTS}/llava15.yaml"
    path.write_text(f"{{experiment: {experiment}, axes: {{model.connector.depth: [0, x]}}}}")
    options = [str(path), f"--runs={tmp_path / 'runs'}", "--dry-run", "--tiny_world=null"]
    points = printed(capsys, "sweep", *options)
    assert [point["labels"] for point in points] == [
        {"model.connector.depth": "0"},
        {"model.connector.depth": "x"},
    ]
    assert "depth is 0" in points[0]["error"] and "x" in points[1]["error"]
    assert [point["results"] for point in points] == [None, None]
