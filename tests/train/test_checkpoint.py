"""A checkpoint goes on at the same place on other devices, or says why it cannot."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

from llava_lab.core import ranks
from llava_lab.train.checkpoint import StageCheckpoint
from llava_lab.train.loss import NextToken
from llava_lab.train.stage import Stage

DEVICES = {1: SingleDeviceStrategy, 2: DDPStrategy, 4: DDPStrategy}


def trainer(world: int, micro: int, strategy: type | None = None, rank: int = 0) -> Any:
    kind = strategy or DEVICES[world]
    return SimpleNamespace(
        world_size=world,
        accumulate_grad_batches=micro,
        strategy=kind.__new__(kind),
        global_rank=rank,
        is_global_zero=rank == 0,
    )


def written(steps: int, world: int, micro: int, strategy: type | None = None) -> dict[str, Any]:
    """What a checkpoint holds that was written at the end of a step's last micro-batch."""
    done = steps * micro
    counted = {"ready": done, "started": done, "processed": done, "completed": done - 1}
    return {
        "split": {
            "devices": world,
            "micro-batches": micro,
            "strategy": (strategy or DEVICES[world]).__name__,
        },
        "random_states": [{"rank": rank} for rank in range(world)],
        "loops": {
            "fit_loop": {
                "epoch_loop.batch_progress": {"total": dict(counted), "current": dict(counted)}
            }
        },
    }


def checkpoint(folder: Path) -> StageCheckpoint:
    recipe = Stage(None, NextToken(), {"llm": 1.0})
    return StageCheckpoint(folder, "fingerprint", recipe, 60.0)


@pytest.mark.parametrize(
    ("before", "now"), [((1, 4), (2, 2)), ((2, 1), (1, 1)), ((1, 1), (2, 1)), ((4, 1), (1, 3))]
)
def test_the_place_is_counted_in_steps_on_any_devices(
    tmp_path: Path, capsys: pytest.CaptureFixture, before: tuple[int, int], now: tuple[int, int]
) -> None:
    found, callback = written(7, *before), checkpoint(tmp_path)
    callback.on_load_checkpoint(trainer(*now), torch.nn.Identity(), found)
    progress = found["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    done = 7 * now[1]
    wanted = {"ready": done, "started": done, "processed": done, "completed": done - 1}
    assert progress == {"total": wanted, "current": wanted}
    said = f"written with {before[0]} device(s); going on at the same place of the same order"
    assert (said in capsys.readouterr().out) == (before[0] != now[0])


def test_each_device_has_its_own_random_state_again(tmp_path: Path) -> None:
    for world, rank, wanted in ((2, 1, 1), (2, 0, 0), (4, 3, 0)):
        callback = checkpoint(tmp_path)
        callback.on_load_checkpoint(
            trainer(world, 1, rank=rank), torch.nn.Identity(), written(1, 2, 1)
        )
        assert callback.random_state == {"rank": wanted}


def test_what_cannot_go_on_says_with_what_it_could(tmp_path: Path) -> None:
    sharded = written(3, 2, 1, FSDPStrategy)
    with pytest.raises(ValueError, match=r"under FSDPStrategy.*devices=2.*--fresh"):
        checkpoint(tmp_path).on_load_checkpoint(trainer(2, 1), torch.nn.Identity(), sharded)


def test_the_released_way_has_the_split_in_its_fingerprint() -> None:
    data = SimpleNamespace(accumulate=lambda world: 4 // world)
    assert Stage(data, NextToken(), {"llm": 1.0}).deciding_split(trainer(2, 1)) == []
    released = Stage(data, NextToken(), {"llm": 1.0}, normalization="micro_batch")
    assert released.deciding_split(trainer(1, 4)) == [1, 4]
    assert released.deciding_split(trainer(2, 2)) == [2, 2]


def test_the_first_process_of_a_job_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ranks.NAMES:
        monkeypatch.delenv(name, raising=False)
    assert ranks.first()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert ranks.first()
    monkeypatch.setenv("RANK", "3")
    assert not ranks.first()


def test_a_lost_process_is_told_from_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]")
    assert not ranks.lost(closed), "there is no other process"
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    assert ranks.lost(closed)
    assert not ranks.lost(RuntimeError("shape mismatch"))
    assert not ranks.lost(ValueError("socket"))
