"""Findings: rules as data, read and checked."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from llava_lab.report.finding import Finding
from llava_lab.report.finding_file import chosen, read_finding, read_findings

RULE = {
    "finding": "T1",
    "claim": "More depth helps.",
    "source": {"table": "llava15/table2"},
    "sweep": "some.yaml",
    "contrasts": {
        "effect": {"treatment": "2", "against": "1"},
        "placebo": {"treatment": "2", "against": "2, shuffled"},
    },
    "must_move": [{"score": "questions/accuracy/count", "direction": "up", "least": 5}],
    "must_not": [{"score": "questions/accuracy/color", "within": 3}],
    "described": ["questions/accuracy"],
    "looks": {5: 0.01, 8: 0.04},
    "correction": {"family": "all findings", "method": "holm", "level": 0.05},
    "missing": "repeat",
}


def write_rule(folder: Path, changes: dict | None = None, name: str = "T1") -> Path:
    """A rule, and the sweep that it names, in a folder."""
    sweep = {
        "experiment": str(REPOSITORY / "experiments" / "llava15.yaml"),
        "axes": {"depth": {"1": {}, "2": {"model.connector.depth": 2}, "2, shuffled": {}}},
    }
    (folder / "some.yaml").write_text(yaml.safe_dump(sweep))
    rule = {**RULE, "finding": name, **(changes or {})}
    (path := folder / f"{name}.yaml").write_text(
        yaml.safe_dump({key: value for key, value in rule.items() if value is not None})
    )
    return path


def test_a_rule_is_read(tmp_path: Path) -> None:
    found = read_finding(write_rule(tmp_path))
    assert (found.effect.treatment, found.effect.against) == ("2", "1")
    assert list(found.controls) == ["placebo"] and found.points == ["2", "1", "2, shuffled"]
    assert [found.seeds(look)[-1] for look in found.looks] == [104, 107]
    assert found.must_not[0].contrast == found.effect


def test_a_rule_that_is_changed_has_another_hash(tmp_path: Path) -> None:
    before = read_finding(write_rule(tmp_path)).sha256
    changed = [{**RULE["must_move"][0], "least": 4}]
    assert read_finding(write_rule(tmp_path, {"must_move": changed})).sha256 != before


def test_seeds_take_draws_in_turn(tmp_path: Path) -> None:
    draws = {"A": {}, "B": {"model.encoder.weights": "b.safetensors"}}
    found = read_finding(write_rule(tmp_path, {"draws": draws}))
    assert [bool(found.draw(seed)) for seed in (100, 101, 102)] == [False, True, False]


@pytest.mark.parametrize(
    "drawn", [{"model.connector.depth": 7}, {"model": {"connector": {"depth": 7}}}]
)
def test_what_an_axis_sets_is_not_drawn(drawn: dict, tmp_path: Path) -> None:
    """The axis won, without a word."""
    path = write_rule(tmp_path, {"draws": {"A": {}, "B": drawn}})
    with pytest.raises(ValueError, match=r"draws sets model\.connector\.depth, and so does axis"):
        read_finding(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clam": "x"}, "unknown key 'clam'; did you mean 'claim'"),
        ({"looks": None}, "lacks looks"),
        ({"claim": 3}, "claim is 3, not a text"),
        ({"finding": "T2"}, "finding is 'T2'; it is the file's name"),
        ({"source": {"table": "llava15/tabel2"}}, "source: no published table .*table2"),
        ({"source": {}}, "source: names neither a table nor a citation"),
        ({"sweep": "other.yaml"}, "other.yaml"),
        ({"contrasts": {"placebo": RULE["contrasts"]["effect"]}}, "contrasts: there is no effect"),
        (
            {"contrasts": {"effect": {"treatment": "2", "against": "2 shufled"}}},
            "effect: the sweep has no point '2 shufled'; did you mean '2, shuffled'",
        ),
        (
            {"contrasts": {"effect": {"treatment": "2", "against": "2"}}},
            "effect: '2' is compared with itself",
        ),
        (
            {"must_move": [{"score": "qestions/accuracy", "direction": "up", "least": 5}]},
            "asks no benchmark 'qestions'; did you mean 'questions'",
        ),
        (
            {"must_move": [{"score": "accuracy", "direction": "up", "least": 5}]},
            "must_move: score is 'accuracy'; it is BENCHMARK/SCORE",
        ),
        (
            {"must_move": [{"score": "questions/accuracy", "direction": "more", "least": 5}]},
            "direction is 'more'; it is up or down",
        ),
        (
            {"must_move": [{"score": "questions/accuracy", "direction": "up", "least": 0}]},
            "least is 0; it is points",
        ),
        ({"must_move": []}, "must_move is .*not a list of at least one"),
        (
            {"must_not": [{"score": "questions/accuracy", "within": 3, "against": "3"}]},
            "must_not: the sweep has no point '3'",
        ),
        ({"looks": {5: 0.02, 8: 0.04}}, "looks spend 0.06, more than the level of 0.05"),
        ({"looks": {1: 0.01}}, "1 is no number of seeds from 2 on"),
        ({"looks": {5: 1.0}}, "alpha is 1.0; it is between 0 and 1"),
        ({"missing": "drop"}, "missing is 'drop'; it is repeat"),
        ({"draws": ["a"]}, "draws is .*not names with options under each"),
        (
            {"correction": {**RULE["correction"], "method": "none"}},
            "correction: method is 'none'; it is 'holm'",
        ),
    ],
)
def test_what_is_no_rule_is_refused_in_one_message(
    changes: dict, message: str, tmp_path: Path
) -> None:
    path = write_rule(tmp_path)
    rule = {key: each for key, each in {**RULE, **changes}.items() if each is not None}
    path.write_text(yaml.safe_dump(rule))
    with pytest.raises((ValueError, OSError), match=message):
        read_finding(path)


def test_an_unknown_score_of_a_run_is_named_with_the_nearest(tmp_path: Path) -> None:
    found = read_finding(write_rule(tmp_path))
    known = ["questions/accuracy", "questions/accuracy/counts", "questions/accuracy/color"]
    with pytest.raises(ValueError, match="did you mean 'questions/accuracy/counts'"):
        found.check_scores(known, "a run")


def test_an_unknown_finding_is_named_with_the_nearest(tmp_path: Path) -> None:
    write_rule(tmp_path)
    (tmp_path / "some.yaml").rename(tmp_path / "some.sweep")
    (tmp_path / "T1.yaml").write_text(
        (tmp_path / "T1.yaml").read_text().replace("some.yaml", "some.sweep")
    )
    with pytest.raises(ValueError, match="there is no finding 'T2'; did you mean 'T1'"):
        chosen(read_findings(tmp_path), ["T2"])


def test_shipped_findings_are_rules_of_one_family() -> None:
    found = read_findings()
    assert found and all(isinstance(each, Finding) for each in found.values())


def test_findings_and_results_are_read_without_torch() -> None:
    code = (
        "import sys; from llava_lab.cli.report import main; main([]); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == 0, done.stderr
