"""Rows: tables of runs whose questions are known, and what their legends say of the intervals."""

from pathlib import Path

import numpy as np
import pytest
from test_points import keep
from test_table import results, write

from llava_lab.experiment.sweep import Sweep
from llava_lab.report.rows import legend, score_rows
from llava_lab.report.runs import RunResults, read
from llava_lab.report.sweep import difference_grids
from llava_lab.report.table import score_grid, table


def says(right: float, count: int = 200, seed: int = 0) -> list[str]:
    """Answers of which about a share is right; hard questions are so for every seed."""
    hard = np.random.default_rng(99).random(count)
    own = np.random.default_rng(seed).random(count)
    return ["yes" if 0.7 * h + 0.3 * o < right else "no" for h, o in zip(hard, own, strict=True)]


def seeds(folder: Path, right: float, worlds: bool = False) -> list[RunResults]:
    """Three seeds of one point, with a blind pass."""
    return [
        keep(
            folder / f"{seed}",
            says(right, seed=seed),
            seed=seed,
            world=f"w{seed}" if worlds else "w",
            blind_=says(right - 0.3, seed=seed + 50),
        )
        for seed in range(3)
    ]


def test_a_runs_interval_is_that_of_its_questions_pictures(tmp_path: Path) -> None:
    run = keep(tmp_path / "a", ["yes", "yes", "no", "no"] * 25)
    row = score_rows([run])[0]
    # Both questions of each of 50 pictures agree: as of 50 questions, not of 100.
    assert (row.value.value, row.value.questions, row.value.clusters) == (0.5, 100, 50)
    assert row.value.se == pytest.approx((0.25 / 49) ** 0.5)
    grid = score_grid([run])
    assert grid.about["interval"] == "questions" and "about one picture" in str(grid.legend)


def test_the_margin_over_blind_is_paired_by_question(tmp_path: Path) -> None:
    said, blind = ["yes"] * 60 + ["no"] * 40, ["yes"] * 50 + ["no"] * 50
    row = score_rows([keep(tmp_path / "a", said, blind_=blind)])[0]
    assert row.margin is not None and row.blind is not None
    assert row.margin.value == pytest.approx(0.1) and row.margin.flipped == 10
    # Five pictures of 50 moved, by one each; independent answers would give 0.14 or so.
    assert row.margin.se == pytest.approx((50 / 49 * (5 - 50 * 0.1**2)) ** 0.5 / 50)
    assert row.margin.se < 0.5 * (row.value.se**2 + row.blind.se**2) ** 0.5


def test_seeds_and_questions_are_both_in_the_interval(tmp_path: Path) -> None:
    runs = seeds(tmp_path, 0.6)
    row = score_rows(runs)[0]
    values = [run.results["benchmarks"]["scenes"]["accuracy"]["value"] for run in runs]
    spread = np.std(values, ddof=1) / 3**0.5
    assert row.value.value == pytest.approx(np.mean(values)) and row.value.se > spread
    grid = score_grid(runs)
    assert grid.about["interval"] == "seeds and questions"
    assert "over seeds and questions" in str(grid.legend)


def test_seeds_with_a_world_each_say_so(tmp_path: Path) -> None:
    runs = seeds(tmp_path, 0.6, worlds=True)
    row = score_rows(runs)[0]
    values = [run.results["benchmarks"]["scenes"]["accuracy"]["value"] for run in runs]
    assert row.value.df == 2 and row.value.se == pytest.approx(np.std(values, ddof=1) / 3**0.5)
    assert "each of which answered questions of its own" in legend([runs])


def test_a_table_of_runs_of_both_kinds_says_both(tmp_path: Path) -> None:
    old = [read(write(tmp_path / f"old{seed}", results(seed))) for seed in range(2)]
    said = legend([seeds(tmp_path / "new", 0.6), old])
    assert "over seeds and questions" in said and "a run has no points.json" in said


def test_differences_of_a_sweep_are_paired_by_seed_and_question(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("experiment: s.yaml\naxes: {grid: {a: {}, b: {}}}")
    found = [
        ({"grid": name}, seeds(tmp_path / name, right)) for name, right in (("a", 0.5), ("b", 0.6))
    ]
    (grid,) = difference_grids(Sweep.read(file), found, "a")
    line = dict(zip(grid.headers, grid.rows[0], strict=True))
    shares = [row.value.value for row in (score_rows(runs)[0] for _, runs in found)]
    assert line["accuracy"].value["value"] == pytest.approx(shares[1] - shares[0])
    assert "questions flipped" in line["accuracy"].text
    assert 0 < line["accuracy"].value["flipped"] < 200
    # Twice as tight as of other questions: the hard ones are hard for both points.
    alone = [score_rows(runs)[0].value for _, runs in found]
    width = line["accuracy"].value["high"] - line["accuracy"].value["low"]
    assert width < 2 * 1.96 * (alone[0].se ** 2 + alone[1].se ** 2) ** 0.5
    assert "for all 4 comparisons" in str(grid.legend)


def test_baselines_that_were_measured_have_a_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = keep(
        tmp_path / "a",
        ["yes", "no"] * 10,
        blind_=["no"] * 20,
        text_only_=["no"] * 19 + ["yes"],
        most_frequent_=["yes"] * 20,
    )
    grid = score_grid([run])
    assert grid.headers[3:] == ["value", "blind", "margin", "text only", "most frequent"]
    assert grid.texts[0][6].startswith("5.0 [") and grid.texts[0][7] == "100.0"
    assert all(f"{name}: " in str(grid.legend) for name in ("Text only", "Most frequent"))
    table([run.path], "csv")
    head, first = capsys.readouterr().out.splitlines()[:2]
    cells = dict(zip(head.split(","), first.split(","), strict=True))
    assert cells["text_only"] == "0.05" and cells["most_frequent"] == "1.0"
