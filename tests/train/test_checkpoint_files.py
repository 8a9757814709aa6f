"""A checkpoint is read under any strategy, and only where it is what was written."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

from llava_lab.train.checkpoint import StageCheckpoint
from llava_lab.train.checkpoint_files import (
    INDEX,
    REST,
    StageFiles,
    digest,
    load_any,
    name_states,
    save_shards,
)
from llava_lab.train.loss import NextToken
from llava_lab.train.stage import Stage


def trained(order: tuple[str, ...] = ("weight", "bias")) -> tuple[nn.Linear, torch.optim.AdamW]:
    """A layer after two steps, its weights in groups of this order, with states by name."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    groups = [{"params": [getattr(layer, name)], "name": name} for name in order]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    name_states(optimizer, {id(weight): name for name, weight in layer.named_parameters()})
    for _ in range(2):
        layer(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
    return layer, optimizer


def written() -> dict:
    layer, optimizer = trained()
    return {
        "pytorch-lightning_version": "2.6",
        "state_dict": layer.state_dict(),
        "optimizer_states": [{"inner": [optimizer.state_dict()]}],
        "loops": {"batch": [1, 2]},
    }


def assert_same(one: dict, other: dict) -> None:
    flat, theirs = (torch.utils._pytree.tree_flatten_with_path(each)[0] for each in (one, other))
    assert [path for path, _ in flat] == [path for path, _ in theirs]
    for (path, mine), (_, its) in zip(flat, theirs, strict=True):
        assert torch.equal(mine, its) if isinstance(mine, torch.Tensor) else mine == its, path


def test_a_folder_is_read_as_a_file_is(tmp_path: Path) -> None:
    StageFiles().save_checkpoint(written(), tmp_path / "file")
    save_shards(written(), tmp_path / "folder")
    assert_same(written(), load_any(tmp_path / "file", {}))
    assert_same(written(), load_any(tmp_path / "folder", {}))
    # A draft that was cut off is in the way of neither.
    StageFiles().save_checkpoint(written(), tmp_path / "folder")
    save_shards(written(), tmp_path / "file")
    assert (tmp_path / "folder").is_file() and (tmp_path / "file").is_dir()


def test_an_optimizer_takes_the_states_of_its_own_weights_alone() -> None:
    _, first = trained()
    state = first.state_dict()
    assert state["state"].keys() == {"weight", "bias"}
    _, second = trained()
    second.state.clear()
    second.load_state_dict(state)
    assert_same(second.state_dict(), state)
    _, other = trained(("bias", "weight"))
    with pytest.raises(ValueError, match="states of other weights"):
        other.load_state_dict(state)


@pytest.mark.parametrize("file", [INDEX, REST, "__0_0.distcp", "shares.json"])
@pytest.mark.parametrize("lost", [True, False])
def test_a_folder_with_a_damaged_file_is_not_gone_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture, file: str, lost: bool
) -> None:
    checkpoint = StageCheckpoint(tmp_path, "f", Stage(None, NextToken(), {"llm": 1.0}), 0.0)
    for step in (1, 2):
        save_shards(written(), tmp_path / "draft")
        name = f"step-{step:08d}-{checkpoint.tag}-{digest(tmp_path / 'draft')}.ckpt"
        (tmp_path / "draft").rename(tmp_path / name)
    before, newest = sorted(tmp_path.glob("step-*.ckpt"))
    assert checkpoint.newest() == newest
    target = newest / file
    target.unlink() if lost else target.write_bytes(target.read_bytes()[:-1] + b"?")
    assert checkpoint.newest() == before
    assert "damaged; going on from the one before it" in capsys.readouterr().out
    (before / file).unlink()
    with pytest.raises(ValueError, match=r"damaged .* Delete it"):
        checkpoint.newest()


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("exit 3",)


def test_an_index_that_would_run_something_is_refused(tmp_path: Path) -> None:
    save_shards(written(), tmp_path / "folder")
    index = FileSystemReader(tmp_path / "folder").read_metadata()
    index.planner_data = Evil()
    (tmp_path / "folder" / INDEX).write_bytes(pickle.dumps(index))
    with pytest.raises(ValueError, match=r"not the index of a checkpoint \(it names .*system"):
        load_any(tmp_path / "folder", {})


class Attribute:
    """An attribute of something, as Python 3.11.0 to 3.11.2 pickle members of enumerations."""

    def __init__(self, of: Any, name: str):
        self.of, self.name = of, name

    def __reduce__(self) -> tuple:
        return getattr, (self.of, self.name)


def test_of_attributes_an_index_holds_members_of_enumerations_alone(tmp_path: Path) -> None:
    save_shards(written(), tmp_path / "folder")
    whole = load_any(tmp_path / "folder", {})
    index = FileSystemReader(tmp_path / "folder").read_metadata()
    index.storage_meta.modules = [Attribute(_MEM_FORMAT_ENCODING, "TORCH_PRESERVE_FORMAT")]
    (tmp_path / "folder" / INDEX).write_bytes(pickle.dumps(index))
    assert str(load_any(tmp_path / "folder", {})) == str(whole)
    index.planner_data = Attribute(torch.Size, "__init__")
    (tmp_path / "folder" / INDEX).write_bytes(pickle.dumps(index))
    with pytest.raises(ValueError, match=r"not the index of a checkpoint \(it names __init__ of"):
        load_any(tmp_path / "folder", {})
