"""Scores that compare texts, on rows that were worked out by hand from each published rule."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_lab.data.questions import Question
from llava_lab.evaluate.metrics.captions import Captions, caption_scores
from llava_lab.evaluate.metrics.distance import TreeDistance, edit_distance
from llava_lab.evaluate.metrics.wups import Lexicon, Wups

ROWS = yaml.safe_load((Path(__file__).parent / "official" / "texts.yaml").read_text("utf-8"))
FORMS = {"dogs": "dog", "ran": "run"}
LIKE = {("dog", "puppy"): 0.5, ("cat", "dog"): 0.25}


def question(id: str, answers: list[str], category: str | None = None) -> Question:
    return Question(id, (), "What?", category, tuple(answers), f"row {id}")


def test_each_table_of_texts_has_twenty_rows() -> None:
    assert {name: len(rows) for name, rows in ROWS.items() if len(rows) < 20} == {}


def test_edits_of_long_texts_are_those_of_the_table() -> None:
    def table(one: str, other: str) -> int:
        row = list(range(len(other) + 1))
        for number, character in enumerate(one, 1):
            last, row[0] = row[0], number
            for at, theirs in enumerate(other, 1):
                best = min(row[at] + 1, row[at - 1] + 1, last + (character != theirs))
                last, row[at] = row[at], best
        return row[-1]

    draw = random.Random(0)
    for _ in range(40):
        one, other = ("".join(draw.choices("abc", k=draw.randrange(90))) for _ in range(2))
        assert edit_distance(one, other) == table(one, other), (one, other)


def test_trees_of_synthdog_are_compared_as_published() -> None:
    metric = TreeDistance()
    found = {
        (said, answer): metric.score(said, [answer])
        for said, answer, score in ROWS["tree"]
        if metric.score(said, [answer]) != pytest.approx(score, abs=1e-6)
    }
    assert not found
    with pytest.raises(ValueError, match="SynthDoG has one"):
        metric.score("a", ["a", "b"])


@pytest.fixture
def wups(monkeypatch: pytest.MonkeyPatch) -> Wups:
    """The metric with five words and what they mean."""
    lexicon = Lexicon(
        lambda sentence: [FORMS.get(word, word) for word in sentence.split()],
        str.split,
        lambda one, other: LIKE.get((min(one, other), max(one, other)), 0.0),
    )
    monkeypatch.setattr("llava_lab.evaluate.metrics.wups._wordnet", lambda: lexicon)
    return Wups()


def test_open_answers_of_nextqa_score_by_their_nearest_words(wups: Wups) -> None:
    found = {}
    for said, answers, kind, score in ROWS["wups"]:
        ours = wups.rate(question("1", answers, f"{kind[0]}/{kind}"), said)
        if ours != pytest.approx(score):
            found[said, kind] = ours, score
    assert not found
    asked = [question("1", ["dog"], "C/CW"), question("2", ["yes"], "D/DB")]
    wups.check(asked)
    wups.grade(asked, ["puppy", "no"])
    scores = {name: score.value for name, score in wups.compute().items()}
    assert scores["accuracy"] == 0.25 and scores["accuracy/C"] == scores["accuracy/C/CW"] == 0.5


def test_what_scores_texts_is_named_where_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nltk", "nltk.corpus", "pycocoevalcap", "pycocoevalcap.cider.cider"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match="pip install nltk pywsd, then python -m nltk"):
        Wups().check([question("1", ["dog"])])
    with pytest.raises(ValueError, match=r"pip install -e '\.\[captions\]'"):
        Captions().check([question("1", ["a dog"])])


class Lines:
    """Stands for pycocoevalcap's tokenizer: one text for all captions, read line by line."""

    def tokenize(self, captions: dict[int, list[dict[str, str]]]) -> dict[int, list[str]]:
        keys = [key for key, each in captions.items() for _ in each]
        texts = [one["caption"].replace("\n", " ") for each in captions.values() for one in each]
        found: dict[int, list[str]] = {key: [] for key in captions}
        for key, line in zip(keys, "\n".join(texts).splitlines(), strict=False):
            found[key].append(line)
        return found


class Equal:
    """Scores 1 where a caption is the only reference."""

    def compute_score(self, told: dict, said: dict) -> tuple[float, list[float]]:
        return 0.0, [float(told[key] == said[key]) for key in told]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\r", "\r\n", "\x0b", "\n"])
def test_a_caption_of_several_lines_moves_no_other(mark: str, monkeypatch) -> None:
    """Each line behind it was scored against the references of the picture before."""
    scorers = (Lines(), Equal(), Equal())
    monkeypatch.setattr("llava_lab.evaluate.metrics.captions._scorers", lambda: scorers)
    told = [["a dog"], ["a cat"], ["a hill"]]
    assert caption_scores([f"a{mark}dog", "a cat", "a hill"], told) == [(1.0, 1.0)] * 3
    assert caption_scores(["a dog", "a cat", "a hill"], [[f"a{mark}dog"], *told[1:]])[2] == (1, 1)


@pytest.mark.slow
def test_captions_score_as_coco_scores_them() -> None:
    pytest.importorskip("pycocoevalcap")

    def own(text: str, row: int) -> str:
        """A text whose words no other row has."""
        return " ".join(
            f"{word[0]}{chr(97 + row)}q{word[1:]}" if word[0].isalpha() else word
            for word in text.split()
        )

    asked: list[Question] = []
    said: list[str] = []
    for row, (text, references, _) in enumerate(ROWS["cider"]):
        asked.append(question(str(row), [own(each, row) for each in references]))
        said.append(own(text, row))
    metric: Any = Captions()
    metric.check(asked)
    lines = metric.grade(asked, said)
    found = {
        text: (line["cider"], score)
        for (text, _, score), line in zip(ROWS["cider"], lines, strict=True)
        if line["cider"] != pytest.approx(score, abs=1e-5)
    }
    assert not found
    assert lines[0]["rouge_l"] == 1 and lines[6]["rouge_l"] == 0 and lines[0]["correct"] == 1
    mean = sum(score for *_, score in ROWS["cider"]) / len(said)
    assert metric.compute()["cider"].value == pytest.approx(mean)
