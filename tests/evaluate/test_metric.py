import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing

from llava_lab.evaluate.interval import estimate, wilson
from llava_lab.evaluate.metrics.normalize import exact_answer, says_yes, vqa_answer
from llava_lab.evaluate.metrics.question import ExactMatch, VQAAccuracy, YesNo
from llava_lab.evaluate.metrics.score import Score
from llava_lab.evaluate.ratio import Ratio, mean, mean_of_ratios


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The two dogs.", "2 dogs"),
        ("None", "0"),
        ("a\nred\tcar", "red car"),
        ("dont know", "don't know"),
        ("hed've", "he'd've"),
        ("the dog's", "dog 's"),
        ("1,000 people?", "1000 people"),
        ("black/white", "black white"),  # no space beside the mark: it becomes one
        ("black / white", "black white"),
        ("black -white-cat", "black whitecat"),  # one mark beside a space: all of its kind go
        ("x-/y c-d", "x y c d"),  # spaces are looked for before any mark becomes one
        ("(left)", "left"),
        ("1.5 m", "1.5 m"),
        (".5", ".5"),
        ("e.g. this", "eg this"),
        ("2.", "2"),  # quirk 1: a period after a digit is not spared
        ("." * 40 + "x", "." * 8 + "x"),  # quirk 2: 32 periods go and no more
        ("somebody'd", "somebodyd"),  # quirk 3: a reversed entry
        ("let's go", "let 's go"),
        ("twenty one", "twenty 1"),
        ("", ""),
    ],
)
def test_vqa_answer(text: str, expected: str) -> None:
    assert vqa_answer(text) == expected


def test_exact_answer() -> None:
    assert exact_answer(" Yes. ") == "yes"
    assert exact_answer("No. 5") == "no. 5"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No", False),
        ("no, there is none", False),
        ("There is not a dog.", False),
        ("Yes. There is no cat.", True),  # only the first sentence is read
        ("Yes", True),
        ("NO", True),  # odd, and as released
        ("nothing", True),
        ("No\nthanks", True),
        ("", True),
    ],
)
def test_says_yes(text: str, expected: bool) -> None:
    assert says_yes(text) is expected


def test_parts_of_a_category_count_in_it() -> None:
    metric = ExactMatch()
    metric.update(["a", "b", "c"], [["a"], ["a"], ["c"]], ["read/small", "read/large", "reads"])
    found = {name: (score.value, score.n) for name, score in metric.compute().items()}
    assert found == {
        "accuracy": (2 / 3, 3),
        "accuracy/read": (0.5, 2),
        "accuracy/read/large": (0.0, 1),
        "accuracy/read/small": (1.0, 1),
        "accuracy/reads": (1.0, 1),
    }


def test_exact_match_per_category() -> None:
    metric = ExactMatch()
    metric.update(["Red.", "blue"], [["red"], ["green", "Blue"]], ["color", "color"])
    metric.update(["2", "3"], [["2"], ["4"]], ["count", ""])
    found = metric.compute()
    assert set(found) == {"accuracy", "accuracy/color", "accuracy/count"}
    assert (found["accuracy"].value, found["accuracy"].n) == (0.75, 4)
    assert found["accuracy/color"] == Score(1.0, list(wilson(1, 2)), 2)
    assert found["accuracy/count"] == Score(1.0, [0.0, 1.0], 1)  # one question shows no spread


@pytest.mark.parametrize(
    ("agree", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_vqa_leave_one_out(agree: int, expected: float) -> None:
    answers = ["two"] * agree + [f"other {index}" for index in range(10 - agree)]
    assert VQAAccuracy().score("2.", answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["cat"], 1.0),
        (["dog"], 0.0),
        (["cat", "cat"], 1.0),
        (["cat", "dog"], 0.5),  # without the first 0 of 1 agree, without the second 1 of 1
        (["cat", "dog", "cow"], 1 / 3),
        (["cat"] * 4, 1.0),
        (["cat", "cat", "dog", "cow"], 1 / 2),
    ],
)
def test_vqa_with_other_numbers_of_answers(answers: list[str], expected: float) -> None:
    assert VQAAccuracy().score("the cat", answers) == pytest.approx(expected)


def test_interval_of_partial_scores_is_of_their_spread() -> None:
    metric = VQAAccuracy()
    people = [["b"] * k + ["c"] * (10 - k) for k in (0, 1, 2, 3, 4) * 8]
    metric.update(["b"] * 40, people, [""] * 40)
    score = metric.compute()["accuracy"]
    assert score.value == pytest.approx(0.56)
    # The standard error of the mean, by hand: sqrt(0.1384 / 39) = 0.0596; t(39) = 2.0227. Wilson's
    # form for 0.56 * 0.44 / 0.0596^2 = 69.4 questions pulls its middle toward a half by 0.0033.
    assert score.ci95 == pytest.approx([0.5567 - 0.1171, 0.5567 + 0.1171], abs=2e-4)


def test_pope_scores() -> None:
    metric = YesNo()
    # random: 3 true positives, 1 false positive, 2 true negatives, 2 false negatives.
    said = ["Yes"] * 4 + ["No."] * 4
    truth = [["yes"]] * 3 + [["no"]] * 3 + [["Yes"]] * 2
    metric.update(said, truth, ["random"] * 8)
    metric.update(["yes", "yes"], [["yes"], ["yes"]], ["popular"] * 2)
    found = metric.compute()
    assert found["accuracy/random"].value == pytest.approx(5 / 8)
    assert (found["precision/random"].value, found["precision/random"].n) == (0.75, 4)
    assert (found["recall/random"].value, found["recall/random"].n) == (0.6, 5)
    assert found["f1/random"].value == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert found["yes_ratio/random"].value == pytest.approx(0.5)
    assert found["f1/popular"].value == 1
    assert found["mean_f1"].value == pytest.approx((1 + 2 / 3) / 2)
    assert found["accuracy"].value == pytest.approx(0.7)
    assert found["f1"].value == pytest.approx(10 / 13)
    assert found["f1/random"].n == 6  # all but the right noes
    low, high = found["f1/random"].ci95
    assert 0.1 < low < 2 / 3 < high <= 1
    json.dumps({name: asdict(score) for name, score in found.items()})


def test_pope_when_nothing_is_answered_with_yes() -> None:
    metric = YesNo()
    metric.update(["no", "no"], [["yes"], ["no"]], ["random", "random"])
    found = metric.compute()
    assert found["precision"] == Score(0.0, [0.0, 1.0], 0)
    assert found["recall"] == Score(0.0, [0.0, 1.0], 1)
    assert found["f1"].value == 0
    assert found["accuracy"].value == 0.5


@pytest.mark.parametrize(
    ("share", "n", "expected"),
    [
        (0.8, 10, (0.4902, 0.9433)),
        (0, 10, (0.0, 0.2775)),
        (1, 10, (0.7225, 1.0)),
        (0.5, 100, (0.4038, 0.5962)),
        (0, 0, (0.0, 1.0)),
    ],
)
def test_wilson(share: float, n: int, expected: tuple[float, float]) -> None:
    assert wilson(share, n) == pytest.approx(expected, abs=5e-5)


def test_of_many_questions_with_pictures_of_their_own_the_interval_is_wilsons() -> None:
    for right in (3, 300, 997):
        scores = np.arange(1000) < right
        found = estimate(mean(1.0 * scores), range(1000))
        assert found.interval() == pytest.approx(wilson(right / 1000, 1000), abs=3e-4)
    for share in (0.0, 1.0):
        found = estimate(mean(np.full(50, share)), range(50))
        assert found.interval() == pytest.approx(wilson(share, 50))


def test_questions_of_one_picture_count_as_one_where_they_agree() -> None:
    pictures = np.arange(100) < 60
    once = estimate(mean(1.0 * pictures), range(100))
    thrice = estimate(mean(1.0 * np.repeat(pictures, 3)), np.repeat(np.arange(100), 3))
    assert (thrice.value, thrice.se, thrice.df) == (once.value, pytest.approx(once.se), once.df)
    assert (thrice.questions, thrice.clusters) == (300, 100)
    alone = estimate(mean(1.0 * np.repeat(pictures, 3)), range(300))
    assert alone.se == pytest.approx(thrice.se / 3**0.5, rel=0.01)


def test_standard_error_of_a_ratio_of_clusters_is_the_worked_one() -> None:
    # Cochran 6.3, by hand: got 1, 3, 2 of 2, 4, 2 gives 6/8; got - 0.75 of = -0.5, 0, 0.5, whose
    # squares sum to 0.5; times 3/2, and the root by 8.
    ratio = Ratio(np.array([1.0, 1, 2, 2]), np.array([2.0, 2, 2, 2]))
    found = estimate(ratio, ["a", "b", "b", "c"])
    assert found.value == 0.75 and found.se == pytest.approx(0.75**0.5 / 8)
    assert (found.df, found.clusters) == (2, 3)


def test_the_mean_of_ratios_errs_as_its_parts_do() -> None:
    generator = np.random.default_rng(0)
    kind = np.repeat([0, 1], [80, 40])
    right = generator.random(120) < np.where(kind == 0, 0.9, 0.4)
    parts = [Ratio(1.0 * (right & (kind == k)), 1.0 * (kind == k)) for k in (0, 1)]
    joined = mean_of_ratios(parts)
    shares = [right[kind == k].mean() for k in (0, 1)]
    assert joined.value == pytest.approx(np.mean(shares))
    # Independent parts: variances add, by four for the half that each counts.
    wanted = sum(p * (1 - p) / n for p, n in zip(shares, (80, 40), strict=True)) / 4
    assert estimate(joined, range(120)).se == pytest.approx(wanted**0.5, rel=0.01)
    empty = mean_of_ratios([parts[0], Ratio(np.zeros(120), np.zeros(120))])
    assert empty.value == pytest.approx(shares[0] / 2)


def test_states_survive_reset() -> None:
    metric = ExactMatch()
    metric.update(["a"], [["b"]], ["x"])
    metric.reset()
    metric.update(["a"], [["a"]], ["y"])
    assert metric.compute() == {
        "accuracy": Score(1.0, [0.0, 1.0], 1),
        "accuracy/y": Score(1.0, [0.0, 1.0], 1),
    }


def test_refusals() -> None:
    metric = YesNo()
    metric.update([], [], [])
    with pytest.raises(ValueError, match="YesNo has seen no question"):
        metric.compute()
    with pytest.raises(ValueError, match="2 predictions, 1 lists of answers and 2 categories"):
        metric.update(["yes", "no"], [["yes"]], ["a", "b"])
    with pytest.raises(ValueError, match="give exactly one, yes or no"):
        metric.update(["yes"], [["maybe"]], ["a"])
    with pytest.raises(ValueError, match="at least one answer"):
        ExactMatch().update(["yes"], [[]], ["a"])
    with pytest.raises(ValueError, match="list with at least one answer"):
        ExactMatch().update(["yes"], ["yes"], ["a"])
    with pytest.raises(ValueError, match="line break"):
        ExactMatch().update(["yes"], [["yes"]], ["a\nb"])


def rank(index: int, ranks: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=index, world_size=ranks
    )
    metric = YesNo()
    if index == 0:
        metric.update(["yes", "no", "yes"], [["yes"], ["no"], ["no"]], ["random", "été", "random"])
    if index == 1:
        metric.update(["no"], [["yes"]], ["a longer name"])
    found = {name: asdict(score) for name, score in metric.compute().items()}
    Path(folder, f"{index}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_ranks_agree_even_if_one_saw_nothing(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(
        rank, args=(3, str(tmp_path)), nprocs=3, start_method="fork"
    )
    together = YesNo()
    together.update(
        ["yes", "no", "yes", "no"],
        [["yes"], ["no"], ["no"], ["yes"]],
        ["random", "été", "random", "a longer name"],
    )
    expected = {name: asdict(score) for name, score in together.compute().items()}
    for index in range(3):
        assert json.loads((tmp_path / f"{index}.json").read_text()) == expected
