"""A published table with our runs in its rows: columns of their own, notes on what stands in."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from test_matching import golden
from test_placed import gqa, group_of, with_connector
from test_table import score

from llava_lab.cli.table import main
from llava_lab.core.shipped import shipped
from llava_lab.core.yaml_file import read_mapping
from llava_lab.experiment.sweep import Sweep
from llava_lab.report.paper_table import compute_grids, paper_grids, rows_grid
from llava_lab.report.published import published
from llava_lab.report.sweep import published_with


def run(folder: Path, config: dict[str, Any], *accuracies: float) -> str:
    group_of(folder, config, accuracies or (0.6,))
    return str(folder)


def lines_of(said: str) -> dict[str, dict[str, str]]:
    return {line["row"]: line for line in csv.DictReader(io.StringIO(said))}


def test_tiny_runs_stand_in_their_rows_of_llava15s_table_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(tmp_path / "a", golden("llava10.tiny"), 0.5)
    last = run(tmp_path / "b", golden("llava15.tiny"), 0.6, 0.7, 0.8)
    main([first, last, "--paper", "llava15/table2", "--format", "csv"])
    table, _, directions = capsys.readouterr().out.partition("\n\n")
    lines = lines_of(table)
    ours = {row: line["tiny: scenes/accuracy"] for row, line in lines.items()}
    assert {row for row, value in ours.items() if value} == {"0 LLaVA", "8 + ShareGPT"}
    assert float(ours["0 LLaVA"]) == 0.5 and float(ours["8 + ShareGPT"]) == pytest.approx(0.7)
    assert lines["8 + ShareGPT"]["tiny: seeds"] == "3"
    assert float(lines["8 + ShareGPT"]["tiny: scenes/accuracy, low"]) == pytest.approx(
        0.4315, abs=1e-4
    )
    assert lines["8 + ShareGPT"]["GQA"] == "62.0" and "0 LLaVA → 8 + ShareGPT" in directions


def test_tiny_runs_stand_in_their_rows_of_the_ablations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = run(tmp_path / "tiles", golden("llava_next.tiny"))
    main(["--paper", "llava_next_ablations/grids", tiles, "--format", "csv"])
    lines = lines_of(capsys.readouterr().out)
    there = {row for row, line in lines.items() if line["tiny: scenes/accuracy"]}
    assert there == {"2x2, (4+1) x 729"}
    pooled = run(tmp_path / "pooled", golden("llava_next_image_on_video.tiny"))
    config = golden("llava_next_image_on_video.tiny")
    config["data"]["views"] |= {"frames": 4, "stride": 1}
    whole = run(tmp_path / "whole", config)
    main(["--paper", "llava_next_video/representation", pooled, whole, "--format", "csv"])
    lines = lines_of(capsys.readouterr().out.partition("\n\n")[0])
    there = {row for row, line in lines.items() if line["tiny: scenes/accuracy"]}
    assert there == {"12x12 x 16 frames", "24x24 x 4 frames"}


def test_what_stands_in_for_a_row_is_said_where_a_run_is_in_it(tmp_path: Path) -> None:
    config = {**golden("llava15.tiny"), "resolution": 224}
    group = group_of(tmp_path / "mine", config)
    (grid,) = paper_grids(published("llava15/table2"), [group])
    names = [line[0] for line in grid.texts]
    assert "3 + MLP connector [1]" in names and "2 + format prompt" in names
    assert any(note.startswith("[1] Ours: on the scale's whole mix") for note in grid.notes)
    assert "–: not in the source, or no run of ours." in grid.notes
    (grid,) = paper_grids(published("llava15/table2"))
    assert not any("[1]" in text for text in [*grid.notes, *names[:0]])


def test_notes_of_a_row_are_numbered(tmp_path: Path) -> None:
    (grid,) = paper_grids(published("llava_next_stronger_llms/wilder"))
    assert grid.texts[-1][0] == "Claude-3-Opus [1]" and grid.rows[-1][0].value == "Claude-3-Opus"
    assert any(note.startswith("[1] The blog's row seems to be shifted") for note in grid.notes)


def test_a_difference_to_a_published_number_is_of_the_same_size_and_benchmark_alone(
    tmp_path: Path,
) -> None:
    table = published("llava15/table3")
    config = gqa("data/llava_gqa_testdev_balanced.jsonl", "ExactMatch")
    (grid,) = paper_grids(table, [group_of(tmp_path / "a", config, (0.63, 0.65))])
    row = next(line for line in grid.texts if line[0] == "LLaVA-1.5-7B")
    cells = dict(zip(grid.headers, row, strict=True))
    # The mean of 63 and 65 less GQA's 62.0; t(1) = 12.706 times 1 point, less in Wilson's form.
    assert cells["paper: scenes/accuracy"] == "64.0 ± 12.3"
    assert cells["paper: scenes/accuracy less GQA"] == "+2.0 ± 12.3"
    assert cells["GQA"] == "62.0" and cells["paper: seeds"] == "2"
    for name, other in (("b", {**config, "scale": "tiny"}), ("c", golden("llava15.paper"))):
        (grid,) = paper_grids(table, [group_of(tmp_path / name, other)])
        assert any("scenes/accuracy" in head for head in grid.headers)
        assert not any(" less " in head for head in grid.headers)


def described(judge: str, accuracy: float, folder: Path) -> dict[str, str]:
    """The row of a run of LLaVA-NeXT-Video that a judge gave a share of VDD's five points."""
    config = golden("llava_next_video.paper")
    vdd = read_mapping(shipped("configs/benchmarks/vdd.yaml"))["data"]["benchmarks+"][0]
    config["data"]["benchmarks"] = [vdd]
    scores = {"vdd": {"detail": score(accuracy)}}
    group = group_of(folder, config, benchmarks=scores, judges={"vdd": {"model": judge}})
    (grid,) = paper_grids(published("llava_next_video/training_recipe"), [group])
    line = next(line for line in grid.texts if line[0] == "Mixed, batches mixed")
    return {**dict(zip(grid.headers, line, strict=True)), "notes": " ".join(grid.notes)}


def test_a_score_of_five_is_compared_as_a_share_of_five(tmp_path: Path) -> None:
    row = described("gpt-3.5-turbo-0613", 0.7, tmp_path / "a")
    # 3.32 of 5 is 66.4 %.
    assert row["VDD"] == "3.32" and row["paper: vdd/detail"].startswith("70.0 ±")
    assert row["paper: vdd/detail less VDD"].startswith("+3.6 ±")


def test_scores_of_another_judge_are_not_compared(tmp_path: Path) -> None:
    row = described("a-model-of-ours", 0.7, tmp_path / "a")
    assert row["paper: vdd/detail"].startswith("70.0 ±")
    assert not any(" less " in head for head in row)
    assert (
        "vdd/detail: judged by a-model-of-ours, VDD by gpt-3.5-turbo-0613; scores of"
        in (row["notes"])
    )


def test_scores_that_are_asked_for_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = run(tmp_path / "mine", golden("llava15.tiny"))
    options = ["--paper", "llava15/table2", "--format", "csv", "--scores"]
    main([mine, *options, "scenes/accuracy/count"])
    said = capsys.readouterr().out
    assert "tiny: scenes/accuracy/count" in said and "pope" not in said
    with pytest.raises(SystemExit):
        main([mine, *options, "scenes/f1"])
    assert "'scenes/f1' is in none of the runs" in capsys.readouterr().err


def test_a_sweep_shows_the_tables_that_it_names_with_its_points(tmp_path: Path) -> None:
    axes = {"connector": {"mlp": {}, "linear": {}}}
    config = golden("llava15.tiny")
    found = [
        ({"connector": "mlp"}, group_of(tmp_path / "a", config)[1]),
        ({"connector": "linear"}, group_of(tmp_path / "b", with_connector(config, "a.Linear"))[1]),
    ]
    sweep = Sweep("s", (), axes, (0,), ("llava15/table2",))
    (grid,) = published_with(sweep, Path("s.yaml"), found)
    column = grid.headers.index("tiny: scenes/accuracy")
    assert [line[0] for line in grid.texts if line[column] != "–"] == ["8 + ShareGPT"]
    assert any(note.startswith("linear is none of the rows.") for note in grid.notes)
    sweep = Sweep("s", (), axes, (0,), ("llava15/zoo",))
    with pytest.raises(ValueError, match=r"^s\.yaml: published: no published table .*model_zoo"):
        list(published_with(sweep, Path("s.yaml"), found))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--paper", "llava15/table2", "--plot", "x.png"], "--plot changes nothing here: "),
        (["RUN", "--paper"], "--paper: which table?"),
        (["RUN", "--paper", "llava15/table2", "--against", "8 + ShareGPT"], "only one row of"),
        (["RUN", "--scores", "scenes/f1"], "it is of a --plot, of --paper or of --at"),
        ([], "name runs, a sweep file, or a published table"),
    ],
)
def test_what_does_not_go_together_is_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = run(tmp_path / "mine", golden("llava15.tiny"))
    with pytest.raises(SystemExit) as stopped:
        main([mine if option == "RUN" else option for option in options])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_runs_end_with_the_published_rows_that_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = group_of(tmp_path / "mine", golden("llava15.tiny"))
    grid = rows_grid(group)
    assert grid.title == "mine: published rows of the same configuration"
    assert ["llava15/table2", "8 + ShareGPT"] in [line[:2] for line in grid.texts]
    assert all(isinstance(line[2].value["GQA"], float) for line in grid.rows[:2])
    strange = with_connector(golden("llava15.tiny"), "a.Strange")
    nothing = rows_grid(group_of(tmp_path / "strange", strange))
    assert nothing.rows == [] and nothing.notes == [
        "No row of a published table is this configuration."
    ]
    main([str(tmp_path / "mine"), "--format", "csv"])
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    mine = [line for line in lines if line["unit"] == "fraction"]
    assert len(mine) == 3 and mine[0]["value"] == "0.6" and not mine[0]["table"]
    theirs = {(line["table"], line["row"], line["benchmark"]): line for line in lines[3:]}
    gqa = theirs["llava15/table2", "8 + ShareGPT", "GQA"]
    assert (gqa["value"], gqa["unit"], gqa["scale"]) == ("62.0", "%", "published")
    assert theirs["llava15/table2", "8 + ShareGPT", "MME"]["unit"] == "points"


def test_compute_beside_a_plan_is_that_of_its_experiment() -> None:
    (grid,) = compute_grids("llava15")
    assert [line[0] for line in grid.texts] == [
        "LLaVA-1.5-7B, first stage, 558K",
        "LLaVA-1.5-13B, first stage, 558K",
        "LLaVA-1.5-7B, second stage, 665K",
        "LLaVA-1.5-13B, second stage, 665K",
    ]
    assert list(compute_grids("tiny_parts")) == []


def test_runs_that_verdicts_are_made_from_are_given_by_their_folder(
    capsys: pytest.CaptureFixture,
) -> None:
    """Those alone that are rows of the table; there is no note on the others."""
    main(["--paper", "llava10/table4", str(REPOSITORY / "results"), "--format=csv"])
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if line.startswith("Conversation only"))
    assert row.startswith("Conversation only,76.5,59.8,84.9,73.8,0.28")
    assert "is none of the rows" not in said


def test_runs_of_an_experiment_called_questions_are_no_folder_of_results(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run(tmp_path / "questions" / "tiny", golden("llava15.tiny"))
    main(["--paper", "llava15/table2", str(tmp_path), "--format=csv"])
    row = next(e for e in capsys.readouterr().out.splitlines() if e.startswith("8 + ShareGPT"))
    assert ",0.6," in row
