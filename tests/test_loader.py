"""The order of a whole stage, from any position on; stored features equal computed ones."""

from pathlib import Path

import pytest
import torch

from llava_lab.data.features import CHUNK, FeatureStore
from llava_lab.data.image import Pad, load_image
from llava_lab.data.loader import StageLoader, stage_batches
from llava_lab.model.encoder import TimmEncoder

OPTIONS = {
    "epochs": 2,
    "max_steps": None,
    "group_by_modality": False,
    "seed": 3,
    "stage": "align",
}


def batches(rows: int = 10, **changed):
    options = {"batch_size": 4, "accumulate": 1, **OPTIONS, **changed}
    return stage_batches([1] * rows, [True] * rows, **options)


def test_every_row_once_an_epoch() -> None:
    found = batches()
    assert [len(batch) for batch in found] == [4, 4, 2, 4, 4, 2]
    for epoch in (found[:3], found[3:]):
        assert sorted(index for batch in epoch for index in batch) == list(range(10))
    assert found[:3] != found[3:]


def test_accumulation_and_ranks_split_a_step_without_loss() -> None:
    whole = batches(rows=8, batch_size=8, epochs=1)
    parts = [
        batches(rows=8, batch_size=8, epochs=1, accumulate=2, rank=rank, world=2)
        for rank in range(2)
    ]
    assert all(len(part) == 2 for part in parts)
    rows = sorted(index for part in parts for batch in part for index in batch)
    assert rows == sorted(whole[0])


def test_max_steps_cuts_and_a_short_last_batch_is_filled_up() -> None:
    assert len(batches(max_steps=4, epochs=9)) == 4
    micro = batches(rows=9, batch_size=8, epochs=1, accumulate=4)
    assert len(micro) == 8 and all(micro)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("position", [0, 1, 4, 6])
def test_a_loader_goes_on_from_any_position(position: int, workers: int) -> None:
    order = batches()
    dataset = list(range(10))
    whole = list(StageLoader(dataset, order, list, 0))
    again = StageLoader(dataset, order, list, workers)
    again.load_state_dict({"position": position})
    assert len(again) == len(order)
    assert list(again) == whole[position:]


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
            wanted = encoder(Pad().pixels(image, encoder.vision))
        assert torch.allclose(features, wanted, atol=1e-5)
    (chunk,) = tmp_path.rglob("*.safetensors")
    before = chunk.stat().st_mtime_ns
    FeatureStore(tmp_path, encoder, Pad(), images).fill()
    assert chunk.stat().st_mtime_ns == before
    next(encoder.parameters()).data.add_(1.0)
    assert FeatureStore(tmp_path, encoder, Pad(), images).folder != store.folder
