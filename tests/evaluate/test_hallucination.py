"""CHAIR and untrue sentences, counted by hand."""

import json
from pathlib import Path

import pytest

from llava_lab.evaluate.metrics.hallucination import Chair, statements
from llava_lab.evaluate.metrics.question import YesNo
from llava_lab.tiny_world.scene import COLORS, SHAPES

COCO = Chair({"dog": ["puppy", "dogs"], "traffic light": []}, [], statements=False)


def tiny() -> Chair:
    return Chair({shape: [] for shape in SHAPES}, list(COLORS), statements=True)


def test_mentions_are_found_under_every_name() -> None:
    assert COCO.mentions("A Puppy and two dogs at the traffic light; a hotdog.") == [
        *("dog", "dog", "traffic light")
    ]
    assert tiny().mentions("A red star, the star and a large blue circle.") == [
        *("red star", "star", "blue circle")
    ]


def test_an_attribute_of_two_words_is_one() -> None:
    """A circle was invented where a light blue circle is."""
    metric = Chair({"circle": []}, ["blue", "light blue"], statements=False)
    there = ["There is a light blue circle."]
    assert metric.invented("A circle, a light blue circle.", there) == []
    assert metric.invented("A blue circle.", there) == ["blue circle"]


def test_statements_are_compared_as_answers_are() -> None:
    said = "A red star moves left. The sign says N. a RED star moves left"
    assert statements(said) == ["red star moves left", "sign says n"]


def test_shares_are_those_counted_by_hand() -> None:
    metric = tiny()
    truths = ["A red star moves left.", "There is a blue ring twice.", "The sign says N."]
    said = [
        "A red star moves left. There is a blue ring twice.",  # all true
        "A red star moves up. There is a green ring twice.",  # a way, a color
        "For a moment there is a blue heart. The star moves left.",  # an object
    ]
    metric.update(said, [truths] * 3, [""] * 3)
    found = metric.compute()
    assert set(found) == {"chair_i", "chair_s", "recall", "untrue"}
    assert not metric.repeats  # no description is that of all
    assert (found["chair_i"].value, found["chair_i"].n) == (2 / 6, 3)
    assert (found["chair_s"].value, found["chair_s"].n) == (2 / 3, 3)
    assert (found["recall"].value, found["recall"].n) == (3 / 6, 3)
    assert (found["untrue"].value, found["untrue"].n) == (4 / 6, 3)
    assert 0 < found["chair_i"].ci95[0] < 1 / 3 < 0.5 < found["chair_i"].ci95[1] < 1
    assert metric.line(said[1], truths) == {
        "correct": 0.0,
        "invented": ["green ring"],
        "untrue": ["red star moves up", "there is green ring twice"],
    }
    objects = Chair({"dog": ["puppy"], "cat": []}, [], statements=False)
    objects.update(["A puppy and a cat."], [["dog"]], [""])
    assert objects.compute()["chair_i"].value == 0.5 and "untrue" not in objects.compute()
    with pytest.raises(ValueError, match=r"metric\.objects is empty"):
        Chair({}, [], statements=False)


def test_the_tiny_worlds_pairs_differ_in_what_is_measured(small_videos: Path) -> None:
    """Chosen answers are free of it, and every rejected one has an untrue sentence."""
    prompts = (small_videos / "prompts.jsonl").read_text().splitlines()
    answers = {row["video"]: row["answers"] for row in map(json.loads, prompts)}
    pairs = [json.loads(row) for row in (small_videos / "preferences.jsonl").open()]
    metric = tiny()
    for pair in pairs:
        assert metric.score(pair["chosen"], answers[pair["video"]]) == 1
        assert len(metric.line(pair["rejected"], answers[pair["video"]])["untrue"]) == 1
    assert {pair["video"] for pair in pairs} == set(answers)


def test_silence_invents_nothing_and_recalls_nothing() -> None:
    metric = tiny()
    metric.update([""], [["A red star moves left."]], [""])
    assert {name: (each.value, each.n) for name, each in metric.compute().items()} == {
        "chair_i": (0.0, 0),
        "chair_s": (0.0, 1),
        "recall": (0.0, 1),
        "untrue": (0.0, 0),
    }


def test_yes_to_what_is_absent() -> None:
    metric = YesNo()
    metric.update(["yes", "no", "yes", "no"], [["no"], ["no"], ["yes"], ["no"]], ["random"] * 4)
    found = metric.compute()["hallucination/random"]
    assert (found.value, found.n) == (1 / 3, 3)
