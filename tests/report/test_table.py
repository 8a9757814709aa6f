import csv
import hashlib
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from llava_lab.cli.table import main
from llava_lab.evaluate.interval import Estimate, quantile
from llava_lab.experiment.sweep import Sweep
from llava_lab.report.estimate import Difference
from llava_lab.report.formats import FORMATS, show, to_csv
from llava_lab.report.grid import Figure, Grid
from llava_lab.report.plot import _apart, plot
from llava_lab.report.rows import bracketed, half, plus_minus, score_rows, signed_figures
from llava_lab.report.runs import find, read
from llava_lab.report.sweep import difference_grids, held_out_grids, sweep_grids
from llava_lab.report.table import (
    count,
    grouped,
    results_tables,
    table,
)


def score(value: float, n: int = 100) -> dict[str, Any]:
    return {"value": value, "ci95": [value - 0.05, value + 0.05], "n": n}


def results(seed: int = 0, accuracy: float = 0.6, **changes: Any) -> dict[str, Any]:
    stage = {
        **{"name": "align", "fingerprint": "ab", "reused": True, "steps": 250, "samples": 4000},
        **{"tokens": 1234567, "seconds": 61.25, "loss_first": 4.5, "loss_last": 1.25},
    }
    return {
        **{"experiment": "llava15", "scale": "tiny", "seed": seed, "git": "abc", "versions": {}},
        "config_sha256": f"{seed}",
        "stages": [stage],
        "benchmarks": {
            "scenes": {
                "accuracy": score(accuracy),
                "blind_accuracy": score(0.3),
                "accuracy/count": score(0.5, 40),
                "blind_accuracy/count": score(0.4, 40),
            },
            "pope": {"f1": score(0.8)},
        },
        "cost": {
            **{"parameters": 3000000, "trainable_parameters": 2000000, "visual_tokens_mean": 64.0},
            **{"train_flops": 1.5e15, "seconds": 100.0, "peak_memory_bytes": None},
        },
        **changes,
    }


def write(folder: Path, content: dict[str, Any], config: str = "") -> Path:
    folder.mkdir(parents=True)
    if config:
        (folder / "config.yaml").write_text(config)
        content["config_sha256"] = hashlib.sha256(config.encode()).hexdigest()
    path = folder / "results.json"
    path.write_text(json.dumps(content))
    return path


def alone(folder: Path, content: dict[str, Any] | None = None) -> Any:
    return read(write(folder, results() if content is None else content))


def test_rows_of_a_run(tmp_path: Path) -> None:
    rows = score_rows([alone(tmp_path / "a")])
    assert [(row.benchmark, row.score, row.n) for row in rows] == [
        ("scenes", "accuracy", 100),
        ("scenes", "accuracy/count", 40),
        ("pope", "f1", 100),
    ]
    assert (rows[0].value.value, *rows[0].value.interval()) == (0.6, 0.6 - 0.05, 0.6 + 0.05)
    assert rows[0].blind is not None and rows[0].blind.interval() == (0.3 - 0.05, 0.3 + 0.05)
    assert rows[0].margin is not None
    assert rows[0].margin.value == pytest.approx(0.3)
    assert rows[0].margin.low == pytest.approx(0.3 - 0.05 * 2**0.5)
    assert rows[2].blind is None
    assert rows[2].margin is None


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.7062), (4, 2.7764), (9, 2.2622), (10, 2.2281), (30, 2.0423)]
)
def test_t_quantiles(degrees: int, expected: float) -> None:
    assert quantile(degrees, 0.975) == pytest.approx(expected, abs=1e-4)


def test_t_quantiles_of_one_and_two_degrees_are_those_of_their_closed_forms() -> None:
    assert quantile(1, 0.975) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-9)
    assert quantile(2, 0.975) == pytest.approx(0.95 / math.sqrt(2 * 0.975 * 0.025), rel=1e-9)


def test_rows_of_seeds_without_points(tmp_path: Path) -> None:
    runs = [
        alone(tmp_path / f"{seed}", results(seed, value))
        for seed, value in enumerate([0.5, 0.6, 0.7])
    ]
    rows = score_rows(runs)
    assert (rows[0].seeds, rows[0].n) == (3, 100)
    # Mean 0.6, standard error 0.1 / sqrt(3), t = 4.3027; less than that, since no share is above 1.
    assert rows[0].value.value == pytest.approx(0.6)
    assert 0.6 - 0.24841 < rows[0].value.low < 0.4 and 0.7 < rows[0].value.high < 0.6 + 0.24841
    assert rows[0].margin is not None
    assert rows[0].margin.value == pytest.approx(0.3)
    assert rows[0].margin.high == pytest.approx(0.3 + 0.24841, abs=1e-5)
    # All seeds have it alike; 30 of 100 questions are not known any better for it.
    assert rows[0].blind is not None
    assert rows[0].blind.interval() == pytest.approx((0.219, 0.396), abs=1e-3)
    assert rows[2].margin is None


def test_seeds_must_have_answered_the_same_questions(tmp_path: Path) -> None:
    first = alone(tmp_path / "a", results(0))
    fewer = results(1)
    fewer["benchmarks"]["scenes"]["accuracy"]["n"] = 50
    without = results(2)
    del without["benchmarks"]["pope"]
    seeing = results(3)
    del seeing["benchmarks"]["scenes"]["blind_accuracy"]
    with pytest.raises(ValueError, match="scenes accuracy was measured on 100 and on 50 questions"):
        score_rows([first, alone(tmp_path / "b", fewer)])
    with pytest.raises(ValueError, match="pope f1 was measured in only one of"):
        score_rows([first, alone(tmp_path / "c", without)])
    with pytest.raises(ValueError, match="scenes blind_accuracy was measured in only one of"):
        score_rows([first, alone(tmp_path / "d", seeing)])


def test_a_blind_score_alone_is_refused(tmp_path: Path) -> None:
    broken = results()
    del broken["benchmarks"]["scenes"]["accuracy"]
    with pytest.raises(ValueError, match="blind_accuracy, but no accuracy beside it"):
        alone(tmp_path / "a", broken)


def known(low: float, high: float) -> Estimate:
    """A number with the ends of its interval, halfway between."""
    return Estimate((low + high) / 2, 0.01, 9, 1, 100, ends=(low, high))


def more(value: float, se: float, **known: Any) -> Difference:
    return Difference(value, se, 1e6, 3, 100, 100, (-1.0, 1.0), **known)


def test_a_difference_says_how_many_flipped_and_what_would_settle_it() -> None:
    found = signed_figures(
        {
            "settled": more(0.1, 0.01, flipped=37.4, seeds_to_settle=3),
            "open": more(0.012, 0.01, flipped=1, seeds_to_settle=5),
            "few questions": more(0.012, 0.01, flipped=20, seeds_to_settle=math.inf),
            "apart": more(-0.1, 0.01),
            "none": None,
        }
    )
    assert {name: figure.text for name, figure in found.items()} == {
        "settled": "+10.0 ± 2.0*, 37 questions flipped",
        "open": "+1.2 ± 2.0, 1 question flipped, 5 seeds would settle it",
        "few questions": "+1.2 ± 2.0, 20 questions flipped, no number of seeds would settle it",
        "apart": "-10.0 ± 2.0*",
        "none": "–",
    }
    assert found["settled"].short == "+10.0±2.0*"
    values = found["few questions"].value
    assert values["flipped"] == 20 and values["seeds_to_settle"] is None
    json.dumps([figure.value for figure in found.values()], allow_nan=False)


def test_a_star_knows_how_many_comparisons_a_table_makes() -> None:
    one = {0: more(0.025, 0.01)}  # p = 0.012
    assert signed_figures(one)[0].text == "+2.5 ± 2.0*"
    many = one | {n: more(0.001 * n, 0.01) for n in range(1, 5)}
    assert (
        signed_figures(many)[0].text == "+2.5 ± 2.0" and signed_figures(many)[0].value["p"] > 0.05
    )


def test_nothing_that_is_shown_as_zero_has_a_star_and_no_interval_is_shown_as_none() -> None:
    found = signed_figures({0: more(0.0003, 0.0001), 1: more(-0.0003, 0.0001)})
    assert [each.text for each in found.values()] == ["+0.0 ± 0.02"] * 2
    assert half(known(0.4999, 0.5001)) == "0.01" and half(known(0.4, 0.5)) == "5.0"


def test_formats() -> None:
    assert bracketed(known(0.583, 0.657)) == "62.0 [58.3, 65.7]"
    assert plus_minus(known(0.6, 0.64)) == "62.0 ± 2.0"
    assert bracketed(None) == plus_minus(None) == count(None) == "–"
    assert [count(1234567), count(61.25), count(1.5e15)] == ["1,234,567", "61.2", "1.5e+15"]


def test_narrow_terminals_break_headings_and_names_but_no_number() -> None:
    figure = Figure("60.0 [55.0, 65.0]", 0.6)
    rows = [["a long name of a benchmark", figure, "1234.5"]]
    grid = Grid("Title", ["name", "value", "a long name of a model"], rows)
    console = Console(width=50, file=io.StringIO(), record=True)
    console.print(grid)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 50
    assert any("60.0 [55.0, 65.0]" in line for line in lines)
    assert any("1234.5" in line for line in lines)


def test_find(tmp_path: Path) -> None:
    one = write(tmp_path / "llava15" / "one", results(0))
    two = write(tmp_path / "llava15" / "two", results(1))
    assert find([tmp_path]) == find([tmp_path / "llava15"]) == [one, two]
    assert find([one, two.parent, tmp_path]) == [one, two]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no results\.json in or below"):
        find([tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find([tmp_path / "nowhere"])


def test_read_names_what_is_missing(tmp_path: Path) -> None:
    headless = results()
    del headless["seed"]
    with pytest.raises(ValueError, match=r"a.results\.json lacks seed"):
        read(write(tmp_path / "a", headless))
    bare = results()
    bare["benchmarks"]["pope"]["f1"] = {"value": 1.0, "n": 3}
    with pytest.raises(ValueError, match="benchmarks, pope, f1 lacks ci95"):
        read(write(tmp_path / "b", bare))
    path = write(tmp_path / "c", {})
    path.write_text('{"experiment": \n oops}')
    with pytest.raises(ValueError, match=r"not JSON .*line 2"):
        read(path)


def test_only_seeds_of_one_recipe_are_grouped(tmp_path: Path) -> None:
    def run(name: str, seed: int, config: str = "", **changes: Any) -> Any:
        return read(write(tmp_path / name, results(seed, **changes), config))

    seeds = [
        run("a", 0, "seed_everything: 0\ndepth: 2"),
        run("b", 1, "seed_everything: 1\ndepth: 2"),
    ]
    assert grouped(seeds) == [seeds]
    deeper = run("c", 2, "seed_everything: 2\ndepth: 3")
    assert grouped([*seeds, deeper]) == [seeds, [deeper]]
    again = run("d", 1, "seed_everything: 1\ndepth: 2")
    assert grouped([*seeds, again]) == [[seeds[0]], [seeds[1]], [again]]
    # Files without a configuration beside them: sizes and steps must do.
    alone = [run("e", 0), run("f", 1)]
    larger = run("g", 2, cost={**results()["cost"], "parameters": 5})
    small = run("h", 3, scale="small")
    assert grouped([*alone, larger, small]) == [alone, [larger], [small]]


def test_one_run_as_markdown(tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path / "run", results())
    table([path], "md")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"### llava15, tiny scale, seed 0 ({path})"
    assert (
        "| scenes | accuracy | 100 | 60.0 [55.0, 65.0] | 30.0 [25.0, 35.0] | 30.0 [22.9, 37.1] |"
        in lines
    )
    assert "| pope | f1 | 100 | 80.0 [75.0, 85.0] | – | – |" in lines
    assert "| align | yes | 250 | 4,000 | 1,234,567 | 61.2 | 4.500 → 1.250 |" in lines
    assert "| peak memory, bytes | – |" in lines
    assert any("over questions as the results state them" in line for line in lines)


def test_seeds_as_markdown(tmp_path: Path, capsys: Any) -> None:
    for seed, value in enumerate([0.5, 0.6, 0.7]):
        write(tmp_path / "llava15" / f"{seed}", results(seed, value))
    table([tmp_path / "llava15"], "md")
    out = capsys.readouterr().out
    assert "### llava15, tiny scale, 3 seeds (0, 1, 2)" in out
    assert "| scenes | accuracy | 100 | 60.0 ± 22.2 | 30.0 ± 8.8 | 30.0 ± 24.8 |" in out
    assert "over seeds alone where a run has no points.json" in out
    assert "Stages" not in out


def test_runs_that_are_not_averaged_say_so(tmp_path: Path, capsys: Any) -> None:
    for name in "ab":
        write(tmp_path / "runs" / name, results(0))
    table([tmp_path / "runs"], "md")
    out = capsys.readouterr().out
    assert out.count("Not averaged with the other runs of llava15") == 2
    assert "seeds (" not in out


def test_runs_of_two_versions_are_not_averaged_and_say_so(tmp_path: Path, capsys: Any) -> None:
    for seed, version in enumerate(["0.7.0", "0.8.0"]):
        made = results(seed, versions={"llava_lab": version, "torch": "2.14.1"})
        write(tmp_path / "runs" / version, made, f"seed_everything: {seed}\ndepth: 2")
    table([tmp_path / "runs"], "md")
    out = capsys.readouterr().out
    assert out.count("Made by several versions: llava_lab 0.7.0, 0.8.0.") == 2
    assert "version or seeds do not fit" in out and "seeds (" not in out and "torch" not in out


def test_csv(tmp_path: Path, capsys: Any) -> None:
    write(tmp_path / "a" / "0", results(0, 0.5))
    write(tmp_path / "a" / "1", results(1, 0.7))
    write(tmp_path / "b", results(4, scale="small"))
    table([tmp_path], "csv")
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(lines) == 6
    assert (lines[0]["seeds"], lines[0]["interval"], lines[0]["scale"]) == ("0 1", "seeds", "tiny")
    assert float(lines[0]["value"]) == pytest.approx(0.6)
    assert float(lines[0]["margin"]) == pytest.approx(0.3)
    assert (lines[5]["interval"], lines[5]["score"], lines[5]["blind"]) == ("results", "f1", "")


def test_terminal(tmp_path: Path, capsys: Any) -> None:
    main([str(write(tmp_path / "run", results()))])
    out = capsys.readouterr().out
    assert "60.0 [55.0, 65.0]" in out
    assert "There is no config.yaml beside the results, by which to find rows." in out
    assert len(results_tables(alone(tmp_path / "other"))) == 3


def test_points_against_one_are_paired_by_seed(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("experiment: s.yaml\naxes: {grid: {a: {}, b: {}, c: {}}}")
    values = {"a": [0.5, 0.7, 0.6], "b": [0.61, 0.79, 0.7], "c": [0.9]}
    found = []
    for name, accuracies in values.items():
        runs = [
            read(write(tmp_path / name / str(seed), results(seed, accuracy)))
            for seed, accuracy in enumerate(accuracies)
        ]
        found.append(({"grid": name}, runs))
    sweep = Sweep.read(file)
    scenes, pope = difference_grids(sweep, found, "a")
    assert scenes.headers == ["grid", "seeds", "accuracy", "accuracy/count"]
    # 11, 9 and 10 points: t(2) = 4.3027 times a deviation of 1 over the root of 3.
    # Without points, where nothing differs it is as if one of 100 or of 40 questions did.
    assert scenes.texts[0] == ["b", "3", "+10.0 ± 2.5*", "+0.0 ± 5.1"]
    assert scenes.texts[1] == ["c", "1", "+40.0 ± 7.1*", "+0.0 ± 7.1"]
    assert "for all 4 comparisons of this table together (Holm)" in str(scenes.legend)
    found[1][1][0].results["versions"] = {"torch": "2.14.1"}
    found[1][1][1].results["versions"] = {"torch": "2.9.0"}
    grids = [*difference_grids(sweep, found, "a"), *sweep_grids(sweep, found)]
    assert all("Made by several versions: torch 2.14.1, 2.9.0." in each.notes for each in grids)
    assert pope.headers == ["grid", "seeds", "f1"] and "against a" in pope.title
    with pytest.raises(ValueError, match="'d' is no finished point of s; it has 'a', 'b', 'c'"):
        list(difference_grids(sweep, found, "d"))


def test_points_that_share_no_seed_with_the_one_compared_are_named(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("experiment: s.yaml\naxes: {grid: {a: {}, b: {}, c: {}}}")
    found = [
        ({"grid": name}, [read(write(tmp_path / name, results(seed)))])
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    for grid in difference_grids(Sweep.read(file), found, "a"):
        assert [row[0] for row in grid.texts] == ["b"]
        assert grid.notes == ["c: no seed in common with a."]
    (grid,) = difference_grids(Sweep.read(file), found, "c")
    assert grid.notes == [f"{name}: no seed in common with c." for name in "ab"]
    for format in FORMATS:
        show([grid], format)


def test_a_file_that_is_no_results_is_not_called_damaged(tmp_path: Path) -> None:
    kept = tmp_path / "step-00000001.safetensors"
    kept.write_bytes(b"\x80weights")
    with pytest.raises(ValueError, match=r"001.safetensors has no results; give a run's folder"):
        find([kept])


def test_points_that_answered_alike_word_for_word_are_named(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("experiment: s.yaml\nseeds: [0, 1]\naxes: {grid: {a: {}, b: {}, c: {}, d: {}}}")
    answers = {"a": "11", "b": "12", "c": "11", "d": "1"}
    found = []
    for name, said in answers.items():
        made = [results(seed, 0.5, predictions_sha256={"scenes": x}) for seed, x in enumerate(said)]
        runs = [read(write(tmp_path / name / str(each["seed"]), each)) for each in made]
        found.append(({"grid": name}, runs))
    for grid in sweep_grids(Sweep.read(file), found):
        alike = [note for note in grid.notes if "same answer" in note]
        assert [note.split(" gave every")[0] for note in alike] == ["a and c"]
    for run in found[2][1]:
        del run.results["predictions_sha256"]
    assert not any(
        "same answer" in str(grid.notes) for grid in sweep_grids(Sweep.read(file), found)
    )


def test_each_value_of_a_first_axis_has_a_panel(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("experiment: s.yaml\naxes: {factor: [1, 2], frames: [8, 16]}")
    sweep, found = Sweep.read(file), []
    for point in sweep.points():
        frames = int(point.labels["frames"])
        made = results(0, 0.5, cost={"visual_tokens_mean": 9.0 * frames})
        run = read(write(tmp_path / point.labels["factor"] / str(frames), made))
        found.append((point.labels, [run]))
    plot(sweep, found, tmp_path / "two.png")
    plot(Sweep(sweep.name, (), {"frames": {}}, (0,)), found[:2], tmp_path / "one.png")
    with Image.open(tmp_path / "two.png") as two, Image.open(tmp_path / "one.png") as one:
        assert two.width - one.width == 6 * 120 and two.height == one.height


def test_visual_tokens_are_those_of_the_benchmark(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("experiment: s.yaml\naxes: {frames: [8, 16]}")
    found = []
    for point, counts in zip(Sweep.read(file).points(), ((70.0, 3.0), (144.0, 3.0)), strict=True):
        asked = dict(zip(("scenes", "pope"), counts, strict=True))
        run = read(write(tmp_path / point.labels["frames"], results(0, 0.5, visual_tokens=asked)))
        found.append((point.labels, [run]))
    scenes, pope = sweep_grids(Sweep.read(file), found)
    assert [row[scenes.headers.index("visual tokens")] for row in scenes.texts] == ["70.0", "144.0"]
    assert [row[pope.headers.index("visual tokens")] for row in pope.texts] == ["3.0", "3.0"]


def test_a_held_out_number_of_one_run_has_no_interval(tmp_path: Path) -> None:
    """It had one of no width, as if it were known for certain."""
    file = tmp_path / "s.yaml"
    file.write_text("experiment: s.yaml\naxes: {beta: [0.1]}")
    made = results(0, 0.5)
    made["stages"][0]["held_out"] = {"kl": 3.2}
    found = [({"beta": "0.1"}, [read(write(tmp_path / "0", made))])]
    (grid,) = held_out_grids(Sweep.read(file), found)
    assert grid.texts == [["0.1", "1", "3.200"]]
    assert to_csv(grid).splitlines()[1] == "0.1,1,3.2,,"


def test_a_point_of_which_no_cost_is_known_has_dashes_and_is_drawn_by_its_name(
    tmp_path: Path,
) -> None:
    """A run that was killed before its results and then asked has none."""
    file = tmp_path / "s.yaml"
    file.write_text("experiment: s.yaml\naxes: {frames: [8, 16]}")
    sweep, found = Sweep.read(file), []
    for frames, more in (("8", {}), ("16", {"stages": [], "cost": {}})):
        run = read(write(tmp_path / frames, results(0, 0.5, **more)))
        found.append(({"frames": frames}, [run]))
    grid = next(sweep_grids(sweep, found))
    places = [grid.headers.index(each) for each in ("visual tokens", "training FLOPs", "seconds")]
    assert [[row[n] for n in places] for row in grid.texts] == [
        *(["64.0", "1.5e+15", "61"], ["–", "–", "0"])
    ]
    plot(sweep, found, tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").exists()


def test_numbers_of_held_out_rows_are_a_table_and_can_be_drawn(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("experiment: s.yaml\nseeds: [0, 1, 2]\naxes: {beta: [0.1, 1]}")
    sweep, found = Sweep.read(file), []
    for beta in ("0.1", "1"):
        runs = []
        for seed in range(3):
            made = results(seed, 0.5)
            made["stages"][0]["held_out"] = {"kl": float(beta) * (1 + seed)}
            runs.append(read(write(tmp_path / beta / str(seed), made)))
        found.append(({"beta": beta}, runs))
    (grid,) = held_out_grids(sweep, found)
    # 0.1, 0.2 and 0.3: t(2) = 4.3027 times a deviation of 0.1 over the root of 3.
    assert grid.headers == ["beta", "seeds", "kl"] and "stage align" in grid.title
    assert grid.texts == [["0.1", "3", "0.200 ± 0.248"], ["1", "3", "2.000 ± 2.484"]]
    figures = []
    for scores, x in (([], None), (["pope/f1", "scenes/accuracy"], "align/kl")):
        out = tmp_path / f"{len(figures)}.png"
        plot(sweep, found, out, scores, x)
        figures.append(out.read_bytes())
    assert figures[0] != figures[1]
    plot(sweep, found, tmp_path / "against.png", against="0.1")
    with Image.open(tmp_path / "against.png") as two, Image.open(tmp_path / "0.png") as one:
        assert two.width == one.width and two.height - one.height == 4 * 120
    with pytest.raises(ValueError, match=r"'align/k' is not in all points of s: .*align/kl"):
        plot(sweep, found, tmp_path / "none.png", [], "align/k")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(
    ("drawn", "limits", "label"),
    [
        (["scenes/accuracy"], (-3, 103), "%"),
        (["mme/perception"], (1350, 1550), "%"),
        (["align/kl"], (1.9, 3.3), ""),
        (["align/kl", "scenes/accuracy"], (-4, 70), ""),
        ([], (-3, 103), "accuracy, %"),
    ],
)
def test_all_that_is_drawn_is_within_the_picture(
    drawn: list[str],
    limits: tuple[float, float],
    label: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Points, CIDEr and held-out numbers were above 103, in an empty panel."""
    file = tmp_path / "s.yaml"
    file.write_text("experiment: s.yaml\naxes: {beta: [0.1, 1]}")
    sweep, found = Sweep.read(file), []
    for beta, kl, perception in (("0.1", 3.2, 15.1), ("1", 2.0, 14.2)):
        made = results(0, 0.5)
        made["stages"][0]["held_out"] = {"kl": kl}
        made["benchmarks"]["mme"] = {"perception": score(perception)}
        found.append(({"beta": beta}, [read(write(tmp_path / beta, made))]))
    kept: list[Any] = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda self, *_, **__: kept.append(self)
    )
    plot(sweep, found, tmp_path / "s.png", drawn)
    axes = kept[0].axes[0]
    low, high = axes.get_ylim()
    shown = [y for each in axes.containers for y in each.lines[0].get_ydata()]
    assert shown and low < min(shown) and max(shown) < high
    assert limits[0] <= low and high <= limits[1] and axes.get_ylabel() == label


@pytest.mark.parametrize(
    ("places", "apart"),
    [
        ([(64, 0.1), (144, 0.2)], True),
        ([(64, 0.1), (64, 0.1)], False),
        ([(64, 0.1), (144, 0.2), (143, 0.3)], False),
        ([(64, 0.1), (144, 0.2), (144, 0.2)], True),
        ([(64, 0.1), (144, 0.2), (144, 0.3)], False),
    ],
)
def test_an_axis_shows_places_that_can_be_told_apart(
    places: list[tuple[float, float]], apart: bool
) -> None:
    assert _apart([(x, {"scenes/f1": known(y, y)}) for x, y in places]) is apart


def test_mistakes_are_one_message(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "nowhere")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}")


def test_table_starts_without_torch() -> None:
    code = "import llava_lab.cli.table, sys; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
