"""Rows in a table are the rows of the file: the same samples, order, split and content."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_lab.data import table as module
from llava_lab.data.modules.image import ImageDataModule
from llava_lab.data.questions import read_held_out
from llava_lab.data.rows import BadRows
from llava_lab.data.sample import read_samples
from llava_lab.data.source import Source
from llava_lab.data.split import hold_out
from llava_lab.data.table import Samples, read_table
from llava_lab.data.views.pad import Pad

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were parsed."""
    real, names = module.read_source, []

    def read(source: Source, *rest: Any) -> Any:
        names.append(Path(source.path).name)
        return real(source, *rest)

    monkeypatch.setattr(module, "read_source", read)
    return names


def row(number: int, **changes: Any) -> dict[str, Any]:
    pictures = number % 3
    asked = "<image>\n" * pictures + f"What is {number}? Ünd “mehr”."
    turns = [("human", asked), ("gpt", f"It is {number}.")] * (number % 2) + [
        ("human", asked if number % 2 == 0 else "And?"),
        ("gpt", "Yes \n two  words"),
    ]
    names = [f"{number % 5}/{number % 4}.png", "0/0.png"][:pictures]
    return {
        "id": number,
        "image": (names if pictures > 1 else names[0]) if pictures else None,
        "conversations": [{"from": who, "value": text} for who, text in turns],
        **changes,
    }


def source(folder: Path, rows: list[Any], name: str = "rows.json", **options: Any) -> Source:
    for number in range(20):
        path = folder / "images" / f"{number % 5}" / f"{number // 5}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    lines = "\n".join(map(json.dumps, rows))
    text = json.dumps(rows) if name.endswith(".json") else lines
    (folder / name).write_text(text, encoding="utf-8")
    return Source(folder / name, folder / "images", **options)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("sampling", ["all", "end:7", "random:60%"])
def test_the_samples_of_a_table_are_those_of_the_file(
    name: str, sampling: str, tmp_path: Path, parsed: list[str]
) -> None:
    given = source(tmp_path, [row(n) for n in range(40)], name, sampling=sampling, template="v1")
    expected = read_samples(given, 3)
    for _ in range(2):
        found = read_table(given, 3, videos=False)
        assert list(found.items) == expected and found.total == len(expected)
        assert parsed == [name], "the file is parsed once"
    assert pickle.loads(pickle.dumps(found.items))[5] == expected[5]
    assert set(found.items.files()) == {image for sample in expected for image in sample.images}


def test_another_seed_draws_other_rows(tmp_path: Path, parsed: list[str]) -> None:
    given = source(tmp_path, [row(n) for n in range(40)], sampling="random:10")
    for seed in (0, 1, 0):
        expected = [sample.id for sample in read_samples(given, seed)]
        assert [sample.id for sample in read_table(given, seed, False).items] == expected
    assert len(parsed) == 2


def test_rows_of_several_sources_are_split_counted_and_hashed_as_lists_are(tmp_path: Path) -> None:
    one = source(tmp_path, [row(n) for n in range(40)])
    two = source(tmp_path, [row(n) for n in range(7, 30)], "more.jsonl", template="v0")
    lists = [*read_samples(one, 0), *read_samples(two, 0)]
    tables = read_table(one, 0, False).items + read_table(two, 0, False).items
    assert list(tables) == lists
    for ours, theirs in zip(tables.hold_out(0.3), hold_out(lists, 0.3), strict=True):
        assert list(ours) == theirs and 0 < len(theirs) < len(lists)
        assert ImageDataModule.content_of(ours) == ImageDataModule.content_of(theirs)
        assert ours.templates() == {sample.template for sample in theirs}
    data = ImageDataModule([one, two], Pad(), 2)
    data.read()
    of_tables = data.lengths()
    data.samples = list(data.samples)
    assert data.lengths() == of_tables
    assert list(tables.without([0, 2])) == [lists[1], *lists[3:]]
    assert tables[-1] == lists[-1] and list(tables[3:5]) == lists[3:5]


def test_what_a_stage_holds_out_is_what_its_benchmark_asks_about(tmp_path: Path) -> None:
    given = source(tmp_path, [row(n, image=f"{n % 20}.png") for n in range(1, 40, 3)])
    for number in range(20):
        picture = tmp_path / "images" / f"{number % 5}" / f"{number // 5}.png"
        picture.rename(tmp_path / "images" / f"{number}.png")  # right in the folder
    trained, held = read_table(given, 0, False).items.hold_out(0.4)
    asked = read_held_out(given, 0.4)
    assert {sample.images for sample in held} == {question.images for question in asked}
    assert not {sample.images for sample in trained} & {question.images for question in asked}


def test_a_changed_file_is_never_read_as_the_old_one(
    tmp_path: Path, parsed: list[str], cache: Path
) -> None:
    given = source(tmp_path, [row(n) for n in range(9)])
    before = read_table(given, 0, False).items
    read = list(before)
    other = source(tmp_path, [row(n) for n in range(8, -1, -1)])
    assert [sample.id for sample in read_table(other, 0, False).items] == [*"876543210"]
    assert len(list(cache.rglob("*.arrow"))) == 1, "the table of what is no more is removed"
    assert list(before) == read, "who reads it can go on"


def test_bad_rows_are_told_again_and_taken_where_they_are_mended(
    tmp_path: Path, parsed: list[str]
) -> None:
    rows = [row(0), row(1), row(4, image="gone.png"), {"id": "x"}, "text"]
    given = source(tmp_path, rows, "rows.jsonl", on_bad_row="skip")
    given.path.write_text(given.path.read_text().replace('{"id": "x"}', '{"id": "x"'))
    first, again = (read_table(given, 0, False) for _ in range(2))
    assert len(parsed) == 1 and list(first.items) == list(again.items)
    assert [str(bad) for bad in first.bad] == [str(bad) for bad in again.bad]
    assert len(again.bad) == 3 and again.total == 5
    with pytest.raises(BadRows, match="3 of 5 rows are not usable"):
        read_table(Source(given.path, given.images), 0, False)
    (tmp_path / "images" / "gone.png").write_bytes(b"")
    assert [sample.id for sample in read_table(given, 0, False).items] == ["0", "1", "4"]
    (tmp_path / "images" / "1" / "1.png").unlink()
    assert [sample.id for sample in read_table(given, 0, False).items] == ["0", "4"]


def test_a_file_that_may_be_another_one_by_now_is_found_anew(
    tmp_path: Path, parsed: list[str]
) -> None:
    names = {"image": "0/a.jpg", "video": "v"}
    rows = [row(2, image=None, conversations=row(4)["conversations"]) for _ in names]
    for each, (key, name) in zip(rows, names.items(), strict=True):
        each["conversations"][0]["value"] = "<image>?"
        each[key] = name
    given, folder = source(tmp_path, rows), tmp_path / "images"
    (folder / "0" / "a.gif").write_bytes(b"")
    (folder / "v.mp4").write_bytes(b"")

    def found() -> list[str]:
        return [sample.images[0].name for sample in read_table(given, 0, True).items]

    assert found() == found() == ["a.gif", "v.mp4"] and len(parsed) == 1
    (folder / "0" / "a.jpg").write_bytes(b"")
    assert found() == ["a.jpg", "v.mp4"], "what a fresh start reads"
    (folder / "v").mkdir()
    assert found() == ["a.jpg", "v"]
    (folder / "v").rmdir()
    (folder / "v.mkv").write_bytes(b"")
    with pytest.raises(BadRows, match=r"video 'v' may be v\.mkv or v\.mp4"):
        found()


def test_a_damaged_table_is_made_again(tmp_path: Path, parsed: list[str], cache: Path) -> None:
    given = source(tmp_path, [row(n) for n in range(9)])
    expected = list(read_table(given, 0, False).items)
    (path,) = cache.rglob("*.arrow")
    for damaged in (path.read_bytes()[:-40], b"", b"ARROW1"):
        path.unlink()
        path.write_bytes(damaged)
        assert list(read_table(given, 0, False).items) == expected
    assert len(parsed) == 4


def test_without_a_place_for_the_cache_rows_are_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = source(tmp_path, [row(n) for n in range(9)])
    monkeypatch.setenv("LLAVA_LAB_CACHE", str(given.path / "no folder"))
    with pytest.warns(UserWarning, match="nothing is kept there"):
        found = read_table(given, 0, False)
    assert list(found.items) == read_samples(given, 0)


def test_no_rows_have_nothing() -> None:
    assert not Samples([]) and Samples([]).files() == []
    assert len(Samples([], np.array([], int))) == 0
