"""Runs are compared at equal samples and FLOPs, by their points or the lines between them."""

import json
from pathlib import Path
from typing import Any

import pytest

from llava_lab.cli.table import main
from llava_lab.report.runs import RunResults
from llava_lab.report.trajectories import Along, at_grids, plot_along, spots


def score(value: float) -> dict[str, Any]:
    return {"value": value, "ci95": [value - 0.1, value + 0.1], "n": 50}


def run(
    values: list[float],
    end: float,
    seed: int = 0,
    samples: int = 100,
    flops: float = 1e12,
    **changes: Any,
) -> RunResults:
    """Two stages of some samples each, asked after equal shares of the second one."""
    points = [
        {
            "step": number,
            **{
                key: whole * number / (len(values) + 1)
                for key, whole in (("samples", samples), ("tokens", 7 * samples), ("flops", flops))
            },
            "benchmarks": {"questions": {"accuracy": score(value), "accuracy/count": score(0.5)}},
        }
        for number, value in enumerate(values, 1)
    ]
    spent = {"samples": samples, "tokens": 7 * samples, "flops": flops}
    stages = [
        {"name": "align", **spent, "flops": 1e12},
        {
            "name": "instruct",
            **spent,
            "trajectory": {"asked": {"questions": "q"}, "points": points},
        },
    ]
    results = {
        **{"experiment": "llava15", "scale": "tiny", "seed": seed, "stages": stages},
        "benchmarks": {"questions": {"accuracy": score(end), "accuracy/count": score(0.5)}},
        "benchmark_fingerprints": {"questions": "q"},
        "cost": {"visual_tokens_mean": 36},
        **changes,
    }
    return RunResults(Path(f"{seed}.json"), results, kept={"benchmarks": {}})


def test_what_was_spent_is_that_of_all_stages() -> None:
    found = [
        (spot, scores["questions"]["accuracy"]["value"])
        for spot, scores in spots(run([0.2, 0.4, 0.5], 0.6), "samples")
    ]
    assert found == [(125, 0.2), (150, 0.4), (175, 0.5), (200, 0.6)]


def test_points_that_were_asked_other_questions_are_left_out() -> None:
    other = run([0.2], 0.6, benchmark_fingerprints={"questions": "new"})
    assert [spot for spot, _ in spots(other, "samples")] == [200]


def test_a_run_that_costs_twice_as_much_is_compared_on_the_line_between_its_points() -> None:
    one, dear = run([0.2, 0.4, 0.5], 0.6), run([0.3, 0.4, 0.5], 0.7, flops=2e12)
    grids = at_grids([("one", [one]), ("dear", [dear])], "flops")
    (grid,) = grids
    assert grid.headers == ["FLOPs", "one", "dear", "dear less one"]
    cells = [[cell.value for cell in row if not isinstance(cell, str)] for row in grid.rows]
    assert [row[0] for row in cells] == [1.5e12, 1.75e12, 2e12]
    assert [row[1]["value"] for row in cells] == pytest.approx([0.4, 0.5, 0.6])
    assert [row[2]["value"] for row in cells] == pytest.approx([0.3, 0.35, 0.4])
    assert [row[3]["value"] for row in cells] == pytest.approx([-0.1, -0.15, -0.2])
    assert cells[1][2]["low"] == pytest.approx(0.25)


def test_seeds_are_averaged_and_paired() -> None:
    one = [run([0.2], 0.4, seed=0), run([0.3], 0.5, seed=1)]
    two = [run([0.4], 0.6, seed=0), run([0.5], 0.7, seed=1)]
    along = Along([("one", one), ("two", two)], "samples")
    key = ("questions", "accuracy")
    assert along.score(0, 150, key).value == pytest.approx(0.25)
    less = along.less(1, 150, key)
    assert less is not None and less.value == pytest.approx(0.2) and less.runs == 2
    other = Along([("one", one), ("two", two[:1])], "samples")
    assert other.less(1, 150, key) is None


def test_what_cannot_be_compared_is_said() -> None:
    end = run([], 0.6)
    with pytest.raises(ValueError, match=r"none of the runs has scores on the way; .*evaluate_eve"):
        Along([("one", [end])], "samples")
    late = run([0.2], 0.6, samples=1000)
    with pytest.raises(ValueError, match=r"share no samples .*one from 150 to 200; late from 1500"):
        Along([("one", [run([0.2], 0.6)]), ("late", [late])], "samples")
    with pytest.raises(
        ValueError, match=r"--scores: 'questions/f1' is not everywhere; there are q"
    ):
        Along([("one", [run([0.2], 0.6)])], "samples", ["questions/f1"])
    old = run([0.2], 0.6)
    del old.results["stages"][0]["flops"]
    with pytest.raises(ValueError, match="stage align has no flops, as an older version wrote it"):
        Along([("one", [old])], "flops")


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    groups = [("one", [run([0.2, 0.4], 0.6)]), ("two", [run([0.3], 0.5)])]
    chosen = ["questions/accuracy", "questions/accuracy/count"]
    plot_along(groups, "samples", tmp_path / "new" / "along.png", chosen)
    assert (tmp_path / "new" / "along.png").stat().st_size > 5000


def test_the_verb_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, end in (("a", 0.6), ("b", 0.7)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(run([0.2, 0.3], end).results))
    paths = [str(tmp_path / name) for name in ("a", "b")]
    names = ["llava15, tiny (a)", "llava15, tiny (b)"]
    main([*paths, "--at", "samples", "--format", "json"])
    (grid,) = json.loads(capsys.readouterr().out)
    assert [row["samples"] for row in grid["rows"]] == pytest.approx([133.33, 166.67, 200], abs=0.1)
    assert grid["rows"][-1][f"{names[1]} less {names[0]}"]["value"] == pytest.approx(0.1)
    with pytest.raises(SystemExit):
        main([*paths, "--at", "samples", "--paper", "llava15/table2"])
    assert "--at changes nothing here: --paper prints" in capsys.readouterr().err
