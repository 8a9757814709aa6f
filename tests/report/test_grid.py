"""Grids: whole names at 80 columns, and numbers for scripts."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_table import results, score, write

from llava_lab.report.grid import Figure, Grid
from llava_lab.report.paper_table import paper_grids
from llava_lab.report.published import every
from llava_lab.report.runs import read
from llava_lab.report.table import results_tables, score_grid

SCORES = (
    *("accuracy", "accuracy/color", "accuracy/color/large", "accuracy/reading/small"),
    *("accuracy/relation", "hallucination"),
)
STAGES = ("align", "instruct", "preferences")


def drawn(grid: Grid, width: int = 80) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(grid)
    return console.export_text().splitlines()


def like_a_fit(seed: int = 0, accuracy: float = 0.829) -> dict[str, Any]:
    """Results with the names and sizes that the tiny scale's benchmarks have."""
    asked = {name: score(accuracy, 1061) for name in SCORES}
    asked |= {f"blind_{name}": score(0.242, 1061) for name in SCORES}
    stage = results()["stages"][0] | {"steps": 1250, "tokens": 12345678, "seconds": 1061.25}
    stages = [{**stage, "name": name} for name in STAGES]
    return results(seed, stages=stages, benchmarks={"questions": asked, "held_out": asked})


def whole(grid: Grid) -> None:
    """At 80 columns each name is in a line of its row, and so is each figure's value."""
    lines = drawn(grid)
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    for row in grid.rows:
        names = [str(cell) for cell in row[: grid.names]]
        mine = [line for line in lines if line.split()[: grid.names] == " ".join(names).split()]
        figures = [cell for cell in row if isinstance(cell, Figure)]
        assert mine and all(any(f"{f}"[:4] in line for line in mine) for f in figures), row


@pytest.mark.parametrize("place", range(3), ids=["scores", "stages", "cost"])
def test_tables_of_a_run_are_whole_at_80_columns(place: int, tmp_path: Path) -> None:
    grid = results_tables(read(write(tmp_path / "run", like_a_fit())))[place]
    if grid.title == "Cost":  # names of several words
        assert any("peak memory, bytes" in line for line in drawn(grid))
        return
    whole(grid)


def test_a_runs_scores_are_one_table_at_80_columns(tmp_path: Path) -> None:
    run = read(write(tmp_path / "run", like_a_fit()))
    lines = drawn(results_tables(run)[0])
    assert sum(line.startswith("benchmark") for line in lines) == 1
    assert any("accuracy/reading/small" in line and "82.9±5.0" in line for line in lines)
    wide = drawn(results_tables(run)[0], 140)
    assert any("82.9 [77.9, 87.9]" in line for line in wide)


def test_seeds_are_whole_at_80_columns(tmp_path: Path) -> None:
    runs = [read(write(tmp_path / f"{i}", like_a_fit(i, 0.8 + i / 20))) for i in range(3)]
    whole(score_grid(runs))


@pytest.mark.parametrize("file", ["llava15", "llava_next_video", "vllm"])
def test_published_tables_lose_nothing_at_80_columns(file: str) -> None:
    for table in every():
        if table.id.startswith(f"{file}/"):
            (grid,) = paper_grids(table)
            lines = drawn(grid)
            assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
            for line in grid.texts:
                assert any(shown.startswith(line[0][:40]) for shown in lines), line


def test_columns_that_do_not_fit_go_below_with_the_names_again() -> None:
    scores = [f"accuracy/kind_{number}" for number in range(9)]
    row = ["2x2", *(Figure("82.9 ± 2.3", number, "82.9±2.3") for number in range(9))]
    lines = drawn(Grid("Wide", ["grid", *scores], [row]))
    assert sum(line.startswith("2x2") for line in lines) == 3
    heads = " ".join(line for line in lines if line.startswith("grid"))
    assert all(name in heads for name in scores)


def test_a_name_wider_than_the_terminal_is_broken_not_cut() -> None:
    name = "abcdefghij" * 12
    lines = drawn(Grid("Long", ["name", "value"], [[name, Figure("82.9", 82.9)]]), 60)
    assert max(map(len, lines)) <= 60
    assert "".join(line.split()[0] for line in lines[3:] if line.strip()) == name


def test_long_values_stand_side_by_side() -> None:
    path = "llava_lab.model.connector.c_abstractor.CAbstractor"
    cells = [Figure(path, path), Figure(path.replace("c_abs", "d_abs"), path)]
    lines = drawn(Grid("Differences", ["option", "a", "b"], [["model.connector", *cells]]))
    assert max(map(len, lines)) <= 80
    (head,) = (line for line in lines if line.startswith("option"))
    second = head.index(" b")
    assert "".join(line[second:].strip() for line in lines[3:]) == str(cells[1])


def test_texts_are_broken_between_words_and_begin_at_the_left() -> None:
    formula = "states + activations; attention scores and logits apart"
    lines = drawn(Grid("Plan", ["what", "value", "formula"], [["GiB", "0.5", formula]]), 40)
    place = next(line.index("states") for line in lines if "states" in line)
    broken = [line[place:].rstrip() for line in lines if line.startswith(("GiB", " " * place))]
    assert len(broken) > 1 and " ".join(broken) == formula
