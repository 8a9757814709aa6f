"""GPUs: which of this machine's GPUs each of several jobs has to itself."""

import math
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    Where the user has set it (numbers, UUIDs, MIG instances) those that stand there.
    """
    import torch

    count, named = torch.cuda.device_count(), os.environ.get(VISIBLE)
    if named is None:
        return [str(number) for number in range(count)]
    names = [name.strip() for name in named.split(",")]
    # CUDA shows a process one MIG instance at the most, however many are named.
    return names if count and names[0].startswith("MIG") else names[:count]


class Pool:
    """Hands GPUs out to jobs that run at once, in the order in which they ask.

    Each has its GPUs to itself, unless there are more jobs than GPUs: then jobs share one.

    Args:
        names: The GPUs.
        jobs: Jobs at once.
    """

    def __init__(self, names: Sequence[str], jobs: int):
        self.names, self.jobs = names, jobs
        self.share = math.ceil(jobs / len(names))  # jobs on one GPU
        self._used: Counter[str] = Counter()
        self._freed, self._turn = threading.Condition(), threading.Lock()

    def __str__(self) -> str:
        shared = f", up to {self.share} jobs on each" if self.share > 1 else ""
        return f"on GPUs {','.join(self.names)}{shared}"

    def wanted(self, trainer: Mapping[str, Any]) -> int:
        """How many GPUs a job gets.

        Args:
            trainer: Options of its trainer. `devices: auto` is an equal share of all GPUs.

        Raises:
            ValueError: If they are not there, or named one by one.
        """
        devices = trainer["devices"]
        if trainer["accelerator"] == "cpu":
            return 0
        if devices in ("auto", -1, "-1"):
            return max(1, len(self.names) // self.jobs)
        if not str(devices).isdecimal():
            raise ValueError(
                f"trainer.devices is {devices!r}: a sweep gives each job GPUs of its own, so "
                f"say how many; {VISIBLE} says among which"
            )
        if int(devices) > len(self.names):
            raise ValueError(
                f"trainer.devices is {devices}, and there are {len(self.names)} GPUs "
                f"({','.join(self.names)})"
            )
        return int(devices)

    @contextmanager
    def taken(self, count: int) -> Iterator[list[str]]:
        """Some GPUs, the least used ones; waits until there are so many."""
        with self._turn, self._freed:
            self._freed.wait_for(lambda: len(self._free()) >= count)
            mine = self._free()[:count]
            self._used.update(mine)
        try:
            yield mine
        finally:
            with self._freed:
                self._used.subtract(mine)
                self._freed.notify_all()

    def _free(self) -> list[str]:
        free = [name for name in self.names if self._used[name] < self.share]
        return sorted(free, key=self._used.__getitem__)
