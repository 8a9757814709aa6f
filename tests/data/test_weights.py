"""Sources with names and weights: exact counts, the same for every start, and held-out parts."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llava_lab.data.mix import epoch_rows, held_parts, weighted
from llava_lab.data.modules.image import ImageDataModule
from llava_lab.data.modules.preference import PreferenceDataModule
from llava_lab.data.order import epoch_batches
from llava_lab.data.source import Source
from llava_lab.data.views.pad import Pad

NO_FILES = settings(deadline=None, database=None)
WEIGHTS = st.sampled_from([0.0, 0.1, 0.5, 0.75, 1.0, 1.5, 2.0, 3.2])
SOURCES = st.lists(st.tuples(st.integers(0, 40), WEIGHTS), min_size=1, max_size=4)


@NO_FILES
@given(SOURCES, st.integers(1, 5), st.integers(0, 9))
def test_weights_are_exact_in_an_epoch_and_fair_over_epochs(sources, epochs, seed) -> None:
    counts, weights = zip(*sources, strict=True)
    every: Counter[int] = Counter()
    for epoch in range(epochs):
        rows = epoch_rows(counts, weights, seed, "instruct", epoch)
        assert rows == sorted(rows) == epoch_rows(counts, weights, seed, "instruct", epoch)
        every.update(rows)
        first = 0
        for count, weight in sources:
            own = [row for row in rows if first <= row < first + count]
            assert len(own) == weighted(count, weight)
            assert abs(len(own) - count * weight) <= 0.5 or len(own) == 1
            first += count
        assert not rows or max(rows) < first
    first = 0
    for count, _ in sources:
        seen = [every[row] for row in range(first, first + count)]
        assert not seen or max(seen) - min(seen) <= 1
        first += count


def test_a_weight_is_the_decimal_number_that_is_written() -> None:
    assert [weighted(n, w) for n, w in ((25, 0.1), (5, 0.1), (1000, 1e-7))] == [3, 1, 1]
    assert [weighted(n, w) for n, w in ((10, 1.15), (7, 0.0), (0, 3.0))] == [12, 0, 0]


def test_another_epoch_seed_or_stage_draws_others_and_weights_of_one_change_nothing() -> None:
    draws = [("0", "align", 0), ("0", "align", 1), ("1", "align", 0), ("0", "instruct", 0)]
    found = [epoch_rows([40], [0.5], int(seed), stage, epoch) for seed, stage, epoch in draws]
    assert len({tuple(rows) for rows in found}) == 4
    assert sorted(found[0] + found[1]) == list(range(40)), "the next epoch has the others"
    rows = epoch_rows([4, 6], [1.0, 1.0], 0, "instruct", 3)
    assert rows == list(range(10))
    lengths, kinds = list(range(1, 11)), [n % 2 for n in range(10)]
    for grouped in (False, True):
        plain = epoch_batches(lengths, kinds, 3, 0, "instruct", 3, grouped)
        assert epoch_batches(lengths, kinds, 3, 0, "instruct", 3, grouped, rows) == plain


@pytest.mark.parametrize("grouped", [False, True])
def test_rows_that_are_read_twice_are_dealt_twice(grouped: bool) -> None:
    rows = epoch_rows([5, 8], [2.0, 0.5], 0, "instruct", 0)
    lengths, kinds = list(range(1, 14)), [n % 2 for n in range(13)]
    batches = epoch_batches(lengths, kinds, 4, 0, "instruct", 0, grouped, rows)
    assert sorted(row for batch in batches for row in batch) == rows
    assert {len(batch) for batch in batches[:-1]} <= {4} or grouped


def write(folder: Path, name: str, rows: int) -> Path:
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
    (folder / "images" / name).mkdir(parents=True, exist_ok=True)
    for number in range(rows):
        Image.new("RGB", (8, 8), (number, len(name), 0)).save(
            folder / "images" / name / f"{number}.png"
        )
    found = [{"id": n, "image": f"{name}/{n}.png", "conversations": said} for n in range(rows)]
    (folder / f"{name}.json").write_text(json.dumps(found))
    return folder / f"{name}.json"


@pytest.fixture
def made(tmp_path: Path, cache: Path) -> Any:
    files = {name: write(tmp_path, name, rows) for name, rows in (("ocr", 12), ("talk", 30))}

    def make(*weights: float, **options: Any) -> ImageDataModule:
        sources = [
            Source(path, tmp_path / "images", name=name, weight=weight)
            for (name, path), weight in zip(files.items(), weights, strict=True)
        ]
        data = ImageDataModule(sources, Pad(), 4, **options)
        data.read()
        return data

    return make


def test_the_steps_of_a_stage_have_each_source_by_its_weight(made: Any) -> None:
    data = made(2.5, 0.5, epochs=2)
    steps = data.order()
    assert steps == made(2.5, 0.5, epochs=2).order()
    names = Counter(data.samples[row].source.split(".")[-2][-4:] for step in steps for row in step)
    assert names == {"/ocr": 60, "talk": 30}
    assert Counter(row for step in steps for row in step if row < 12) == dict.fromkeys(range(12), 5)


def test_a_source_of_weight_0_is_left_out_and_its_held_out_rows_are_not(made: Any) -> None:
    whole, without = made(1, 1, hold_out=0.2), made(1, 0, hold_out=0.2)
    assert list(whole.held) == list(without.held)
    assert [row for row in whole.samples if "ocr" in row.source] == list(without.samples)
    assert sorted(row for step in without.order() for row in step) == list(
        range(len(without.samples))
    )
    parts = dict(held_parts(without.sources, without.held))
    assert parts.keys() == {"ocr", "talk"} and sum(map(len, parts.values())) == len(whole.held)
    assert all(name in whole.held[row].source for name, rows in parts.items() for row in rows)


def test_a_limit_leaves_out_no_source(made: Any) -> None:
    data = made(1, 1, hold_out=0.5, micro_batch_size=2)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1)
    data.encoded = lambda rows: rows
    named = {part.source for step in data.val_dataloader().order.steps for part in step}
    assert named == {"ocr", "talk"}
    for limit, batches in ((0.01, 2), (1, 2), (3, 6), (0.0, 0)):
        data.held_limit = limit
        loader = data.val_dataloader()
        steps = loader.order.steps if batches else loader
        assert len(steps) == batches
        assert {part.source for step in steps for part in step} == (named if batches else set())


def test_rows_left_out_of_one_file_by_two_sources_are_all_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "talk", 10)
    for number in (0, 8, 9):
        (tmp_path / "images" / "talk" / f"{number}.png").unlink()
    ends = [Source(path, tmp_path / "images", each, "skip") for each in ("first:3", "end:3")]
    data = ImageDataModule(ends, Pad(), 4)
    with pytest.warns(UserWarning, match="rows are left out"):
        data.read()
    assert data.skipped == {str(path): 3}


def test_names_and_weights_that_mean_nothing_are_refused(made: Any, tmp_path: Path) -> None:
    for wrong, message in (
        ({"weight": -1.0}, r"a\.json: weight is -1\.0; it is 0 or more"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"weight": float("inf")}, "weight is inf"),
        ({"name": "0"}, "name '0': .* no number"),
        ({"name": "a.b"}, "name 'a.b': it is of letters"),
        ({"name": ""}, "name '': it is of letters"),
    ):
        with pytest.raises(ValueError, match=message):
            Source(Path("a.json"), **wrong)
    with pytest.raises(ValueError, match="all sources have weight 0"):
        made(0, 0)
    with pytest.raises(
        ValueError, match=r"rows of source .* is held out at hold_out 0\.02; raise it"
    ):
        made(1, 1, hold_out=0.02)
    twice = [Source(Path(name), name="x") for name in ("a.json", "b.json")]
    with pytest.raises(ValueError, match="sources: two have the name 'x'"):
        ImageDataModule(twice, Pad(), 2)
    with pytest.raises(ValueError, match=r"a\.json: sources of answers have neither"):
        PreferenceDataModule([Source(Path("a.json"), weight=2.0)], Pad(), 2)
