"""Points: what each question gave, read again; what is damaged or of another run is refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_table import results, write

from llava_lab.core.records import file_sha256
from llava_lab.data.questions import Question
from llava_lab.evaluate.metrics.hallucination import Chair
from llava_lab.evaluate.metrics.paired import PairedYesNo
from llava_lab.evaluate.metrics.question import ExactMatch, YesNo
from llava_lab.evaluate.points import PointsFile, clusters_of
from llava_lab.report.estimate import difference_of
from llava_lab.report.rows import signed_figures
from llava_lab.report.runs import RunResults, read


def questions(count: int, world: str = "w") -> list[Question]:
    """Two questions a picture, of two kinds."""
    return [
        Question(
            f"{n}", (Path(f"/{world}/eval/{n // 2}.png"),), "?", f"kind/{n % 2}", ("yes",), "q"
        )
        for n in range(count)
    ]


def keep(
    folder: Path,
    said: Sequence[str],
    metric: Any = None,
    seed: int = 0,
    world: str = "w",
    asked: Sequence[Question] = (),
    **passes: Sequence[str],
) -> RunResults:
    """A run that said so, and so in its other passes, with its points."""
    asked, kept = list(asked) or questions(len(said), world), PointsFile()
    rule = metric or ExactMatch()
    kept.begin("scenes", asked, world)
    scores = {}
    for prefix, texts in {"": said, **passes}.items():
        rule.grade(asked, texts)
        places = list(range(len(texts)))
        kept.add("scenes", prefix, places, rule.ratios(), split=rule.split, means=rule.means)
        for name, ratio in rule.all_ratios().items():
            known = {"value": ratio.value, "ci95": [0.0, 1.0], "n": ratio.n}
            scores[f"{prefix}{name}"] = known
    content = results(seed, benchmarks={"scenes": scores})
    folder.mkdir(parents=True)
    kept.write(folder / "points.json")
    content["points_sha256"] = file_sha256(folder / "points.json")
    return read(write(folder / "run", content).rename(folder / "results.json"))


def test_points_are_read_as_they_were_scored(tmp_path: Path) -> None:
    found = keep(tmp_path / "a", ["yes", "no", "yes", "yes"]).points
    assert [score for _, score in found] == [
        *("accuracy", "accuracy/kind", "accuracy/kind/0", "accuracy/kind/1")
    ]
    points = found["scenes", "accuracy/kind/1"]
    assert points.got.tolist() == [0, 0, 0, 1] and points.of.tolist() == [0, 1, 0, 1]
    assert points.clusters.tolist() == ["eval/0.png", "eval/0.png", "eval/1.png", "eval/1.png"]
    assert points.ids.tolist() == ["0:0", "1:1", "2:2", "3:3"]


def test_means_over_categories_are_read_again(tmp_path: Path) -> None:
    metric = YesNo()
    found = keep(tmp_path / "a", ["yes", "no", "yes", "yes", "no", "yes"], metric).points
    assert found["scenes", "mean_f1"].ratio.value == metric.compute()["mean_f1"].value
    parts = [found["scenes", f"f1/kind/{n}"].ratio.value for n in (0, 1)]
    assert found["scenes", "mean_f1"].ratio.value == pytest.approx(sum(parts) / 2)


def test_one_changed_answer_is_one_flip_in_a_mean_of_scores(tmp_path: Path) -> None:
    """Every question flipped: each part is moved by the run's own scores."""
    said = ["yes", "no", "yes", "yes", "no", "yes"]
    one = keep(tmp_path / "a", said, YesNo()).points["scenes", "mean_f1"]
    other = keep(tmp_path / "b", ["no", *said[1:]], YesNo()).points["scenes", "mean_f1"]
    assert difference_of([(one, other)]).flipped == 1
    assert difference_of([(one, one)]).flipped == 0


def test_one_changed_answer_is_one_flip_in_points_of_mme(tmp_path: Path) -> None:
    """Whichever question of its picture it is, and in no task but its own."""
    metric = PairedYesNo({"perception": ["color", "count"], "cognition": ["code"]})
    asked = [
        Question(f"{n}", (Path(f"/{task}{n}.png"),), "?", task, (answer,), "q")
        for task in ("color", "count", "code")
        for n in range(3)
        for answer in ("yes", "no")
    ]
    said = ["yes", "no", "no", "no", "yes", "yes"] * 3
    changed = [said[0], "yes", *said[2:]]
    one = keep(tmp_path / "a", said, metric, asked=asked)
    other = keep(tmp_path / "b", changed, metric, asked=asked)
    sums = ("points/color", "points/count", "perception", "cognition", "total")
    keys = [("scenes", score) for score in sums]
    flips = [difference_of([(one.points[key], other.points[key])]).flipped for key in keys]
    assert flips == [1, 0, 1, 0, 1]

    old = json.loads((tmp_path / "b" / "points.json").read_text())
    for score in old["benchmarks"]["scenes"]["passes"][""]["scores"].values():
        score.pop("raw", None)
    older = RunResults(tmp_path / "old.json", other.results, old)
    every = {key: difference_of([(one.points[key], older.points[key])]) for key in keys}
    assert {each.flipped for each in every.values()} == {None}
    assert not any("flipped" in figure.text for figure in signed_figures(every).values())
    key = ("scenes", "accuracy/color")
    assert difference_of([(one.points[key], older.points[key])]).flipped == 1


def test_descriptions_have_no_categories(tmp_path: Path) -> None:
    said = ["yes a dog", "a cat", "a dog"]
    metric = Chair({"dog": [], "cat": []}, [], statements=False)
    found = keep(tmp_path / "a", said, metric).points
    assert [score for _, score in found] == ["chair_i", "chair_s", "recall"]


def test_runs_without_points_have_none(tmp_path: Path) -> None:
    assert read(write(tmp_path / "old", results())).points == {}


def test_points_may_be_kept_elsewhere(tmp_path: Path) -> None:
    run = keep(tmp_path / "a", ["yes", "no"])
    content = json.loads((tmp_path / "a" / "points.json").read_text())
    moved = RunResults(tmp_path / "b" / "one.json", run.results, content)
    assert moved.points.keys() == run.points.keys()


def test_points_of_another_run_are_refused(tmp_path: Path) -> None:
    run = keep(tmp_path / "a", ["yes", "no"])
    keep(tmp_path / "b", ["no", "no"])
    (tmp_path / "b" / "points.json").rename(tmp_path / "a" / "points.json")
    with pytest.raises(ValueError, match=r"points\.json: damaged, or not the points of"):
        _ = run.points


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda kept: kept["ids"].pop(), "are not as many"),
        (lambda kept: kept["passes"][""]["places"].append(9), "a place beyond its 2 questions"),
        (lambda kept: kept["passes"][""]["scores"]["accuracy"].update(got=[1]), "1.* numbers of 2"),
        (lambda kept: kept["passes"][""]["scores"]["accuracy"].pop("of"), "'of'"),
        (
            lambda kept: kept["passes"][""]["scores"]["accuracy"].update(got=1),
            "has accuracy 1, .*0.5",
        ),
        (lambda kept: kept.pop("questions"), "'questions'"),
    ],
)
def test_what_is_damaged_is_named(change: Any, message: str, tmp_path: Path) -> None:
    run = keep(tmp_path / "a", ["yes", "no"])
    content = json.loads((tmp_path / "a" / "points.json").read_text())
    change(content["benchmarks"]["scenes"])
    with pytest.raises(ValueError, match=f"one.json: benchmark scenes .*{message}.*`fit` the run"):
        _ = RunResults(tmp_path / "one.json", run.results, content).points


def test_a_question_without_a_picture_is_a_cluster_of_its_own() -> None:
    bare = Question("same", (), "?", None, ("x",), "q")
    assert clusters_of([bare, bare]) == ["question 0", "question 1"]


def test_two_pictures_are_two_clusters_however_deep_their_names_differ() -> None:
    """They were one, and intervals were of too few pictures."""

    def about(*names: str) -> list[Question]:
        return [Question("q", (Path(f"/data/{n}"),), "<image>", None, ("x",), "q") for n in names]

    assert clusters_of(about("a/1.png", "a/1.png")) == ["a/1.png", "a/1.png"]
    deep = clusters_of(about("a/x/1.png", "b/x/1.png", "a/x/1.png", "a/x/2.png"))
    assert deep == ["a/x/1.png", "b/x/1.png", "a/x/1.png", "a/x/2.png"]
