"""The 595K filter on 5,000 captions whose counts are known by how they are made."""

import importlib.util
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from llava_lab.__main__ import main
from llava_lab.data.rows import BadRows
from llava_lab.data.sample import read_samples
from llava_lab.data.source import Source
from llava_lab.make_data import phrases as module
from llava_lab.make_data.balance import balance
from llava_lab.make_data.captions import read_captions
from llava_lab.make_data.phrases import NounPhrases, find_phrases

COLORS = ("red", "green", "blue", "white", "black", "brown", "grey", "pink")
NOUNS = ("fox", "car", "boat", "lamp", "chair", "horse", "tree", "house", "bottle", "train")


def names() -> Iterable[str]:
    """80 noun phrases, one after another."""
    return (f"a {color} {noun}" for color, noun in itertools.product(COLORS, NOUNS))


def five_thousand() -> tuple[list[str], dict[str, int], int]:
    """Captions; how many of each phrase the rule keeps; how many it keeps in all.

    Blocks share no phrases; in one of them captions have two, a scarce one and a frequent one.
    """
    name = iter(names())
    captions: list[str] = []
    kept: dict[str, int] = {}

    def block(phrases: int, each: int, stay: int) -> None:
        for _ in range(phrases):
            phrase = next(name)
            captions.extend([f"{phrase} at night"] * each)
            kept[phrase] = stay

    block(6, 1, 0)
    block(10, 2, 0)  # too rare
    block(8, 3, 3)  # as rare as may be
    block(20, 40, 40)
    block(1, 100, 100)  # not more than 100
    block(1, 101, 100)  # more
    block(2, 1500, 100)
    frequent = next(name)
    for _ in range(10):  # scarce phrases keep captions of a frequent one
        scarce = next(name)
        captions.extend([f"{scarce} near {frequent}"] * 10)
        kept[scarce] = 10
    kept[frequent] = 100  # exactly those: it is in 100 captions
    rest = 5000 - len(captions)
    captions.extend([f"{next(name)} at night"] * rest)
    assert rest > 101
    (last,) = {text.removesuffix(" at night") for text in captions[-rest:]}
    kept[last] = 100
    total = 8 * 3 + 20 * 40 + 100 + 100 + 2 * 100 + 100 + 100
    # The order of a file must not matter to what is counted.
    mixed = [captions[(number * 1237) % 5000] for number in range(5000)]
    return mixed, kept, total


class Split:
    """Finds the phrases that the captions were made of."""

    name = "split"

    def __init__(self, *_: object):
        self.calls = 0

    def __call__(self, texts: Iterable[str]) -> Iterator[list[str]]:
        for text in texts:
            self.calls += 1
            yield text.removesuffix(" at night").split(" near ")


def test_five_thousand_captions_become_those_that_the_rule_keeps() -> None:
    captions, kept, total = five_thousand()
    found = balance(list(Split()(captions)))
    assert len(captions) == 5000 and len(found.chosen) == total
    counted = Counter(p for n in found.chosen for p in next(Split()([captions[n]])))
    assert counted == +Counter(kept) == found.after
    assert found.chosen == sorted(set(found.chosen))
    assert balance(list(Split()(captions)), seed=1).chosen != found.chosen
    assert balance(list(Split()(captions))).chosen == found.chosen


def test_a_caption_that_a_rare_phrase_chooses_stays_though_its_other_phrase_is_frequent() -> None:
    """The draw of a frequent phrase is of all of its captions, those in the pool among them."""
    rows = [["a car"]] * 900 + [["a car", "a lynx"]] * 3 + [["a car", "a yak"]] * 2
    found = balance(rows)
    assert {900, 901, 902} <= set(found.chosen)
    assert found.after["a lynx"] == 3 and 100 <= found.after["a car"] <= 103
    assert balance(rows, most=1000).after == {"a car": 905, "a lynx": 3, "a yak": 2}
    with pytest.raises(ValueError, match="no noun phrase is in 3 of the 2 captions"):
        balance([["a cat"], ["a cat"]])
    with pytest.raises(ValueError, match="most 0 captions"):
        balance(rows, most=0)


@pytest.mark.slow
def test_spacy_finds_the_phrases_that_the_captions_were_made_of() -> None:
    spacy = pytest.importorskip("spacy")
    models = [name for name in spacy.util.get_installed_models() if name.startswith("en")]
    if not models:
        pytest.skip("no pipeline of spaCy is installed")
    captions, kept, total = five_thousand()
    said = [[p for p in each if p != "night"] for each in NounPhrases(models[0])(captions)]
    assert said == list(Split()(captions))
    assert len(balance(said).chosen) == total and balance(said).after == +Counter(kept)


def test_phrases_that_were_found_are_not_sought_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    texts = ["a cat", "a dog", "a cat near a dog", "a hen", "an owl"]

    class Killed(Split):
        def __call__(self, texts: Iterable[str]) -> Iterator[list[str]]:
            yield from itertools.islice(super().__call__(texts), 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_phrases(texts, Killed(), tmp_path / "out.json")
    again = Split()
    found = find_phrases(texts, again, tmp_path / "out.json")
    assert found == [["a cat"], ["a dog"], ["a cat", "a dog"], ["a hen"], ["an owl"]]
    assert again.calls == 3  # two of three were in the journal
    with pytest.raises(ValueError, match="begun with another"):
        find_phrases([*texts, "a bee"], again, tmp_path / "out.json")


def test_cc3m_as_published_becomes_rows_that_train(tmp_path: Path, monkeypatch, capsys) -> None:
    captions, _, total = five_thousand()
    lines = [f"{text}\thttp://a.org/{number}.jpg\n" for number, text in enumerate(captions)]
    (tmp_path / "Train_GCC-training.tsv").write_text("".join(lines))
    monkeypatch.setattr(module, "NounPhrases", Split)
    out, plot = tmp_path / "chat.json", tmp_path / "coverage.png"
    make = ["make", "captions", str(tmp_path / "Train_GCC-training.tsv"), "--out", str(out)]
    main([*make, "--plot", str(plot), "--format", "json"])
    (grid,) = json.loads(capsys.readouterr().out)
    bands = {row["captions with it"]: row for row in grid["rows"]}
    assert bands["1 to 2"]["phrases"] == 16 and bands["1 to 2"]["still there"] == 0
    assert bands["1,000 or more"] | {"captions with it": ""} == {
        "captions with it": "",
        "phrases": 2,
        "still there": 2,
        "mean before": 1500.0,
        "mean after": 100.0,
    }
    assert bands["all"]["phrases"] == 16 + 8 + 20 + 4 + 1 + 10 + 1
    assert plot.stat().st_size > 1000
    rows = json.loads(out.read_text())
    record = json.loads((tmp_path / "chat.json.made.json").read_text())
    assert len(rows) == total == record["rows"] and record["captions"] == 5000
    assert record["phrases"] == "split" and not list(tmp_path.glob("*.journal"))
    first = rows[0]
    number = int(first["id"].removeprefix("GCC_train_"))
    assert first["image"] == f"GCC_train_{number:09d}.jpg"
    assert first["conversations"][1]["value"] == captions[number]
    asked = Counter(row["conversations"][0]["value"].replace("<image>", "").strip() for row in rows)
    assert len(asked) == 11 and "Describe the image concisely." in asked
    places = Counter(row["conversations"][0]["value"].startswith("<image>\n") for row in rows)
    assert min(places.values()) > total / 3
    (tmp_path / "images").mkdir()
    for row in rows[:3]:
        (tmp_path / "images" / row["image"]).touch()
    (tmp_path / "few.json").write_text(json.dumps(rows[:3]))
    assert len(read_samples(Source(tmp_path / "few.json", tmp_path / "images"), 0)) == 3


def test_captions_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    file = tmp_path / "captions.jsonl"
    rows = [{"image": "a.jpg", "caption": " "}, {"caption": "a cat"}, {"image": "b.jpg"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": 1, "image": "c.jpg"}]))
    with pytest.raises(BadRows, match=r"4 of 4 rows hold no caption .*\n.*its caption is empty"):
        read_captions(file)
    good = {"id": 7, "image": "a.jpg", "caption": "a cat"}
    file.write_text(f"{json.dumps(good)}\n" * 2)
    with pytest.raises(ValueError, match="1 ids are repeated, the first '7'"):
        read_captions(file)
    (tmp_path / "a.tsv").write_text("a cat\n")
    with pytest.raises(BadRows, match=r"a line of a \.tsv has a caption, a tab and an address"):
        read_captions(tmp_path / "a.tsv")


@pytest.mark.slow  # spaCy takes seconds to import
@pytest.mark.skipif(importlib.util.find_spec("spacy") is None, reason="spaCy is not installed")
def test_a_pipeline_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="spaCy has no pipeline 'none_of_these'"):
        NounPhrases("none_of_these")


def test_without_spacy_the_way_to_install_it_is_said(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(ValueError, match=r"need spaCy: pip install 'llava-lab\[make\]'"):
        NounPhrases()
