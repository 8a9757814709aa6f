"""Ranks: which process of a job prints and writes, and whether another one has ended."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Result = TypeVar("Result")

NAMES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
LOST = re.compile(
    r"gloo|NCCL|connection (was )?(closed|reset|refused)|broken pipe|socket|remote process",
    re.IGNORECASE,
)
# Options of the trainer that say where a run is computed, and not what comes out.
WHERE = ("accelerator", "strategy", "devices", "num_nodes")


def first() -> bool:
    """Whether this process is the one that prints and writes: rank 0, or the only process."""
    return not any(int(os.environ.get(name) or 0) for name in NAMES)


def several() -> bool:
    """Whether this process is one of a job of several that have found each other."""
    if "torch" not in sys.modules:  # there is no job, and importing it would take seconds
        return False
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def check_tasks(trainer: Mapping[str, Any]) -> None:
    """Refuse other devices than Slurm has started tasks for: some would idle, or all would wait.

    Args:
        trainer: Options of the trainer.

    Raises:
        ValueError: Names both numbers.
    """
    tasks, name = os.environ.get("SLURM_NTASKS"), os.environ.get("SLURM_JOB_NAME")
    # As Lightning has it: in an interactive job, and under torchrun, Slurm's tasks do not count.
    if tasks is None or name in ("bash", "interactive") or "TORCHELASTIC_RUN_ID" in os.environ:
        return
    devices, nodes = trainer["devices"], trainer["num_nodes"]
    if str(devices).isdecimal() and int(devices) * nodes != int(tasks):
        raise ValueError(
            f"Slurm has {tasks} task(s) in this job, and trainer.devices={devices} on "
            f"trainer.num_nodes={nodes} want one for each device: "
            f"srun --nodes={nodes} --ntasks-per-node={devices} python -m llava_lab ..."
        )


def lost(error: BaseException) -> bool:
    """Whether an error means that another process of the job has ended."""
    if not (isinstance(error, RuntimeError) and several()):
        return False
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or bool(LOST.search(str(error)))


def on_one_rank(function: Callable[[], Result]) -> Result:
    """Call a function on rank 0, and broadcast its result or exception."""
    if not several():
        return function()
    import torch.distributed as dist

    found: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            found = [function()]
        except (OSError, ValueError) as error:
            found = [error]
    dist.broadcast_object_list(found, src=0)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]
