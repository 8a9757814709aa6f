"""Atomic writes: a file is there whole or not at all, whoever else writes or dies."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llava_lab.core import atomic as disk


def test_two_processes_that_write_one_file_leave_one_of_the_two(tmp_path: Path) -> None:
    path, texts = tmp_path / "file", ["a" * 500_000, "b" * 500_000]
    threads = [threading.Thread(target=disk.write, args=(path, text)) for text in texts * 8]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_text() in texts
    assert path.read_text() in texts and list(tmp_path.iterdir()) == [path]


def test_a_file_keeps_its_mode_and_a_new_one_has_the_umasks(tmp_path: Path) -> None:
    path = tmp_path / "file"
    before = os.umask(0o027)
    try:
        disk.write(path, "one")
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o600)
        disk.write(path, "two")
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_drafts_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".{disk.HOST}-{dead.pid}-abc{disk.DRAFT}"
    other = tmp_path / f".{disk.HOST}-{os.getppid()}-abc{disk.DRAFT}"
    far = tmp_path / f".ffffffff-{dead.pid}-abc{disk.DRAFT}"
    for path in (left, other, far):
        path.write_text("half")
    disk.write(tmp_path / "file", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"file", other.name, far.name}


def test_what_cannot_be_written_leaves_nothing_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(OSError, match=r"file") as caught, disk.whole(path) as draft:
        draft.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path)
    with pytest.raises(OSError, match="file"), disk.whole(path) as draft:
        raise RuntimeError("PytorchStreamWriter failed writing file")
    assert not list(tmp_path.iterdir())
