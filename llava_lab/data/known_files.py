"""3. Known files: what reading whole pictures and videos has found, kept from start to start.

It is kept by a file's path, size, and times of change. Every write sets a file's change time
(ctime), which no program can set back; so a changed file is taken for the old one only where the
clock was set back, or the file system rounds its times so much that a file that was read and
written again within a moment looks the same. The way out is to delete the cache.
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llava_lab.core.cache import alone, cache_folder, kept_if_possible, stamp
from llava_lab.core.progress import progress
from llava_lab.data.image_folder import frame_files
from llava_lab.data.media.inside import inside

THREADS = min(16, os.cpu_count() or 1)
AT_ONCE = 512  # files handed to the threads, and written to the cache, at once

# Name of a file in its folder -> its state, and what was found.
_Found = dict[str, tuple[str, Any]]


class KnownFiles:
    """What one rule has found in files; of each folder of files there is one list in the cache.

    Args:
        rule: Name of what is found, and how: a plain file name.
    """

    def __init__(self, rule: str):
        self.rule = rule
        self.folders: dict[str, _Found] = {}
        self.read: dict[str, int] = {}

    def find(
        self, paths: Iterable[Path], look: Callable[[Path], Any], what: str
    ) -> tuple[dict[Path, Any], dict[Path, str]]:
        """What was found in each file; files that are not known, or have changed, are read.

        One process at a time reads: those beside it, such as the other ranks of a job, wait and
        then know what it has found.

        Args:
            paths: Images and videos.
            look: Reads a file; what it returns is a JSON value.
            what: What is done to the files, for the progress bar.

        Returns:
            What `look` has found in each file; and of each other one the message of its error,
            which is not kept.
        """
        every = list(dict.fromkeys(paths))
        found, missing = self._known(every)
        faults: dict[Path, str] = {}
        if missing:
            for folder in {path.parent for path in missing}:
                self._recall(str(folder))
            recalled, missing = self._known(missing)
            found |= recalled
        if missing:
            kept = self._list(str(missing[0].parent))
            with alone(kept.with_suffix(".lock"), what):
                for folder in {path.parent for path in missing}:
                    self._recall(str(folder))
                recalled, missing = self._known(missing)
                found |= recalled
                for path, value, fault in self._read(missing, look, what):
                    if fault:
                        faults[path] = fault
                    else:
                        found[path] = value
        return {path: found[path] for path in every if path in found}, faults

    def _known(self, paths: Sequence[Path]) -> tuple[dict[Path, Any], list[Path]]:
        """What is known of files that have not changed; and the other files."""
        found: dict[Path, Any] = {}
        missing = []
        for path, state in zip(paths, _states(paths), strict=True):
            known = self.folders.get(str(path.parent), {}).get(path.name)
            if known is not None and known[0] == state:
                found[path] = known[1]
            else:
                missing.append(path)
        return found, missing

    def _read(
        self, paths: Sequence[Path], look: Callable[[Path], Any], what: str
    ) -> Iterator[tuple[Path, Any, str]]:
        """Read files in threads; yield each with what was found, or its error."""

        def read(path: Path) -> tuple[str, Any, str]:
            state = state_of(path)
            try:
                return state, look(path), ""
            except (OSError, ValueError) as problem:
                return state, None, str(problem) or type(problem).__name__

        with ThreadPoolExecutor(THREADS) as pool, progress(what, len(paths)) as bar:
            for start in range(0, len(paths), AT_ONCE):
                some, lines = paths[start : start + AT_ONCE], {}
                for path, (state, value, fault) in zip(some, pool.map(read, some), strict=True):
                    if state and not fault:
                        folder = str(path.parent)
                        self.folders.setdefault(folder, {})[path.name] = state, value
                        lines.setdefault(folder, []).append(_line(path.name, state, value))
                    bar.update()
                    yield path, value, fault
                for folder, text in lines.items():
                    self._keep(folder, "".join(text))

    def _list(self, folder: str) -> Path:
        """The list of what is known of one folder's files."""
        return cache_folder("files") / self.rule / f"{_sum(folder)}.jsonl"

    def _keep(self, folder: str, lines: str) -> None:
        path = self._list(folder)
        with kept_if_possible(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(lines)

    def _recall(self, folder: str) -> None:
        """Read a list, if it has grown since; damaged lines are ignored."""
        path = self._list(folder)
        size = path.stat().st_size if path.is_file() else 0
        if size == self.read.get(folder, 0):
            return
        self.read[folder] = size
        known = self.folders.setdefault(folder, {})
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                digest, _, values = line.rstrip("\n").partition(" ")
                if digest == _sum(values):
                    name, state, value = json.loads(values)
                    known[name] = state, value


def state_of(path: Path) -> str:
    """Size and times of a file, or of all frames of a folder; empty if there is none.

    What is inside of an archive changes with the archive.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISDIR(found.st_mode):
            return stamp(found)
        return _sum(json.dumps([[file.name, state_of(file)] for file in frame_files(path)]))
    except NotADirectoryError:
        place = inside(path)
        return "" if place is None else state_of(place[0])
    except (OSError, ValueError):
        return ""


def _states(paths: Sequence[Path]) -> Iterator[str]:
    """States of files; of many they are asked for by threads, as network disks are slow."""
    if len(paths) <= AT_ONCE:
        yield from map(state_of, paths)
        return
    parts = [paths[start : start + AT_ONCE] for start in range(0, len(paths), AT_ONCE)]
    with ThreadPoolExecutor(THREADS) as pool:
        for states in pool.map(lambda part: list(map(state_of, part)), parts):
            yield from states


def _line(name: str, state: str, value: Any) -> str:
    values = json.dumps([name, state, value])
    return f"{_sum(values)} {values}\n"


def _sum(values: str) -> str:
    return hashlib.sha256(values.encode()).hexdigest()[:16]
