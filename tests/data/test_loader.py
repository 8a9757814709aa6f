"""The order of a whole stage, from any position on; stored features equal computed ones."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava_lab.data.loader import StageLoader, StepPart, deal, split_step, stage_epochs
from llava_lab.data.media.picture import load_image
from llava_lab.data.modules.stage import StageDataModule
from llava_lab.data.views.pad import Pad
from llava_lab.model.encoder.timm import TimmEncoder
from llava_lab.train.feature_store import CHUNK, FeatureStore

OPTIONS = {
    "batch_size": 4,
    "epochs": 2,
    "max_steps": None,
    "group_by_modality": False,
    "seed": 3,
    "stage": "align",
}


class TenRows(StageDataModule):
    """Rows of one token."""

    def lengths(self) -> tuple[list[int], list[int]]:
        return [1] * 10, [1] * 10

    def train_rows(self) -> Any:
        return range(10)

    def content(self) -> str:
        return ""


def steps(rows: int = 10, **changed) -> list[list[int]]:
    epochs = stage_epochs([1] * rows, [True] * rows, **{**OPTIONS, **changed})
    return list(itertools.chain.from_iterable(epochs))


@pytest.mark.parametrize(
    ("epochs", "max_steps", "said"),
    [
        (2, None, ""),
        (2, 6, ""),
        (2, 5, ""),
        (1, 2, ""),
        (10, 5, "5 steps, by max_steps, in epoch 2 of 10"),
        (3, 6, "6 steps, by max_steps, in epoch 2 of 3"),
        (2, 1400, "6 steps, by 2 epochs, before max_steps of 1,400"),
        (1, 4, "3 steps, by epoch, before max_steps of 4"),
    ],
)
def test_what_ends_a_stage_is_said_where_one_option_is_idle(
    epochs: int, max_steps: int | None, said: str
) -> None:
    data: Any = TenRows(batch_size=4, epochs=epochs, max_steps=max_steps)
    assert data.ending() == said
    assert [len(step) for step in data.order()] == ([4, 4, 2] * epochs)[:max_steps]


def parts(step: list[int], world: int, accumulate: int, lengths: list[int]) -> list[StepPart]:
    """The micro-batches of all devices."""
    split = [
        split_step(step, lengths, accumulate=accumulate, rank=rank, world=world)
        for rank in range(world)
    ]
    assert all(len(own) == accumulate for own in split)
    return [part for own in split for part in own]


def collate(rows: list[int], part: StepPart) -> list[int]:
    return rows


def test_every_row_once_an_epoch() -> None:
    found = steps()
    assert [len(step) for step in found] == [4, 4, 2, 4, 4, 2]
    for epoch in (found[:3], found[3:]):
        assert sorted(index for step in epoch for index in step) == list(range(10))
    assert found[:3] != found[3:]
    assert steps(max_steps=4, epochs=9) == steps(epochs=9)[:4]


@given(st.lists(st.integers(1, 90), min_size=1, max_size=20), st.integers(1, 5), st.integers(1, 4))
def test_a_step_is_split_without_loss_and_fillers_count_for_nothing(
    lengths: list[int], world: int, accumulate: int
) -> None:
    step = list(range(len(lengths)))
    found = parts(step, world, accumulate, lengths)
    real = [part for part in found if not part.filler]
    assert sorted(index for part in real for index in part.rows) == step
    assert len(real) == min(len(step), world * accumulate) or world > 1
    assert sorted(part.number for part in real) == list(range(len(real)))
    assert all(part.rows and part.step == step and part.parts == len(real) for part in found)
    shortest = min(lengths)
    assert all([lengths[row] for row in p.rows] == [shortest] for p in found if p.filler)
    share = math.ceil(len(step) / world)
    assert max(len(part.rows) for part in real) <= math.ceil(share / accumulate)


@given(st.integers(1, 30), st.integers(1, 7), st.integers(1, 5))
def test_held_out_rows_are_dealt_once_in_the_batches_of_one_device(
    rows: int, size: int, world: int
) -> None:
    dealt = [deal(range(rows), size, rank, world) for rank in range(world)]
    assert len({len(each) for each in dealt}) == 1
    real = [part.rows for own in dealt for (part,) in own if not part.filler]
    assert sorted(real) == [part.rows for (part,) in deal(range(rows), size, 0, 1)]
    assert sorted(index for batch in real for index in batch) == list(range(rows))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("position", [0, 1, 4, 6])
def test_a_loader_goes_on_from_any_step(position: int, workers: int) -> None:
    split = [split_step(s, [1] * 10, accumulate=2, rank=0, world=1) for s in steps()]
    dataset = list(range(10))
    whole = list(StageLoader(dataset, split, collate))
    assert [micro.batch for micro in whole] == [part.rows for own in split for part in own]
    again = StageLoader(dataset, split, collate, workers)
    again.load_state_dict({"steps": position})
    assert len(again) == len(whole) == 12
    assert list(again) == whole[2 * position :]


def test_a_pass_that_was_left_is_not_gone_on_from() -> None:
    dealt = deal(range(6), 1, 0, 1)
    loader = StageLoader(list(range(6)), dealt, collate)
    for left in (2, 6, 0, 6):  # Lightning leaves a pass at its last batch, not behind it
        assert [micro.batch for micro in itertools.islice(loader, left)] == dealt_rows(dealt)[:left]
    loader.load_state_dict({"steps": 4})
    assert loader.state_dict() == {"steps": 4}
    for first in (4, 0):
        assert [micro.batch for micro in loader] == dealt_rows(dealt)[first:]


def dealt_rows(dealt: list[list[StepPart]]) -> list[list[int]]:
    return [part.rows for (part,) in dealt]


def test_a_loader_counts_whole_steps_and_tells_a_step_before_its_first_micro_batch() -> None:
    split = [split_step(s, [1] * 5, accumulate=2, rank=0, world=1) for s in ([0, 1, 2, 3], [4])]
    loader = StageLoader(list(range(5)), split, collate)
    found = []
    for micro in loader:
        found.append((micro.batch, micro.filler, micro.first, micro.last, loader.position))
        step = [(each.batch, each.filler) for each in micro.step]
        whole = [([0, 2], False), ([1, 3], False)]
        assert step == (whole if len(found) < 3 else [([4], False), ([4], True)])
    assert found == [
        ([0, 2], False, True, False, 0),
        ([1, 3], False, False, True, 1),
        ([4], False, True, False, 1),
        ([4], True, False, True, 2),
    ]
    assert loader.position == 0


def test_stored_features_equal_computed_ones(small_world: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"embed_dim": 32, "depth": 1, "num_heads": 4, "mlp_ratio": 2}
    encoder = TimmEncoder("xcit_nano_12_p16_224", -1, False, False, 64, None, options).eval()
    images = sorted((small_world / "images" / "train").glob("*.png"))[:5]
    store = FeatureStore(tmp_path, encoder, Pad(), images)
    store.fill()
    assert CHUNK > 5
    for path in images:
        features, size = store[path]
        image = load_image(path)
        assert size == image.size
        with torch.no_grad():
            wanted = encoder(Pad().pixels(image, encoder.view_spec)).flatten(1, 2)
        assert torch.allclose(features, wanted, atol=1e-5)
    (chunk,) = tmp_path.rglob("*.safetensors")
    before = chunk.stat().st_mtime_ns
    FeatureStore(tmp_path, encoder, Pad(), images).fill()
    assert chunk.stat().st_mtime_ns == before
    next(encoder.parameters()).data.add_(1.0)
    assert FeatureStore(tmp_path, encoder, Pad(), images).folder != store.folder
