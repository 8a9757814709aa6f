"""Messages: an error -> one sentence that says what is wrong and what to do about it."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import yaml
from omegaconf.errors import OmegaConfBaseException

SPACE = "Free some space, or choose another place; the same command goes on."
WAYS_OUT = {
    errno.ENOSPC: SPACE,
    errno.EDQUOT: SPACE,
    errno.EROFS: "Choose a place that can be written.",
    errno.EACCES: "Choose a place that you may read and write.",
    errno.EPERM: "Choose a place that you may read and write.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or use fewer workers.",
}


def listed(lines: Sequence[str], most: int) -> str:
    """Join at most `most` lines for a message, with "..." behind them where there are more."""
    return "\n  ".join([*lines[:most], *(["..."] if len(lines) > most else [])])


def explained(error: Exception) -> str | None:
    """Message for an error that the user or the machine caused; None for a bug of this package."""
    if isinstance(error, OSError):
        return _of_file(error)
    if isinstance(error, RecursionError):
        return "an option or a file is nested too deeply to be read"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        reason = str(error).split(". ")[0] or "out of memory"
        return f"{reason}. Choose a smaller micro_batch_size, images_per_batch or model."
    if "does not have a deterministic implementation" in str(error):
        operation = str(error).split()[0]
        return (
            f"trainer.deterministic is true, and this device has no such {operation}. Set it to "
            "warn, which leaves that one as it is, or leave it out."
        )
    if isinstance(error, OmegaConfBaseException):
        key = (error.full_key or "").partition(".")[2]  # behind the verb
        reason = str(error).splitlines()[0]
        return f"{key}: {reason}. A reference to another option is ${{its.name}}".removeprefix(": ")
    user = (ValueError, yaml.YAMLError)
    if isinstance(error, user) or type(error).__name__ == "MisconfigurationException":
        return str(error).strip() or type(error).__name__
    return None


def _of_file(error: OSError) -> str:
    """Message for an error of the operating system: the file, what is wrong and the way out."""
    if error.errno is None or error.strerror is None:
        return str(error) or type(error).__name__
    name = error.filename if isinstance(error.filename, (str, os.PathLike)) else None
    if name is not None and error.errno in (errno.EEXIST, errno.ENOTDIR):
        path = Path(os.fspath(name))
        for folder in (path, *path.parents):
            if folder.is_file():
                return f"{folder} is a file where a folder belongs. Move it, or choose another name"
    where = f"{os.fspath(name)}: " if name is not None else ""
    way_out = WAYS_OUT.get(error.errno)
    return f"{where}{error.strerror}{f'. {way_out}' if way_out else ''}"
