"""Rows that could not be trained on are found before the first step, or left out and counted."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import REPOSITORY
from PIL import Image
from test_preference import tiny

from llava_lab.cli import fit as cli
from llava_lab.data import verified as module
from llava_lab.data.modules.image import ImageDataModule
from llava_lab.data.modules.phrases import PhraseDataModule
from llava_lab.data.modules.preference import PreferenceDataModule
from llava_lab.data.rows import BadRows
from llava_lab.data.source import Source
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.square import Square
from llava_lab.evaluate.benchmark import Benchmark
from llava_lab.evaluate.metrics.question import VQAAccuracy
from llava_lab.experiment.watch import Watch, check_held_out
from llava_lab.train.record import Record

LONG = "word " * 400


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def row(name: str, image: Any = "a.png", question: str = "<image>\nWhat?", answer: str = "A dog."):
    shown = {} if image is None else {"image": image}
    return {"id": name, **shown, "conversations": talk(question, answer)}


def pair(name: str, **changes: Any) -> dict[str, Any]:
    answers = {"chosen": "A dog.", "rejected": "No."}
    return {"id": name, "image": "a.png", "prompt": "What?", **answers, **changes}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (40, 30), (9, 90, 200)).save(tmp_path / "images" / name)
    whole = (tmp_path / "images" / "c.png").read_bytes()
    (tmp_path / "images" / "c.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "images" / "d.png").write_bytes(b"no picture")
    return tmp_path


def source(folder: Path, rows: list[dict], on_bad_row: Any = "error") -> Source:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return Source(path, folder / "images", on_bad_row=on_bad_row)


def data(kind: type, rows: Source, max_length: int = 60, **options: Any) -> ImageDataModule:
    made = kind([rows], Pad(), 2, max_length=max_length, **options)
    made.name = "instruct"
    return made


BAD = {
    "cut picture": (row("x", "c.png"), "c.png: "),
    "no picture": (row("x", "d.png"), "d.png: not an image"),
    "picture in a list": (row("x", ["a.png", "d.png"], "<image><image>?"), "d.png: not an image"),
    "visual tokens beyond": (
        row("x", ["a.png"] * 9, "<image>" * 9),
        "visual tokens reach to token",
    ),
    "no label left": (
        row("x", question=f"<image>\n{LONG}"),
        "no token to train on in the first 60",
    ),
    "no label left of text": (row("x", None, LONG), "no token to train on in the first 60"),
    "a mark": (row("x", answer="A </s> dog."), "turn 2 contains '</s>', a mark"),
    "a mark in text": (row("x", None, "Is </s> a mark?"), "turn 1 contains '</s>', a mark"),
    "a field": (row("x", answer=""), "an answer, is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_cannot_be_trained_on_is_named_or_left_out(
    case: str, folder: Path, model: Any
) -> None:
    bad, reason = BAD[case]
    rows = [row("one"), bad, row("two", "b.png"), bad]
    with pytest.raises(BadRows, match="mend them, or set on_bad_row: skip") as caught:
        data(ImageDataModule, source(folder, rows)).check(model)
    assert [each.source.split(", ")[-1] for each in caught.value.rows] == ["line 2", "line 4"]
    assert all(reason in each.reason for each in caught.value.rows)
    assert f"line 2 (id x): {caught.value.rows[0].reason}" in str(caught.value)
    kept = data(ImageDataModule, source(folder, rows, "skip"))
    with pytest.warns(
        UserWarning, match=r"rows\.jsonl: 2 of 4 rows are left out; .*line 2"
    ) as told:
        kept.check(model)
    assert len(told) == 1 and reason in str(told[0].message)
    assert [sample.id for sample in kept.samples] == ["one", "two"]
    assert kept.skipped == {str(folder / "rows.jsonl"): 2}
    other = {**bad, "conversations": "none"}
    again = data(ImageDataModule, source(folder, [row("one"), other, row("two", "b.png")], "skip"))
    with pytest.warns(UserWarning, match="1 of 3 rows are left out"):
        again.check(model)
    assert kept.content() == again.content(), "what is left out does not decide"


@pytest.mark.parametrize("text", ["word ", "é", "a"])
def test_a_row_is_refused_exactly_where_it_cannot_be_encoded(
    text: str, folder: Path, model: Any
) -> None:
    outcomes = set()
    for words in range(60):
        rows = source(folder, [row("x", question=f"<image>\n{text * words}?")])
        made, encoded = data(ImageDataModule, rows), data(ImageDataModule, rows)
        encoded.read()
        outcome = [
            does(lambda made=made: made.check(model)),
            does(lambda encoded=encoded: encoded.encoded(encoded.samples, model)[0]),
        ]
        assert outcome[0] == outcome[1], words
        outcomes.add(outcome[0])
    assert outcomes == {True, False}


def does(action: Callable[[], object]) -> bool:
    try:
        action()
    except ValueError:
        return False
    return True


PAIRS = {
    "equal after the cut": (
        pair("x", chosen=f"{LONG} yes", rejected=f"{LONG} no"),
        "'chosen' and 'rejected' are the same 60 tokens, cut at max_length 60",
    ),
    "no answer left": (pair("x", prompt=LONG), "no token to train on in the first 60"),
    "cut picture": (pair("x", image="c.png"), "c.png: "),
    "a mark": (pair("x", rejected="A </s> dog."), "turn 2 contains '</s>', a mark"),
}


@pytest.mark.parametrize("case", PAIRS)
def test_a_pair_that_cannot_be_trained_on_is_named_or_left_out(
    case: str, folder: Path, model: Any
) -> None:
    bad, reason = PAIRS[case]
    rows = [pair("one"), bad, pair("two")]
    with pytest.raises(BadRows) as caught:
        data(PreferenceDataModule, source(folder, rows)).check(model)
    assert reason in str(caught.value) and "line 2 (id x)" in str(caught.value)
    kept = data(PreferenceDataModule, source(folder, rows, "skip"))
    with pytest.warns(UserWarning, match="1 of 3 rows are left out"):
        kept.check(model)
    assert [sample.id for sample in kept.samples] == ["one", "two"]


def test_pictures_with_phrases_are_decoded_too(folder: Path, model: Any) -> None:
    path = folder / "phrases.jsonl"
    path.write_text('{"id": 1, "image": "c.png", "phrases": ["a dog"]}\n')
    with pytest.raises(ValueError, match=r"phrases\.jsonl: 1 pictures cannot be read:\n .*c\.png"):
        PhraseDataModule(path, folder / "images", Pad(), 1).check(model)


def test_more_tokens_than_the_lm_reads_are_refused(folder: Path) -> None:
    model = tiny()
    rows = source(folder, [row("one"), row("long", answer=LONG * 9)])
    made = data(ImageDataModule, rows, max_length=4000)
    model.llm.model.config.max_position_embeddings = 2048
    with pytest.raises(BadRows, match=r"line 2 .* tokens, cut at .* 4000, but the LM reads 2048"):
        made.check(model)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Callable[[], int]:
    """How many files were decoded since it was last asked."""
    real, files = module.verify_media, []
    monkeypatch.setattr(
        module, "verify_media", lambda path, views: files.append(path) or real(path, views)
    )

    def count() -> int:
        number = len(files)
        files.clear()
        return number

    return count


def test_what_was_decoded_once_is_decoded_again_only_if_it_changes(
    folder: Path, counted: Callable[[], int]
) -> None:
    paths = [folder / "images" / name for name in ("a.png", "b.png", "c.png", "a.png")]

    def look(views: Any = None) -> tuple[int, set[str], set[str]]:
        module.decoded_by.cache_clear()  # another process
        sizes, faults = module.verified(paths, views or Pad(), "rows")
        return counted(), {path.name for path in sizes}, {path.name for path in faults}

    assert look() == (3, {"a.png", "b.png"}, {"c.png"})
    assert look() == (1, {"a.png", "b.png"}, {"c.png"}), "what is broken is looked at again"
    assert look(Square()) == (1, {"a.png", "b.png"}, {"c.png"}), "loaded alike"
    times = paths[0].stat()
    content = bytearray(paths[0].read_bytes())
    content[-20] ^= 1
    time.sleep(0.01)
    paths[0].write_bytes(content)
    os.utime(paths[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert look() == (2, {"b.png"}, {"a.png", "c.png"}), "of the same size and time"
    (file,) = (folder / "cache").rglob("*.jsonl")
    text = file.read_text()
    for damaged in (text.replace("40", "41"), text[:-9], "\0" + text[1:], "", text + "[" * 9999):
        file.write_text(damaged)
        assert look()[1:] == ({"b.png"}, {"a.png", "c.png"})
        sizes, _ = module.verified(paths, Pad(), "rows")
        assert set(sizes.values()) == {(40, 30)}


def test_a_run_says_how_many_rows_it_left_out(
    shortened: list[str], small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = json.loads((small_world / "llava_v1_5_mix665k.json").read_text())
    rows[3]["conversations"][1]["value"] += "</s>"
    rows[8]["image"] = "train/gone.png"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    stages = ("align", "instruct")
    options = [
        *shortened,
        *(f"--stages.{stage}.data.max_steps=1" for stage in stages),
        *(f"--stages.{stage}.data.feature_store={tmp_path / 'f'}" for stage in stages),
        "--data.benchmarks=[]",
    ]
    experiment = ["fit", "-c", str(REPOSITORY / "experiments" / "llava15.yaml")]
    sources = f'[{{"path": "{tmp_path / "rows.json"}", "images": "{small_world / "images"}", '
    skip = f'--stages.instruct.data.sources={sources}"on_bad_row": "skip"}}]'
    with pytest.warns(UserWarning, match="2 of .* rows are left out"):
        cli.main([*experiment, *options, skip])
    (path,) = tmp_path.glob("runs/llava15/*/results.json")
    records = json.loads(path.read_text())["stages"]
    assert [record["rows_skipped"] for record in records] == [{}, {str(tmp_path / "rows.json"): 2}]


@pytest.fixture
def numbered(folder: Path, cache: Path) -> Source:
    """Twenty rows, each of a picture of its own."""
    for number in range(20):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / "images" / f"{number}.png")
    return source(folder, [row(str(n), f"{n}.png") for n in range(20)])


def held_of(asked: Source, held_out: float) -> Any:
    metric, (path, images) = VQAAccuracy(), (str(asked.path), str(asked.images))
    made = Benchmark("held_out", path, images, metric, held_out=held_out)
    return SimpleNamespace(benchmarks=[made])


def stage_of(*sources: Source, hold_out: float = 0.4) -> Any:
    made = ImageDataModule(list(sources), Pad(), 2, hold_out=hold_out)
    made.name = "instruct"
    made.read()
    return SimpleNamespace(name="instruct", data=made, evaluate_every=None)


ASKED = r"benchmark held_out: .* are trained on by stages.instruct, the .*: its held_out is"


def test_a_benchmark_of_what_is_held_out_never_asks_about_what_is_trained_on(
    folder: Path, numbered: Source
) -> None:
    pairs = [[f"{n}.png", f"{n + 10}.png"] for n in range(10)]
    rows = [row(str(n), names, "<image><image>?") for n, names in enumerate(pairs)]
    (folder / "pairs.json").write_text(json.dumps(rows))
    check_held_out(stage_of(numbered), held_of(numbered, 0.4))
    check_held_out(stage_of(numbered), held_of(numbered, 0.2))
    with pytest.raises(ValueError, match=rf"{ASKED} 0\.9, and the stage's hold_out 0\.4"):
        check_held_out(stage_of(numbered), held_of(numbered, 0.9))
    both = stage_of(numbered, Source(folder / "pairs.json", folder / "images"))
    with pytest.raises(ValueError, match=rf"{ASKED} 0\.4.*rows of another source, or under"):
        check_held_out(both, held_of(numbered, 0.4))
    with pytest.raises(ValueError, match=r"6 of its 6 pictures .* and the stage's hold_out 0\.0"):
        check_held_out(stage_of(numbered, hold_out=0.0), held_of(numbered, 0.4))


@pytest.mark.parametrize("place", ["archive", "link", "copied rows"])
def test_what_is_trained_on_is_found_in_another_place(
    place: str, folder: Path, numbered: Source
) -> None:
    images, path = folder / "images", numbered.path
    if place == "archive":
        images = Path(shutil.make_archive(str(folder / "images"), "zip", folder / "images"))
    elif place == "link":
        images = folder / "link"
        images.symlink_to(folder / "images")
    else:
        images = shutil.copytree(folder / "images", folder / "others")
        path = shutil.copy(path, folder / "copied.jsonl")
    trained = stage_of(Source(path, images))
    with pytest.raises(ValueError, match=rf"{ASKED} 0\.4.*Set them alike, with the same images"):
        check_held_out(trained, held_of(numbered, 0.4))


def test_what_another_file_trains_on_is_said(
    folder: Path, numbered: Source, capsys: pytest.CaptureFixture
) -> None:
    (folder / "others.json").write_text(json.dumps([row(str(n), f"{n}.png") for n in range(9)]))
    others = stage_of(Source(folder / "others.json", folder / "images"), hold_out=0.0)
    asked = held_of(numbered, 0.4)
    check_held_out(others, asked)
    watch = Watch(others, folder, "", Record(others))
    watch.ask(asked, dict)
    shown = sum(int(q.images[0].stem) < 9 for q in asked.benchmarks[0].questions)
    said = f"benchmark held_out: {shown} of its 6 pictures are in other files that stages.instruct"
    assert said in capsys.readouterr().out and shown > 0
