"""Atomic writes: a temporary file or folder, then a rename."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

LEFTOVER_SECONDS = 24 * 3600
PLAIN = re.compile(r"[\w+=@(),.-](?:[\w+=@(),. -]*[\w+=@(),-])?")
HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
DRAFT = ".draft"
_cleaned: set[Path] = set()


def plain_name(name: str, what: str) -> str:
    """Return a name that becomes that of a file or folder, or refuse it.

    Args:
        name: A name that the user gave.
        what: Option that holds it, for messages: "data.benchmarks: name".

    Raises:
        ValueError: If it is no plain file name, so that it could leave its folder, or begins with
            a dot, as temporary files do.
    """
    if not name or name[0] in ".-~" or not PLAIN.fullmatch(name) or len(name.encode()) > 150:
        raise ValueError(
            f"{what} {name!r:.200} is no plain file name: letters, digits and ' _.,+=@()-', "
            "150 bytes at the most, none of '.-~' or a space first, no dot or space last"
        )
    return name


def check_regular(path: Path, kind: str) -> None:
    """Refuse anything but a regular file: opening a pipe or a device could block for ever.

    Args:
        path: The file; a link is followed.
        kind: What it should be, for messages.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a folder, a pipe, a device or a socket, or must not be read.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no such {kind}") from error
    except OSError as error:
        raise ValueError(f"{path}: not readable ({error.strerror})") from error
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path}: a folder, not {'an' if kind[0] in 'aeiou' else 'a'} {kind}")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: a pipe, a device or a socket; only regular files are read")


def write(path: Path, text: str) -> None:
    """Write a text file atomically, and make its folder."""
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def link(source: Path, target: Path) -> None:
    """Hard-link a file to a second place, or copy it where the file system has no links."""
    with whole(target) as draft:
        draft.unlink()
        try:
            os.link(source, draft)
        except OSError:
            shutil.copyfile(source, draft)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary file to write; it is renamed to `path` unless an exception is raised.

    The file is flushed to disk before it is renamed, so that neither a kill nor a power cut leaves
    a partial file. Temporary files of dead processes in the same folder are removed.

    Raises:
        OSError: If writing failed, whatever exception the library that wrote raised.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    draft = path.with_name(_draft_name())
    try:
        # The mode of the user's umask; `tempfile` makes files that nobody else can read.
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        if path.exists():
            shutil.copymode(path, draft)
        try:
            yield draft
        except (
            RuntimeError,
            SafetensorError,
        ) as error:  # raised by torch and safetensors, mostly for a full disk
            raise OSError(errno.EIO, f"cannot be written ({error})", str(path)) from error
        _flush(draft)
        os.replace(draft, path)
        _flush(path.parent)
    except OSError as error:
        raise _named(error, draft, path) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary folder to fill; it is renamed to `path` unless an exception is raised.

    Args:
        path: The folder.
        flush: Whether its files are flushed to disk first; thousands of small ones take seconds.

    Raises:
        FileExistsError: If `path` exists and is no empty folder.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists already; choose another name or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    draft = path.with_name(_draft_name())
    draft.mkdir()
    try:
        yield draft
        for folder, _, files in os.walk(draft) if flush else ():
            for name in files:
                _flush(Path(folder) / name)
        os.replace(draft, path)
        _flush(path.parent)
    except OSError as error:
        raise _named(error, draft, path) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _named(error: OSError, draft: Path, path: Path) -> OSError:
    """Give an error the name of the final file in place of the temporary one's."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
    if error.errno is None or (name and not name.startswith(str(draft))):
        return error
    return OSError(error.errno, error.strerror, str(path) + name.removeprefix(str(draft)))


def _draft_name() -> str:
    """Name of a temporary file that no other process uses; it holds host and process id."""
    return f".{HOST}-{os.getpid()}-{uuid.uuid4().hex[:12]}{DRAFT}"


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files of dead processes, once for each folder and process.

    Whether a process of another machine lives is not known; its files are removed after a day.
    """
    if folder in _cleaned:
        return
    _cleaned.add(folder)
    for left in folder.glob(f".*-*-*{DRAFT}"):
        host, number, _ = left.name[1:].split("-", 2)
        dead = number.isdigit() and not _lives(int(number)) and host == HOST
        with contextlib.suppress(OSError):
            if dead or time.time() - left.stat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _flush(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot flush a folder
            raise
    finally:
        os.close(handle)
