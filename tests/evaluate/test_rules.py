"""The rules of published benchmarks, on rows that were worked out by hand from each script."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_lab.data.questions import Question
from llava_lab.evaluate.metrics.choice import RULES, Choice, Circular
from llava_lab.evaluate.metrics.distance import ANLS, MathVista, RelaxedAccuracy, edit_distance
from llava_lab.evaluate.metrics.mmmu import MMMU
from llava_lab.evaluate.metrics.paired import PairedYesNo, yes_no_other

ROWS = yaml.safe_load((Path(__file__).parent / "official" / "rules.yaml").read_text("utf-8"))


def question(
    id: str = "1",
    answer: str = "A",
    choices: tuple[str, ...] = (),
    category: str | None = None,
    kind: str = "",
) -> Question:
    return Question(id, (), "?", category, (answer,), f"row {id}", choices=choices, kind=kind)


def test_each_rule_has_twenty_rows_that_were_worked_out_by_hand() -> None:
    assert set(RULES) < set(ROWS)
    assert {name: len(rows) for name, rows in ROWS.items() if len(rows) < 20} == {}


@pytest.mark.parametrize("rule", RULES)
def test_letters_are_found_as_each_script_finds_them(rule: str) -> None:
    found = {}
    for text, *options, letter in ROWS[rule]:
        choices = options[0] if options else ["one", "two", "three", "four", "five"]
        if (ours := RULES[rule](text.strip(), choices)) != letter:
            found[text] = ours, letter
    assert not found


def test_yes_and_no_of_mme_are_within_the_first_four_characters() -> None:
    wrong = {text for text, word in ROWS["yes_no"] if yes_no_other(text.strip()) != word}
    assert not wrong


@pytest.mark.parametrize(("name", "metric"), [("relaxed", RelaxedAccuracy()), ("anls", ANLS())])
def test_near_answers_score_as_published(name: str, metric: Any) -> None:
    found = {}
    for text, answers, score in ROWS[name]:
        accepted = answers if isinstance(answers, list) else [answers]
        if metric.score(text, accepted) != pytest.approx(score):
            found[text] = metric.score(text, accepted), score
    assert not found


def test_mathvista_compares_an_answer_in_its_form() -> None:
    metric, found = MathVista(), {}
    for text, kind, choices, answer, score in ROWS["mathvista"]:
        asked = question(answer=answer, choices=tuple(choices), kind=kind)
        if metric.rate(asked, text) != score:
            found[text, kind] = score
    assert not found
    with pytest.raises(ValueError, match="is not MathVista's"):
        metric.rate(question(kind="multi_choice text"), "A")


def test_open_questions_of_mmmu_are_right_by_a_key_phrase_or_a_number() -> None:
    metric, found = MMMU(), {}
    for text, answer, score in ROWS["open"]:
        if (ours := metric.rate(question(answer=answer, kind="open"), text)) != score:
            found[text, answer] = ours, score
    assert not found


def test_an_answer_of_mmmu_without_a_letter_scores_what_a_draw_does_on_average() -> None:
    asked = question(choices=("w", "x", "y", "z"), kind="multiple-choice")
    assert [MMMU().rate(asked, text) for text in ("A", "B", "none")] == [1, 0, 0.25]
    assert Choice("mmmu").rate(asked, "none") == 0.25
    assert Choice("scienceqa").rate(asked, "none") == 0


def test_a_choice_refuses_an_answer_that_is_none_of_its_letters() -> None:
    with pytest.raises(
        ValueError, match="row 1: its answer is 'C'; a multiple choice has one of A, B"
    ):
        Choice("exact").check([question(answer="C", choices=("w", "x"))])
    with pytest.raises(ValueError, match=r"metric\.rule is 'last'"):
        Choice("last")  # pyrefly: ignore


@pytest.mark.parametrize("rule", ["mmmu", "egoschema"])
def test_a_rule_that_looks_among_options_refuses_questions_without(rule: Any) -> None:
    """All answers were wrong in silence, and MMMU's a division by zero."""
    with pytest.raises(ValueError, match="row 1: its options are not known, among which"):
        Choice(rule).check([question()])
    with pytest.raises(ValueError, match="row 1: its options are not known, among which"):
        MMMU().check([question(kind="multiple-choice")])


def test_the_first_order_is_that_of_the_lowest_id_wherever_it_stands() -> None:
    choices, metric = ("cat", "dog"), Circular()
    asked = [question("1000007", "A", choices), question("7", "B", choices)]
    metric.grade(asked, ["A", "A"])
    assert metric.compute()["accuracy"].value == 0


def test_edits_are_counted_as_by_levenshtein() -> None:
    pairs = {("kitten", "sitting"): 3, ("", "ab"): 2, ("ab", ""): 2, ("ab", "ba"): 2, ("a", "a"): 0}
    assert {pair: edit_distance(*pair) for pair in pairs} == pairs


def test_a_circular_question_is_right_only_in_all_orders() -> None:
    ids = ["7", "1000007", "2000007", "8", "1000008", "9"]
    answers = ["A", "B", "A", "A", "B", "B"]
    asked = [
        question(id, answer, ("cat", "dog"), "coarse/scene" if id.endswith("7") else "fine/x")
        for id, answer in zip(ids, answers, strict=True)
    ]
    said = ["A", "B.", "cat", "A", "A", "a bird"]
    metric = Circular()
    metric.check(asked)
    lines = metric.grade(asked, said)
    assert [line["correct"] for line in lines] == [1, 1, 1, 1, 0, 0]
    scores = {name: (score.value, score.n) for name, score in metric.compute().items()}
    assert scores["circular"] == (pytest.approx(1 / 3), 3)
    assert scores["accuracy"] == (pytest.approx(2 / 3), 3)
    assert scores["unmatched"] == (pytest.approx(1 / 6), 6)
    assert scores["circular/coarse"] == scores["circular/coarse/scene"] == (1.0, 1)
    assert scores["circular/fine"] == (0.0, 2)
    with pytest.raises(ValueError, match="the id 'x' is no whole number"):
        metric.check([question("x", choices=("cat", "dog"))])
    with pytest.raises(ValueError, match="two questions have the id '7'"):
        metric.check([asked[0], asked[0]])


def test_a_circular_question_counts_only_where_all_of_its_orders_were_answered() -> None:
    """It was right in all orders where the others were not asked: plain accuracy."""
    choices, metric = ("cat", "dog"), Circular()
    ids = {"7": "A", "8": "A", "1000007": "B", "1000008": "B"}
    asked = [question(id, answer, choices) for id, answer in ids.items()]
    metric.check(asked)
    metric.grade(asked[:3], ["A", "A", "B"])  # a trainer that limits batches
    found = metric.compute()["circular"]
    assert (found.value, found.n) == (1.0, 1)
    with pytest.raises(ValueError, match="no question is there in a second order"):
        Circular().check(asked[:2])


@pytest.mark.parametrize(
    ("metric", "ids"),
    [
        (Circular(), ["7", "8", "1000007", "1000008"]),
        (PairedYesNo({"perception": ["row"]}), ["a", "a", "b", "b"]),
    ],
)
def test_a_limit_does_not_part_what_is_scored_together(metric: Any, ids: list[str]) -> None:
    asked = [question(id, "A", ("cat", "dog"), "row") for id in ids]
    with pytest.raises(ValueError, match=rf"is scored together with '{asked[-1].id}'.*limit: 3"):
        metric.first(asked, 3)
    assert metric.first(asked, 4) == metric.first(asked, 5) == asked


def mme(*tasks: tuple[str, str, str]) -> tuple[list[Question], list[str]]:
    """Questions and answers: of each a task, a picture and what is said to its yes and its no."""
    asked, said = [], []
    for task, picture, answers in tasks:
        for right, text in zip(("Yes", "No"), answers.split(), strict=True):
            asked.append(question(f"{task}/{picture}", right, category=task))
            said.append(text)
    return asked, said


def test_points_of_mme_are_sums_of_two_percentages_over_tasks() -> None:
    metric = PairedYesNo({"perception": ["color", "count"], "cognition": ["code"]})
    asked, said = mme(
        ("color", "1", "Yes No"),  # both: 2 of 2
        ("color", "2", "Yes Yes"),  # 1 of 2
        ("color", "3", "maybe No"),  # 1 of 2: neither yes nor no is wrong
        ("color", "4", "no yes"),  # none
        ("count", "1", "Yes, No."),  # both
        ("count", "2", "No Yes"),
        ("code", "1", "Yes Nothing"),  # "noth" holds a no
    )
    metric.check(asked)
    lines = metric.grade(asked, said)
    assert [line["correct"] for line in lines] == [1, 1, 1, 0, 0, 1, 0, 0, 1, 1, 0, 0, 1, 1]
    found = {name: score.value for name, score in metric.compute().items()}
    expected = {
        **{"accuracy": 8 / 14, "accuracy_plus": 3 / 7},
        **{"accuracy/color": 4 / 8, "accuracy_plus/color": 1 / 4, "points/color": 0.75},
        **{"accuracy/count": 2 / 4, "accuracy_plus/count": 1 / 2, "points/count": 1.0},
        **{"accuracy/code": 1.0, "accuracy_plus/code": 1.0, "points/code": 2.0},
        # In percent: 175 of 400, 200 of 200, 375 of 600.
        **{"perception": 1.75, "cognition": 2.0, "total": 3.75},
    }
    assert found == pytest.approx(expected)
    assert metric.ratios()["perception"].top == 4


def test_a_picture_of_mme_whose_second_question_was_not_answered_is_left_out() -> None:
    metric = PairedYesNo({"perception": ["color"]})
    asked, said = mme(("color", "1", "Yes No"), ("color", "2", "Yes No"))
    assert metric.grade(asked[:3], said[:3])[2] == {}
    assert metric.compute()["perception"].value == 2.0
    with pytest.raises(ValueError, match=r"1 questions have the id 'color/2'; each picture"):
        metric.check(asked[:3])
    with pytest.raises(ValueError, match="row color/1: its answer is 'maybe'"):
        metric.check([question("color/1", "Maybe", category="color")])
    with pytest.raises(ValueError, match="its task is 'shape'"):
        metric.check([question("1", "Yes", category="shape")])
    with pytest.raises(ValueError, match="each task is in exactly one group"):
        PairedYesNo({"a": ["color"], "b": ["color"]})
