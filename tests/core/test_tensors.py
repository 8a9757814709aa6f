"""Stored tensors that are not what was written are found out."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_lab.core.tensors import Damaged, made_again, read_tensors, write_tensors
from llava_lab.data.views.pad import Pad
from llava_lab.model.connector.mlp import MLP
from llava_lab.model.encoder.timm import TimmEncoder
from llava_lab.train.feature_store import FeatureStore
from llava_lab.train.stage_weights import load_trained, save_trained

TENSORS = {"a": torch.arange(64.0), "b": torch.ones(3, 2, dtype=torch.bfloat16)}


def test_tensors_come_back_and_equal_content_makes_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tensors(tmp_path / name, TENSORS, "key")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    found = read_tensors(tmp_path / "one", "key")
    assert all(found[name].equal(tensor) for name, tensor in TENSORS.items())
    assert list(read_tensors(tmp_path / "one", "key", ["b"])) == ["b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_every_flipped_bit_and_every_cut_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    write_tensors(path, TENSORS, "key")
    whole = path.read_bytes()
    chance = random.Random(0)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read_tensors(path, "key")
        except Damaged:
            continue
        # Padding of the header may change without a difference to what is read.
        assert all(found[name].equal(tensor) for name, tensor in TENSORS.items()), place
        assert found.keys() == TENSORS.keys()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged, match="weights"):
            read_tensors(path, "key")


def test_another_owners_tensors_missing_ones_and_those_of_other_writers_are_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "weights"
    write_tensors(path, TENSORS, "one")
    with pytest.raises(Damaged, match="belongs to 'one', not to 'two'"):
        read_tensors(path, "two")
    save_file({"a": TENSORS["a"]}, tmp_path / "few", _about(path))
    with pytest.raises(Damaged, match="1 of 2 tensors are missing or left over, the first 'b'"):
        read_tensors(tmp_path / "few", "one")
    save_file(TENSORS, tmp_path / "other")
    with pytest.raises(Damaged, match="no checksums"):
        read_tensors(tmp_path / "other", "one")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_tensors(tmp_path / "nowhere", "one")


def _about(path: Path) -> dict[str, str]:
    head = path.read_bytes()
    return json.loads(head[8 : 8 + int.from_bytes(head[:8], "little")])["__metadata__"]


def test_what_is_damaged_is_computed_anew_and_said(tmp_path: Path) -> None:
    path, computed = tmp_path / "store", []

    def compute() -> dict[str, torch.Tensor]:
        computed.append(1)
        return TENSORS

    made_again(path, "key", compute)
    made_again(path, "key", compute)
    assert len(computed) == 1
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="store: damaged: .*; computed anew"):
        found = made_again(path, "key", compute)
    assert len(computed) == 2 and found["b"].equal(TENSORS["b"])


def test_a_damaged_feature_never_reaches_a_batch(small_world: Path, tmp_path: Path) -> None:
    options = {"embed_dim": 32, "depth": 1, "num_heads": 4, "mlp_ratio": 2}
    encoder = TimmEncoder("xcit_nano_12_p16_224", -1, False, False, 64, None, options).eval()
    images = sorted((small_world / "images" / "train").glob("*.png"))[:3]
    store = FeatureStore(tmp_path, encoder, Pad(), images)
    store.fill()
    wanted = [store[path][0].clone() for path in images]  # not the file's own memory
    (chunk,) = tmp_path.rglob("*.safetensors")
    data = bytearray(chunk.read_bytes())
    data[-10] ^= 4
    chunk.write_bytes(data)
    with pytest.raises(Damaged, match=str(chunk)):
        for path in images:
            store[path]
    with pytest.warns(UserWarning, match="computed anew"):
        store.fill()
    assert all(store[path][0].equal(each) for path, each in zip(images, wanted, strict=True))


def test_stage_weights_are_whole_and_their_own_or_refused(tmp_path: Path) -> None:
    model, path = MLP(4, 4), tmp_path / "weights.safetensors"
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_trained(weights, path, "stage")
    load_trained(model, path, "stage")
    data = bytearray(path.read_bytes())
    data[-1] ^= 64
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"Delete {tmp_path}; `fit` trains the stage again"):
        load_trained(model, path, "stage")
    save_trained(weights, path, "another stage")
    with pytest.raises(ValueError, match="belongs to 'another stage'"):
        load_trained(model, path, "stage")
    save_file({"0.weight": load_file(path)["0.weight"]}, path, _about(path))
    with pytest.raises(ValueError, match="3 of 4 tensors are missing"):
        load_trained(model, path, "another stage")
    save_trained({**weights, "0.bias": torch.zeros(5)}, path, "stage")
    with pytest.raises(ValueError, match=r"1 of another shape: 0\.bias \[5\] for \[4\]"):
        load_trained(model, path, "stage")
    path.unlink()
    with pytest.raises(ValueError, match="there is no such file"):
        load_trained(model, path, "stage")


def test_a_stage_that_diverged_is_not_finished(tmp_path: Path) -> None:
    weights = {"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])}
    with pytest.raises(ValueError, match=r"diverged: 1 of 2 tensors hold NaN .* the first 'b'"):
        save_trained(weights, tmp_path / "weights.safetensors", "stage")
    assert not list(tmp_path.iterdir())
