"""3. Verified: images and videos -> their sizes, after decoding each whole file once."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import PIL

from llava_lab.core.fingerprint import fingerprint
from llava_lab.core.progress import progress
from llava_lab.data.image_folder import VideoPath, frame_files
from llava_lab.data.views.base import Views, verify_media
from llava_lab.data.views.video import Frames

Size = tuple[int, ...]

THREADS = min(16, os.cpu_count() or 1)
AT_ONCE = 512  # files handed to the threads, and written to the cache, at once

# Files that this process has decoded: rule and path -> state and size.
_known: dict[tuple[str, str], tuple[str, Size]] = {}


def verified(
    paths: Iterable[Path], views: Views, cache: Path | None, what: str
) -> tuple[dict[Path, Size], dict[Path, str]]:
    """Decode every file that was not decoded before, and return its size or what is wrong.

    Args:
        paths: Images and videos.
        views: How they are shown.
        cache: Folder that lists files that were decoded, by path, size and times; None keeps the
            list in this process only.
        what: What the files are, for the progress bar.

    Returns:
        Width, height and, of a video, the frames that are shown, of each file that can be read; and
        of each other one, why it cannot.
    """
    rules = {video: _rule(views, video) for video in (False, True)}
    if cache is not None:
        for rule in set(rules.values()):
            _recall(cache, rule)
    sizes: dict[Path, Size] = {}
    faults: dict[Path, str] = {}
    missing: dict[str, list[Path]] = {}
    for path in dict.fromkeys(paths):
        rule = rules[isinstance(path, VideoPath)]
        known = _known.get((rule, str(path)))
        if known is not None and known[0] == _state(path):
            sizes[path] = known[1]
        else:
            missing.setdefault(rule, []).append(path)
    for rule, files in missing.items():
        for path, state, found in _decode(files, views, what, cache, rule):
            if isinstance(found, str):
                faults[path] = found
            else:
                sizes[path] = found
                _known[rule, str(path)] = state, found
    return sizes, faults


def _decode(
    paths: Sequence[Path], views: Views, what: str, cache: Path | None, rule: str
) -> Iterator[tuple[Path, str, Size | str]]:
    """Yield each file with its state, and its size or error; sizes are added to the cache."""

    def decode(path: Path) -> tuple[Path, str, Size | str]:
        state = _state(path)
        try:
            return path, state, tuple(verify_media(path, views))
        except (OSError, ValueError) as problem:
            return path, state, str(problem)

    starts = range(0, len(paths), AT_ONCE)
    counted = progress(f"{what}: files decoded", len(paths))
    with ThreadPoolExecutor(THREADS) as pool, counted as bar:
        for start in starts:
            done = []
            for each in pool.map(decode, paths[start : start + AT_ONCE]):
                done.append(each)
                bar.update()
            if cache is not None:
                cache.mkdir(parents=True, exist_ok=True)
                with _file(cache, rule).open("a", encoding="utf-8") as file:
                    file.writelines(_line(*each) for each in done if not isinstance(each[2], str))
            yield from done


def _rule(views: Views, video: bool) -> str:
    """Key of everything that decides how a file is loaded; most views load images alike."""
    decoders = (PIL.__version__, av.__version__)
    alike = type(views).load is Views.load or (type(views) is Frames and not video)
    values = (decoders,) if alike else (decoders, views)
    return fingerprint(*values, leave_out=("idle", "layout_only"))[:24]


def _state(path: Path) -> str:
    """Hash the size and times of a file, or of all frames of a folder; empty if there is none.

    Every write to a file sets its change time (ctime), which cannot be set back.
    """
    try:
        files = frame_files(path) if path.is_dir() else [path]
        states = [(file.name, file.stat()) for file in files]
    except (OSError, ValueError):
        return ""
    return _sum(json.dumps([[n, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for n, s in states]))


def _file(cache: Path, rule: str) -> Path:
    return cache / f"{rule}.jsonl"


def _line(path: Path, state: str, size: Size | str) -> str:
    values = json.dumps([str(path), state, size])
    return f"{_sum(values)} {values}\n"


def _sum(values: str) -> str:
    return hashlib.sha256(values.encode()).hexdigest()[:16]


def _recall(cache: Path, rule: str) -> None:
    """Read the cache; damaged lines are ignored."""
    path = _file(cache, rule)
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            digest, _, values = line.rstrip("\n").partition(" ")
            if digest == _sum(values):
                name, state, size = json.loads(values)
                _known[rule, name] = state, tuple(size)
