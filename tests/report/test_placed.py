"""Placed: runs in the rows that they are; who has none, or shares one, is named."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from test_matching import golden
from test_table import results, write

from llava_lab.report.benchmarks import listed
from llava_lab.report.placed import Group, Ours, place, score_keys
from llava_lab.report.published import published
from llava_lab.report.runs import read


def group_of(
    folder: Path, config: dict[str, Any], accuracies: tuple[float, ...] = (0.6,), **changes: Any
) -> Group:
    """Runs of a configuration, one a seed, as a fit leaves them."""
    runs = []
    for seed, accuracy in enumerate(accuracies):
        text = yaml.safe_dump({**config, "seed_everything": seed})
        content = results(seed, accuracy, scale=config["scale"], **changes)
        runs.append(read(write(folder / str(seed), content, text)))
    return folder.name, runs


def with_connector(config: dict[str, Any], name: str, **options: Any) -> dict[str, Any]:
    return {**config, "model": {**config["model"], "connector": {"class_path": name, **options}}}


def test_a_tiny_run_is_in_the_row_that_it_is(tmp_path: Path) -> None:
    group = group_of(tmp_path / "mine", golden("llava15.tiny"))
    placed, notes = place(published("llava15/table2"), [group])
    assert {scale: list(of) for scale, of in placed.items()} == {"tiny": ["8 + ShareGPT"]}
    assert notes == []


def test_a_run_that_is_no_row_is_told_what_keeps_it_from_the_nearest(tmp_path: Path) -> None:
    config = with_connector(golden("llava15.tiny"), "a.Linear")
    placed, notes = place(published("llava15/table2"), [group_of(tmp_path / "mine", config)])
    assert placed == {}
    assert notes == [
        "mine is none of the rows. Nearest is 2 + format prompt: resolution is 336, not 224."
    ]
    other = group_of(tmp_path / "other", golden("llava_next_video_dpo.tiny"))
    _, notes = place(published("llava15/table2"), [other])
    assert "other is none of the rows. Nearest is " in notes[0] and " more." in notes[0]
    _, notes = place(published("smolvlm/card"), [other])
    assert notes == ["other: no row of this table can be reproduced at its scale."]


def test_two_configurations_that_are_one_row_are_both_left_out(tmp_path: Path) -> None:
    config = golden("llava15.tiny")
    connector = "llava_lab.model.connector.resampler.Resampler"
    groups = [
        group_of(tmp_path / f"{n}", with_connector(config, connector, latents=n, depth=3))
        for n in (9, 36)
    ]
    groups.append(group_of(tmp_path / "mlp", config))
    placed, notes = place(published("tinyllava/figure6"), groups)
    assert list(placed["tiny"]) == ["MLP"]
    assert notes == [
        "Resampler: several configurations or versions are this row, and none is placed: 9, 36."
    ]


def test_one_configuration_of_two_sweeps_is_placed_once(tmp_path: Path) -> None:
    config = golden("llava15.tiny")
    few = group_of(tmp_path / "first", config)
    more = group_of(tmp_path / "mlp2", config, (0.5, 0.7))
    for groups in ([few, more], [more, few]):
        placed, notes = place(published("llava15/table2"), groups)
        assert placed["tiny"]["8 + ShareGPT"].label == "mlp2" and notes == []


def test_results_without_a_configuration_are_not_placed(tmp_path: Path) -> None:
    alone = read(write(tmp_path / "alone", results()))
    placed, notes = place(published("llava15/table2"), [("alone", [alone])])
    assert placed == {}
    assert notes == ["alone: no config.yaml beside its results, by which to place it."]


def test_a_configuration_that_was_changed_after_the_run_is_refused(tmp_path: Path) -> None:
    group = group_of(tmp_path / "mine", golden("llava15.tiny"))
    path = group[1][0].path.with_name("config.yaml")
    path.write_text(path.read_text().replace("resolution: 336", "resolution: 224"))
    with pytest.raises(ValueError, match=r"config\.yaml: damaged, not the configuration of the"):
        place(published("llava15/table2"), [group])


def test_scales_stand_apart(tmp_path: Path) -> None:
    groups = [group_of(tmp_path / s, golden(f"llava15.{s}")) for s in ("tiny", "small", "paper")]
    placed, _ = place(published("llava15/table2"), groups)
    assert {scale: list(of) for scale, of in placed.items()} == {
        scale: ["8 + ShareGPT"] for scale in ("tiny", "small", "paper")
    }


def test_an_accuracy_of_each_benchmark_is_shown_or_what_is_asked_for(tmp_path: Path) -> None:
    ours = Ours.of(group_of(tmp_path / "mine", golden("llava15.tiny")))
    assert score_keys([ours], []) == ["scenes/accuracy", "pope/f1"]
    assert score_keys([ours], ["scenes/accuracy/count"]) == ["scenes/accuracy/count"]
    with pytest.raises(ValueError, match=r"'scenes/f1' is in none of the runs; there are scenes/"):
        score_keys([ours], ["scenes/f1"])


def gqa(questions: str, metric: str) -> dict[str, Any]:
    config = golden("llava15.paper")
    (shipped,) = (each.options for each in listed(["gqa"]) if each.file == "gqa")
    asked = {**shipped, "name": "scenes", "questions": questions}
    asked["metric"] = {"class_path": f"llava_lab.evaluate.metrics.question.{metric}"}
    return {**config, "data": {**config["data"], "benchmarks": [asked]}}


@pytest.mark.parametrize(
    ("questions", "metric", "scale", "same"),
    [
        ("data/gqa/llava_gqa_testdev_balanced.jsonl", "ExactMatch", "paper", True),
        ("data/gqa/llava_gqa_testdev_balanced.jsonl", "VQAAccuracy", "paper", False),
        ("data/questions.jsonl", "ExactMatch", "paper", False),
        ("data/gqa/llava_gqa_testdev_balanced.jsonl", "ExactMatch", "tiny", False),
    ],
)
def test_a_benchmark_is_a_published_column_by_its_questions_and_its_rule(
    questions: str, metric: str, scale: str, same: bool, tmp_path: Path
) -> None:
    config = {**gqa(questions, metric), "scale": scale}
    ours = Ours.of(group_of(tmp_path / "mine", config))
    column = next(each for each in published("llava15/table3").columns if each.name == "GQA")
    assert ours.measures(column, "scenes/accuracy") is same
    assert ours.measures(column, "scenes/accuracy/count") is False


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("limit", 10, "limit is 10, not None"),
        ("prompt", "Explain at length.", "prompt is 'Explain at length.', not None"),
        ("max_new_tokens", 16, "max_new_tokens is 16, not 128"),
        (
            "columns",
            {"answers": "{label.fullAnswer}"},
            "columns.answers is '{label.fullAnswer}'",
        ),
        ("blind", True, None),
        ("images", "elsewhere", None),
    ],
)
def test_a_benchmark_that_is_asked_otherwise_does_not_compare(
    option: str, value: Any, said: str | None, tmp_path: Path
) -> None:
    config = gqa("data/gqa/llava_gqa_testdev_balanced.jsonl", "ExactMatch")
    asked = config["data"]["benchmarks"][0]
    asked[option] = {**asked[option], **value} if isinstance(value, dict) else value
    ours = Ours.of(group_of(tmp_path / "mine", config))
    column = next(each for each in published("llava15/table3").columns if each.name == "GQA")
    reason = ours.apart(column, "scenes/accuracy")
    if said is None:
        assert reason is None
    else:
        assert reason is not None and reason.startswith(f"asked otherwise than GQA: {said}")
        assert reason.endswith(" (configs/benchmarks/gqa.yaml)")


def test_part_of_a_benchmark_does_not_compare(tmp_path: Path) -> None:
    config = gqa("data/gqa/llava_gqa_testdev_balanced.jsonl", "ExactMatch")
    ours = Ours.of(group_of(tmp_path / "mine", config))
    ours.runs[0].results["answered"] = {"scenes": {"answered": 8, "questions": 12578}}
    column = next(each for each in published("llava15/table3").columns if each.name == "GQA")
    assert ours.apart(column, "scenes/accuracy") == "8 of 12578 questions were answered"
