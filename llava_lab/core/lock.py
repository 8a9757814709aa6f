"""Locks between processes: who waits says for whom, and a process that dies lets go."""

import datetime
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from llava_lab.core.atomic import write
from llava_lab.core.progress import say

FIRST_SECONDS = 1.0
AGAIN_SECONDS = 10.0
LOCKLESS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class Held(ValueError):
    """Another process holds the lock."""


@contextmanager
def lock(path: Path, what: str, wait: bool = True) -> Iterator[None]:
    """Hold a lock, so that one process at a time does something; it ends with the process.

    Where a system has no call for locks at all, filelock takes the file's existence for one: that
    one stays behind a process that is killed.

    Args:
        path: The lock's file; who holds it is written beside it.
        what: What the lock is for, for messages.
        wait: Whether to wait for another holder, saying so after a second and then every ten.

    Raises:
        Held: If another process holds it and `wait` is false.
        OSError: If the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = path.with_name(f"{path.name}.holder")
    kept = FileLock(path, thread_local=False)
    seconds, began = FIRST_SECONDS if wait else 0.0, time.monotonic()
    while True:
        try:
            kept.acquire(timeout=seconds)
            break
        except Timeout:
            if not wait:
                raise Held(f"{what} is kept by {_holder(holder)}; wait for its end") from None
            waited = f" since {time.monotonic() - began:.0f} s"
            say(f"{what}: waiting{waited} for {_holder(holder)}")
            seconds = AGAIN_SECONDS
        except (NotImplementedError, OSError) as error:
            if getattr(error, "errno", errno.ENOSYS) not in LOCKLESS:
                raise
            raise OSError(
                f"{path}: this file system has no locks (flock). Put the folder on one that has "
                "(--runs), or ask for it to be mounted with them"
            ) from error
    try:
        write(holder, json.dumps(_myself()) + "\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        kept.release()


def _myself() -> dict[str, str | int]:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}",
        "command": " ".join(sys.argv),
    }


def _holder(holder: Path) -> str:
    """Who holds a lock, for a message; the holder may just be writing it."""
    try:
        found = json.loads(holder.read_text(encoding="utf-8"))
        return (
            f"process {found['process']} on {found['host']} since {found['since']} "
            f"({found['command']})"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
