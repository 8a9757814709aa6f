"""Runs of findings: made look by look, kept under results/, judged from there alone."""

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY
from test_finding import RULE

from llava_lab.cli.report import main
from llava_lab.core.records import file_sha256, write_record
from llava_lab.core.version import __version__
from llava_lab.data.questions import Question
from llava_lab.evaluate.points import PointsFile
from llava_lab.evaluate.ratio import by_category, mean
from llava_lab.experiment.rehearsal import Rehearsal
from llava_lab.experiment.sweep import Point, Sweep
from llava_lab.experiment.verdict_runs import Chosen
from llava_lab.report import effort, elsewhere, running
from llava_lab.report.claim_text import scores_grid
from llava_lab.report.claims import Claims, read_claims
from llava_lab.report.committed import read_results
from llava_lab.report.finding_file import read_findings
from llava_lab.report.history import begin, history_of, read_history
from llava_lab.report.running import Running, check_written

KINDS = ["count", "color"] * 50
MOVED = {"1": 0.4, "2": 0.9, "4": 0.6}  # share of counts that a point has right


# As much of an experiment as a run needs that is not made.
EXPERIMENT = {
    "experiment": "some",
    "scale": "tiny",
    "tiny_world": {"root": "world/tiny", "seed": 0},
    "paths": {"root": "world/tiny"},
    "data": {"benchmarks": [{"name": "questions"}]},
}


def rule(folder: Path, changes: dict | None = None, experiment: Path | None = None) -> None:
    """Two findings on one sweep; the second's effect differs from seed to seed."""
    (folder / "some.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    (folder / "sweeps").mkdir(exist_ok=True)
    (folder / "findings").mkdir(exist_ok=True)
    sweep = {
        "experiment": str(experiment or folder / "some.yaml"),
        "axes": {"depth": {"1": {}, "2": {"model.connector.depth": 3}, "4": {"resolution": 224}}},
    }
    (folder / "sweeps" / "some.yaml").write_text(yaml.safe_dump(sweep))
    own = {
        "sweep": "../sweeps/some.yaml",
        "contrasts": {"effect": {"treatment": "2", "against": "1"}},
        "must_not": [],
        "looks": {3: 0.03, 4: 0.02},
    }
    other = {**RULE, **own, "finding": "T2"}
    other["must_move"] = [{"score": "questions/accuracy/color", "direction": "up", "least": 20}]
    first = {**RULE, **own, "finding": "T1", **(changes or {})}
    for each in (first, other):
        (folder / "findings" / f"{each['finding']}.yaml").write_text(yaml.safe_dump(each))


def config_of(overrides: list[str]) -> str:
    """A configuration that says no more than its options."""
    given = dict(each.split("=", 1) for each in overrides)
    seeds = {key: int(given.pop(key)) for key in ("seed_everything", "tiny_world.seed")}
    world = {"seed": seeds.pop("tiny_world.seed")}
    return yaml.safe_dump({**seeds, "tiny_world": world, "options": given})


def make_run(folder: Path, point: Point, right: dict[str, float]) -> Path:
    """A finished run as `fit` leaves it, that has so many counts and colors right."""
    got = np.array([float(place < right[kind] * len(KINDS)) for place, kind in enumerate(KINDS)])
    ratios = by_category({"accuracy": mean(got)}, np.array(KINDS))
    names = [f"images/{place}.png" for place in range(len(KINDS))]
    questions = [
        Question(str(place), (Path(name),), "What?", kind, ("a",), "file")
        for place, (name, kind) in enumerate(zip(names, KINDS, strict=True))
    ]
    points = PointsFile()
    points.begin("questions", questions, f"world {point.seed}")
    places = list(range(len(KINDS)))
    points.add("questions", "", places, {"accuracy": mean(got)}, split=True, means=[])
    points.write(folder / "points.json")
    (folder / "config.yaml").write_text(config_of(point.overrides))
    results = {
        "experiment": "some",
        "scale": "tiny",
        "seed": point.seed,
        "git": None,
        "versions": {"llava_lab": running.__version__},
        "config_sha256": file_sha256(folder / "config.yaml"),
        "stages": [{"name": "align", "steps": 2, "seconds": 3.5, "reused": False}],
        "benchmarks": {
            "questions": {
                key: {"value": each.value, "ci95": [0.0, 1.0], "n": each.n}
                for key, each in ratios.items()
            }
        },
        "cost": {"visual_tokens_mean": 36.0, "train_flops": 1e9, "seconds": 9.0},
        "points_sha256": file_sha256(folder / "points.json"),
    }
    write_record(folder / "results.json", results)
    return folder / "results.json"


SCORES = [f"questions/accuracy{kind}" for kind in ("", "/count", "/color")]


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is built for a rehearsal."""
    monkeypatch.setattr(running, "rehearse", lambda *_: Rehearsal({}, SCORES))


@pytest.fixture
def ran(rehearsed: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Points that were run, in the place of fits; each has what MOVED says."""
    done: list[str] = []

    def run_sweep(sweep: Sweep, runs: Path, jobs: int | None, more: list) -> None:
        for point in sweep.points():
            done.append(f"{point.name} {point.seed}")
            folder = runs / f"{point.name}-{point.seed}"
            folder.mkdir(parents=True)
            color = 0.5 + (0.3 if point.name == "2" and point.seed % 2 else 0)
            results = make_run(folder, point, {"count": MOVED[point.name], "color": color})
            kept = {"command": [], "exit": 0, "results": str(results)}
            write_record(sweep.record(runs, point, more), kept)

    monkeypatch.setattr(running, "run_sweep", run_sweep)
    return done


@pytest.fixture
def run(tmp_path: Path, ran: list[str]) -> Callable[..., Claims]:
    """Makes the runs of findings that lie in a folder."""

    def start(*ids: str, **options: bool) -> Claims:
        findings = read_findings(tmp_path / "findings")
        made = Running(findings, tmp_path / "results", tmp_path / "runs", **options)
        return made.run(ids or list(findings))

    return start


def test_runs_are_made_look_by_look_until_each_is_decided(
    tmp_path: Path, run: Callable[..., Claims], ran: list[str]
) -> None:
    rule(tmp_path)
    claims = run()
    first = [f"{point} {seed}" for point in (2, 1) for seed in (100, 101, 102)]
    assert ran == [*first, "2 103", "1 103"]  # nothing of 4, which no contrast names
    words = {id: each.word for id, each in claims.verdicts.items()}
    assert words == {"T1": "reproduced", "T2": "inconclusive"}
    assert claims.verdicts["T1"].evidence.moved[0].effect.value == pytest.approx(0.5, abs=0.15)
    assert [claims.verdicts[id].evidence.look.seeds for id in ("T1", "T2")] == [3, 4]
    run()
    assert len(ran) == 8


def test_where_one_look_is_asked_for_the_next_one_waits(
    tmp_path: Path, run: Callable[..., Claims], ran: list[str]
) -> None:
    rule(tmp_path)
    claims = run(one_look=True)
    assert [claims.verdicts[id].evidence.look.seeds for id in ("T1", "T2")] == [3, 3]
    assert claims.verdicts["T2"].said == "inconclusive so far" and len(ran) == 6
    assert run(one_look=True).verdicts["T2"].said == "inconclusive" and len(ran) == 8


def test_a_look_is_written_down_whatever_stops_the_runs_of_the_next_sweep(
    tmp_path: Path, run: Callable[..., Claims], ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a verdict could be seen, and be gone: the next command would note a later one alone."""
    rule(tmp_path)
    other = yaml.safe_load((tmp_path / "findings" / "T2.yaml").read_text())
    other["sweep"] = "../sweeps/other.yaml"
    (tmp_path / "findings" / "T2.yaml").write_text(yaml.safe_dump(other))
    (tmp_path / "sweeps" / "other.yaml").write_bytes((tmp_path / "sweeps/some.yaml").read_bytes())
    own = running.run_sweep

    def stopped(sweep: Sweep, *given: object) -> None:
        if sweep.name == "other":
            raise KeyboardInterrupt
        own(sweep, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(running, "run_sweep", stopped)
    monkeypatch.setattr(running, "elsewhere", lambda *_: [])
    with pytest.raises(KeyboardInterrupt):
        run()
    looks = [each["look"] for each in history_of(tmp_path / "results", "T1").of("verdict")]
    assert looks == [3]


def test_points_that_no_contrast_names_are_run_where_every_point_is_asked_for(
    tmp_path: Path, run: Callable[..., Claims], ran: list[str]
) -> None:
    rule(tmp_path)
    before = run()
    before = {id: each.word for id, each in before.verdicts.items()}
    done = len(ran)
    claims = run(every_point=True)
    assert ran[done:] == ["4 100", "4 101", "4 102"]  # seeds of the first look
    assert {id: each.word for id, each in claims.verdicts.items()} == before
    scores = scores_grid(claims, "T1")
    assert [(row[0], row[1].text) for row in scores.rows] == [("2", "3"), ("1", "3"), ("4", "3")]
    assert "from the first 2 points; the others decide nothing" in scores.legend
    (of,) = {tuple(each.rules) for (_, point, _), each in claims.runs.items() if point == "4"}
    assert of == ()
    run(every_point=True)
    assert len(ran) == done + 3
    findings = read_findings(tmp_path / "findings")
    made = Running(findings, tmp_path / "none", tmp_path / "runs", every_point=True)
    assert made.most(["T1"], made.claims()) == 4 + 4 + 3


def test_results_alone_give_the_same_verdicts_and_scores(
    tmp_path: Path, run: Callable[..., Claims]
) -> None:
    rule(tmp_path)
    claims = run()
    alone = read_claims(read_findings(tmp_path / "findings"), tmp_path / "results")
    assert {id: v.word for id, v in alone.verdicts.items()} == {
        id: v.word for id, v in claims.verdicts.items()
    }
    each = read_results(tmp_path / "results")[0]
    assert (each.sweep, each.point, each.seed) == ("some", "1", 100)
    assert each.worlds == {"tiny_world": 1000} and set(each.rules) == {"T1", "T2"}
    before = json.loads((tmp_path / "runs" / "1-100" / "results.json").read_text())
    scores = each.run.results["benchmarks"]["questions"]
    assert scores.keys() == before["benchmarks"]["questions"].keys()
    assert each.run.results["stages"] == before["stages"] and each.run.config is not None
    kept = json.loads(each.run.path.read_text())["results"]
    assert "seconds" not in json.dumps(kept) and each.run.path.stat().st_size < 10_000


def test_a_file_that_an_option_names_is_kept_without_the_way_to_this_machine(
    tmp_path: Path, run: Callable[..., Claims]
) -> None:
    rule(tmp_path)
    (tmp_path / "lm.yaml").write_text("model: {}")
    path = tmp_path / "sweeps" / "some.yaml"
    axes = {"depth": {"1": {}, "2": {"resolution": "../lm.yaml"}, "4": {}}}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"axes": axes}))
    claims = run("T1", one_look=True)
    assert claims.runs["some", "2", 100].options["resolution"] == "lm.yaml"


def test_worlds_are_open_only_while_runs_are_made(
    tmp_path: Path, rehearsed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule(tmp_path)
    seen = []

    def run_sweep(sweep: Sweep, *_: object) -> None:
        seen.append({point.options["tiny_world.seed"] for point in sweep.points()})
        running.verdict_worlds.check_seed(1000, "it")
        raise ValueError("2 of 4 points failed")

    monkeypatch.setattr(running, "run_sweep", run_sweep)
    made = Running(read_findings(tmp_path / "findings"), tmp_path / "results", tmp_path / "runs")
    with pytest.raises(ValueError, match="runs of some failed, and a look waits for all"):
        made.run(["T1"])
    assert seen == [{1000, 1001, 1002}]
    with pytest.raises(ValueError, match="kept for verdicts"):
        running.verdict_worlds.check_seed(1000, "it")


def test_a_score_that_no_run_would_have_is_named_before_anything_runs(
    tmp_path: Path, run: Callable[..., Claims], ran: list[str]
) -> None:
    rule(tmp_path, {"described": ["questions/accuracy/colors"]})
    with pytest.raises(ValueError, match=r"sweep some has no score .*mean 'questions/accuracy/col"):
        run("T1")
    assert not ran


def test_what_runs_share_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Claims]
) -> None:
    rule(tmp_path)
    claims = run()
    findings = read_findings(tmp_path / "findings")
    lacking = Running(findings, tmp_path / "none", tmp_path / "runs")
    sweeps = list(lacking.lacking(list(findings), lacking.claims()))
    monkeypatch.setattr(
        effort,
        "rehearse",
        lambda _, point, *more: Rehearsal({"align": "shared", "instruct": point.name}, []),
    )
    assert lacking.most(list(findings), lacking.claims()) == 8
    (found,) = effort.effort(sweeps, {})
    assert (found.runs, found.stages, found.trained, found.seconds) == (6, 12, 9, None)
    (timed,) = effort.effort(sweeps, claims.runs)
    assert timed.seconds is None  # of a stage there is no time
    for each in claims.runs.values():
        each.run.results["stages"].append({"name": "instruct", "seconds": 10.0})
        each.run.results["cost"]["seconds_trained_here"] = 8.0
    (timed,) = effort.effort(sweeps, claims.runs)
    assert timed.seconds == pytest.approx(3 * 3.5 + 6 * 10 + 6 * 1)
    notes = " ".join(effort.effort_grid([timed], 2, 8).notes)
    assert "About 00:38 with 2 at once" in notes and "75% of the stages" in notes


def test_a_stage_is_shared_with_another_sweep_for_the_seeds_that_both_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fingerprints hold the seed; of later sweeps some seeds may be run, or run already."""

    def rehearsed(sweep: Chosen, point: Point, *more: Any) -> Rehearsal:
        own = f"{sweep.name} {point.name} {point.seed}"
        return Rehearsal({"align": f"align {point.seed}", "instruct": own}, [])

    def some(name: str, seeds: range) -> Chosen:
        return Chosen(name, (), {}, (), chosen=tuple(Point({"a": name}, {}, s) for s in seeds))

    monkeypatch.setattr(effort, "rehearse", rehearsed)
    for seeds, trained in ((range(100, 108), 8 + 3), (range(102, 105), 3)):
        found = effort.effort([some("one", range(100, 105)), some("two", seeds)], {})
        assert [each.trained for each in found] == [10, trained]


def test_results_of_the_repository_are_whole() -> None:
    """Its histories are unbroken; verdicts on DPO from before there were rules are there."""
    claims = read_claims(read_findings(), REPOSITORY / "results")
    assert claims.findings.keys() == claims.verdicts.keys()
    typed = history_of(REPOSITORY / "results", "F6c").of("typed")
    words = [event["verdict"] for event in typed]
    assert words == ["not reproduced", "inconclusive", "reproduced"]
    assert all(event["git"] and event["file"] and event["numbers"] for event in typed)


def test_a_rule_that_is_changed_after_its_run_shows_with_the_earlier_verdict(
    tmp_path: Path, run: Callable[..., Claims]
) -> None:
    rule(tmp_path)
    run("T1")
    stricter = [{**RULE["must_move"][0], "score": "questions/accuracy/count", "least": 90}]
    rule(tmp_path, {"must_move": stricter})
    claims = read_claims(read_findings(tmp_path / "findings"), tmp_path / "results")
    assert claims.verdicts["T1"].word == "no effect"
    assert claims.remarks("T1")[0] == "The rule was changed after its last run."
    remarks = run("T1").remarks("T1")
    assert remarks[0] == "6 of 6 runs were made for an earlier rule."
    assert remarks[1].endswith(": reproduced, by an earlier rule.")
    assert len(history_of(tmp_path / "results", "T1").of("rule")) == 2


def test_a_rule_that_is_written_after_the_runs_shows(
    tmp_path: Path, run: Callable[..., Claims]
) -> None:
    rule(tmp_path)
    later = tmp_path / "findings" / "T2.yaml"
    text = later.read_text()
    later.unlink()
    run()
    later.write_text(text)
    assert run().remarks("T2") == ["6 of 8 runs were made before this rule was written."]


def test_runs_of_other_options_than_the_sweeps_are_made_anew(
    tmp_path: Path, run: Callable[..., Claims], ran: list[str]
) -> None:
    rule(tmp_path)
    run("T1")
    path = tmp_path / "sweeps" / "some.yaml"
    path.write_text(path.read_text().replace("model.connector.depth: 3", "resolution: 448"))
    said = "3 of 6 runs were made with other files or options than sweep some has now."
    claims = read_claims(read_findings(tmp_path / "findings"), tmp_path / "results")
    assert said in claims.remarks("T1")
    for folder in (tmp_path / "runs").glob("2-*"):
        folder.rename(folder.with_name(f"old-{folder.name}"))
    assert said not in run("T1").remarks("T1")
    assert ran[6:] == ["2 100", "2 101", "2 102"]
    earlier = history_of(tmp_path / "results", "T1").earlier
    assert [event["look"] for event in earlier] == [3]


@pytest.fixture
def other_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Findings T1 and T2, and T3 of another sweep; its point deep is the point 2 of theirs."""
    rule(tmp_path)
    axes = {"shape": {"deep": {"model.connector.depth": 3}, "4": {"resolution": 448}}}
    sweep = {"experiment": str(tmp_path / "some.yaml"), "axes": axes}
    (tmp_path / "sweeps" / "other.yaml").write_text(yaml.safe_dump(sweep))
    third = yaml.safe_load((tmp_path / "findings" / "T1.yaml").read_text())
    third |= {"finding": "T3", "sweep": "../sweeps/other.yaml"}
    third["contrasts"] = {"effect": {"treatment": "deep", "against": "4"}}
    (tmp_path / "findings" / "T3.yaml").write_text(yaml.safe_dump(third))

    def composed(layers: list[Path | str]) -> SimpleNamespace:
        config = config_of([each for each in layers if isinstance(each, str)])
        sha256 = hashlib.sha256(config.encode()).hexdigest()
        run = SimpleNamespace(experiment="some", config_sha256=sha256)
        return SimpleNamespace(run=lambda _: run)

    monkeypatch.setattr(elsewhere, "Experiment", SimpleNamespace(read_layers=composed))


@pytest.mark.usefixtures("other_sweep")
def test_what_another_sweep_has_run_is_not_run_again(
    tmp_path: Path, run: Callable[..., Claims], ran: list[str]
) -> None:
    run("T1")
    findings = read_findings(tmp_path / "findings")
    made = Running(findings, tmp_path / "results", tmp_path / "runs")
    (left,) = made.to_make(["T3"], made.claims())
    assert [str(point) for point in left.points()] == [f"shape=4 seed={n}" for n in (100, 101, 102)]
    del ran[:]
    claims = run("T3", one_look=True)
    assert ran == ["4 100", "4 101", "4 102"]
    taken, own = claims.runs["other", "deep", 100], claims.runs["some", "2", 100]
    assert taken.run.results == own.run.results and taken.labels == {"shape": "deep"}
    assert taken.points["questions/accuracy"].content == own.points["questions/accuracy"].content
    # Which rules stood before a run, a commit says; where there is none, a remark does.
    assert taken.rules == {} and own.rules.keys() == {"T1", "T2"}
    claims = read_claims(findings, tmp_path / "results")
    assert claims.remarks("T3") == ["3 of 6 runs were made before this rule was written."]


@pytest.mark.usefixtures("other_sweep")
def test_a_rule_stood_before_a_run_if_its_commit_has_it_as_it_is(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "findings" / "T2.yaml").rename(tmp_path / "later.yaml")
    subprocess.run([*git, "add", "findings", "sweeps", "some.yaml"], check=True)
    subprocess.run([*git, "commit", "-qm", "rules"], check=True)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    (tmp_path / "later.yaml").rename(tmp_path / "findings" / "T2.yaml")
    third = tmp_path / "findings" / "T3.yaml"
    third.write_text(third.read_text().replace("least: 5", "least: 4"))
    found = read_findings(tmp_path / "findings")
    assert third.read_text().count("least: 4") == 1
    for commit, known in ((f"{head}+", {"T1"}), ("0" * 40, set()), (None, set())):
        made_at = SimpleNamespace(run=SimpleNamespace(results={"git": commit}))
        assert elsewhere.rules_before(made_at, found.values()) == {
            id: found[id].sha256 for id in known
        }


def test_runs_of_another_version_are_made_anew_and_never_mixed(
    tmp_path: Path, run: Callable[..., Claims], ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rule(tmp_path)
    run("T1")
    monkeypatch.setattr(running, "__version__", "9.0.0")
    for folder in (tmp_path / "runs").glob("2-*"):
        folder.rename(folder.with_name(f"old-{folder.name}"))
    with pytest.raises(OSError):  # runs of point 1 lie there: those of point 2 are made
        run("T1")
    assert ran[6:10] == ["2 100", "2 101", "2 102", "1 100"]
    claims = read_claims(read_findings(tmp_path / "findings"), tmp_path / "results")
    said = f"Made by several versions: llava_lab {__version__}, 9.0.0."
    assert said in claims.remarks("T1")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: lines[1:], "line 1: this line was changed, or one before it is missing"),
        (lambda lines: [lines[0].replace("More", "Less"), *lines[1:]], "line 1: this line was"),
        (lambda lines: [lines[0], lines[1].replace("repro", "pro")], "line 2: this line was"),
        (lambda lines: ["no JSON"], "line 1: damaged"),
    ],
)
def test_a_history_that_was_changed_is_refused(
    damage: Callable, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "T1.jsonl"
    rule = {"event": "rule", "text": "More\u2028 than\x85 less"}  # is a line all the same
    events = [rule, {"event": "verdict", "verdict": "reproduced"}]
    assert read_history(path).added(events[:1]).added(events[1:]).events == tuple(events)
    path.write_text("\n".join(damage(path.read_text().split("\n")[:-1])) + "\n")
    with pytest.raises(ValueError, match=message):
        read_history(path)


def test_a_rule_of_any_looks_is_read_again(tmp_path: Path) -> None:
    """A look at 12 seeds stands behind that at 5, and "12" before "5", where keys are texts."""
    for each in read_findings().values():
        begin(tmp_path, each, None)
        assert history_of(tmp_path, each.id).rule == each.sha256
        assert history_of(tmp_path, each.id).added([]).rule == each.sha256


def test_what_is_damaged_or_deleted_is_named(tmp_path: Path, run: Callable[..., Claims]) -> None:
    rule(tmp_path)
    run("T1")
    history = (tmp_path / "results" / "findings" / "T1.jsonl").read_text()
    (tmp_path / "results" / "findings" / "T1.jsonl").unlink()
    with pytest.raises(ValueError, match=r"was made for a rule of T1 that .*T1.jsonl does not"):
        read_claims(read_findings(tmp_path / "findings"), tmp_path / "results")
    (tmp_path / "results" / "findings" / "T1.jsonl").write_text(history)
    path = tmp_path / "results" / "some" / "1-seed100.json"
    text = path.read_text()
    path.write_text(text.replace('"seed": 100', '"seed": 109'))
    with pytest.raises(ValueError, match=r"1-seed100.json: damaged, its checksum"):
        read_results(tmp_path / "results")
    path.write_text(text)
    for questions in (tmp_path / "results" / "questions").iterdir():
        questions.unlink()
    with pytest.raises((ValueError, OSError), match="questions"):
        read_results(tmp_path / "results")


def test_a_rule_that_is_not_committed_is_not_run(tmp_path: Path) -> None:
    rule(tmp_path)
    found = list(read_findings(tmp_path / "findings").values())
    check_written(found)  # outside a checkout there is nothing to compare with
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    with pytest.raises(ValueError, match=r"T1.yaml is not committed as it is"):
        check_written(found)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "rules"], check=True)
    check_written(found)
    (tmp_path / "sweeps" / "some.yaml").write_text("changed: true")
    with pytest.raises(ValueError, match=r"some.yaml is not committed as it is"):
        check_written(found)


def test_the_verb_prints_rules_without_runs(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["--format", "json"])
    rows = json.loads(capsys.readouterr().out)
    assert "not run" in json.dumps(rows)


def test_the_page_is_written_once_the_runs_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    made: list[tuple[list[str], bool]] = []
    page = tmp_path / "page.html"
    monkeypatch.setattr(Running, "run", lambda _, ids: made.append((ids, page.exists())))
    monkeypatch.chdir(tmp_path)
    main(["--run", "F3", "F5", "--out", str(page)])
    assert made == [(["F3", "F5"], False)] and "not run" in page.read_text()
    assert "not run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "F99"], "there is no finding 'F99'"),
        (["--a.b=3"], "name a folder with --results"),
        (["--jobs=0"], "is not a whole number from 1 on"),
    ],
)
def test_what_the_verb_cannot_do_is_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_finding_goes_from_nothing_to_its_verdict(tmp_path: Path) -> None:
    """Two points, two seeds, two steps a stage: worlds, fits, results, a verdict; then nothing."""
    rule(tmp_path, experiment=REPOSITORY / "experiments" / "llava15.yaml")
    (tmp_path / "findings" / "T2.yaml").unlink()
    counts = {"train_images": 48, "eval_images": 40, "text_rows": 40}
    stage = {"data": {"max_steps": 2, "batch_size": 4, "feature_store": f"{tmp_path}/features"}}
    overlay = {
        "tiny_world": {"root": f"{tmp_path}/world/tiny", **counts},
        "paths": {"root": f"{tmp_path}/world/tiny"},
        "stages": {"align": stage, "instruct": stage},
        "data": {"max_new_tokens": 3},
    }
    (tmp_path / "sweeps" / "small.yaml").write_text(yaml.safe_dump(overlay))
    path = tmp_path / "sweeps" / "some.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"overlays": ["small.yaml"]}))
    rule_path = tmp_path / "findings" / "T1.yaml"
    looks = yaml.safe_load(rule_path.read_text()) | {"looks": {2: 0.05}}
    rule_path.write_text(yaml.safe_dump(looks))
    findings = read_findings(tmp_path / "findings")
    made = Running(findings, tmp_path / "results", tmp_path / "runs", jobs=2)
    verdict = made.run(["T1"]).verdicts["T1"]
    assert verdict.word in ("inconclusive", "no effect") and verdict.evidence.look.seeds == 2
    runs = read_results(tmp_path / "results")
    assert [(run.point, run.seed, run.worlds["tiny_world"]) for run in runs] == [
        (point, seed, seed + 900) for point in ("1", "2") for seed in (100, 101)
    ]
    # Two seeds have a world each, with questions of its own; two points of a seed have one.
    asked = [run.points["questions/accuracy"].content for run in runs]
    assert asked[0] == asked[2] != asked[1] == asked[3]
    assert sorted(path.name for path in (tmp_path / "world").iterdir()) == ["1000", "1001"]
    assert not list(made.lacking(["T1"], made.claims()))
