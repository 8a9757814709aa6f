"""Ranks: which process of a job prints and writes, and whether another one has ended."""

import os
import re
import sys

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


def lost(error: BaseException) -> bool:
    """Whether an error means that another process of the job has ended."""
    if "torch" not in sys.modules:  # there is no job, and importing it would take seconds
        return False
    import torch.distributed as dist

    if not (isinstance(error, RuntimeError) and dist.is_available() and dist.is_initialized()):
        return False
    return isinstance(error, dist.DistError) or bool(LOST.search(str(error)))
