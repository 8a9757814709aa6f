"""Locks: whoever waits says for whom."""

import errno
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llava_lab.core import lock


def test_who_waits_for_a_lock_says_for_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(lock, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(lock, "AGAIN_SECONDS", 0.1)
    path = tmp_path / "locks" / "abc"
    code = f"""
import sys, time
from pathlib import Path
from llava_lab.core.lock import lock
with lock(Path({str(path)!r}), "stage align"):
    print("held", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    said = f"stage align is kept by process {process.pid} on"
    with pytest.raises(lock.Held, match=said), lock.lock(path, "stage align", wait=False):
        raise AssertionError("two at once")

    def kill() -> None:
        while "waiting" not in "".join(heard):
            heard.append(capfd.readouterr().out)
        process.kill()

    heard: list[str] = []
    killer = threading.Thread(target=kill)
    killer.start()
    with lock.lock(path, "stage align"):  # a dead holder keeps nobody waiting
        killer.join()
    process.wait()
    assert f"llava_lab: stage align: waiting since 0 s for process {process.pid} on" in heard[-1]
    assert [each.name for each in path.parent.iterdir()] == ["abc"]


@pytest.mark.parametrize("error", [NotImplementedError("flock"), OSError(errno.ENOLCK, "none")])
def test_a_file_system_without_locks_is_named(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(lock.FileLock, "acquire", refuse)
    said = f"{tmp_path / 'abc'}: this file system has no locks"
    with pytest.raises(OSError, match=said), lock.lock(tmp_path / "abc", "stage align"):
        raise AssertionError("not held")
