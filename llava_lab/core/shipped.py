"""Files that ship with the package: configs, experiments and sweeps, in a checkout or a wheel."""

import sys
from collections.abc import Sequence
from pathlib import Path

from llava_lab.core import ranks

FOLDERS = ("configs", "experiments", "sweeps")
# A wheel holds the folders inside of the package; in a checkout they lie beside it.
_CHECKOUT = Path(__file__).resolve().parents[2]
_WHEEL = Path(__file__).resolve().parents[1] / "shipped"


def shipped(name: str) -> Path:
    """Find a file or folder that ships with the package.

    Args:
        name: Its path in the repository: "configs/paper", "experiments/llava15.yaml".

    Raises:
        FileNotFoundError: If there is no such file or folder; names both.
    """
    path = (_WHEEL if _WHEEL.is_dir() else _CHECKOUT) / name
    if not path.exists():
        raise FileNotFoundError(f"{name} does not ship with llava_lab: there is no {path}")
    return path


def with_shipped(arguments: Sequence[str]) -> list[str]:
    """Replace names of YAML files that do not exist by those of the package.

    `-c experiments/llava15.yaml` works in any folder; a file of that name that is here is taken
    first. One line on standard error says which files are the package's.
    """
    found = []
    for argument in arguments:
        option, equals, name = argument.rpartition("=")
        file = Path(name)
        ships = file.suffix == ".yaml" and file.parts[0] in FOLDERS and not file.exists()
        if ships and (not option or option == "--config"):
            argument = f"{option}{equals}{here_or_shipped(file)}"
        found.append(argument)
    return found


def here_or_shipped(file: Path) -> Path:
    """A file, or the one of its name that ships with the package where it is not here."""
    may_ship = bool(file.parts) and file.parts[0] in FOLDERS and not file.exists()
    path = _path(str(file)) if may_ship else None
    if path is None:
        return file
    if ranks.first():
        print(f"llava_lab: {file} is not here; taking {path}", file=sys.stderr, flush=True)
    return path


def _path(name: str) -> Path | None:
    try:
        return shipped(name)
    except FileNotFoundError:
        return None
