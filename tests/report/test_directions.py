"""Directions: whether a difference of ours goes the published way, for better or worse."""

from pathlib import Path

import pytest
from test_matching import golden
from test_placed import group_of, with_connector

from llava_lab.report.paper_table import paper_grids
from llava_lab.report.placed import Group
from llava_lab.report.published import Column, Published, Row, published

UP, DOWN = (0.50, 0.51, 0.52), (0.40, 0.41, 0.42)
NOISY = (0.30, 0.50, 0.60)


def pair(folder: Path, linear: tuple[float, ...], mlp: tuple[float, ...]) -> list[Group]:
    """Runs in rows 2 and 3 of LLaVA-1.5's Table 2, whose MLP is better in all columns."""
    config = {**golden("llava15.tiny"), "resolution": 224}
    before = with_connector(config, "llava_lab.model.connector.linear.Linear")
    return [group_of(folder / "mlp", config, mlp), group_of(folder / "linear", before, linear)]


@pytest.mark.parametrize(
    ("linear", "mlp", "shown", "way"),
    [
        (DOWN, UP, "+10.0 ± 2.0*", "same"),
        (UP, DOWN, "-10.0 ± 2.0*", "opposite"),
        (UP, NOISY, "-4.3 ± 35.5", "open"),
    ],
)
def test_ours_goes_the_published_way_or_the_other_or_is_open(
    linear: tuple[float, ...], mlp: tuple[float, ...], shown: str, way: str, tmp_path: Path
) -> None:
    _, grid = paper_grids(published("llava15/table2"), pair(tmp_path, linear, mlp))
    assert grid.headers == ["rows", "score", "seeds", "ours", "GQA", "MME", "MM-Vet"]
    first = grid.texts[0]
    assert first[:3] == ["2 + format prompt → 3 + MLP connector", "scenes/accuracy", "3"]
    assert first[3] == shown
    assert first[4:] == [f"+0.5, {way}", f"+31.4, {way}", f"+1.5, {way}"]
    assert grid.rows[0][4].value == {"difference": 0.5, "direction": way}


def test_less_is_better_of_hours_and_of_hallucinations(tmp_path: Path) -> None:
    columns = (
        Column("hours", "hours", "lower"),
        Column("said", "%", "higher"),
        Column("x", "count"),
    )
    conditions = [{"model.connector": name} for name in ("Linear", "MLP")]
    values = [{"hours": 5.0, "said": 1.0, "x": 1}, {"hours": 3.0, "said": 1.0, "x": 2}]
    rows = tuple(
        Row(f"row {n}", values[n], everywhere=conditions[n], paper=conditions[n]) for n in range(2)
    )
    table = Published("t/1", "T", "results", "s", "retrieved", "primary", columns, (), (), rows)
    found = []
    for group, share in zip(pair(tmp_path, DOWN, UP), (0.2, 0.4), strict=True):
        for each in group[1]:
            ends = [share - 0.01, share + 0.01]
            score = {"value": share, "ci95": ends, "n": 100}
            scores = ("hallucination", "yes_ratio", "unmatched", "unread")
            each.results["benchmarks"] = {"presence": dict.fromkeys(scores, score)}
        found.append(group)
    chosen = [f"presence/{name}" for name in scores]
    _, grid = paper_grids(table, found, chosen)
    # Less is said that is not there, and fewer hours are taken: both are better.
    assert grid.texts[0][3:] == ["-20.0 ± 2.0*", "-2, same", "+0", "+1"]
    assert grid.texts[1][3:] == ["-20.0 ± 2.0*", "-2", "+0", "+1"]
    # So it is of answers that no rule reads.
    assert [line[4] for line in grid.texts[2:]] == ["-2, same", "-2, same"]


def test_all_rows_can_be_compared_with_one(tmp_path: Path) -> None:
    groups = [*pair(tmp_path, DOWN, UP), group_of(tmp_path / "whole", golden("llava15.tiny"), UP)]
    table = published("llava15/table2")
    _, near = paper_grids(table, groups)
    _, one = paper_grids(table, groups, against="2 + format prompt")
    assert [line[0] for line in near.texts[::2]] == [
        "2 + format prompt → 3 + MLP connector",
        "3 + MLP connector → 8 + ShareGPT",
    ]
    assert [line[0] for line in one.texts[::2]] == [
        "2 + format prompt → 3 + MLP connector",
        "2 + format prompt → 8 + ShareGPT",
    ]
    with pytest.raises(ValueError, match=r"no run is in row '9'.*'8 \+ ShareGPT' have"):
        paper_grids(table, groups, against="9")


def test_runs_without_a_seed_in_common_have_no_difference(tmp_path: Path) -> None:
    groups = pair(tmp_path, DOWN[:1], UP[:1])
    groups[1][1][0].results["seed"] = 7
    _, grid = paper_grids(published("llava15/table2"), groups)
    assert grid.texts[0][2:5] == ["0", "–", "+0.5"]
