"""Files that ship with the package: configs, experiments and sweeps, in a checkout or a wheel."""

from pathlib import Path

FOLDERS = ("configs", "experiments", "sweeps")
_CHECKOUT = Path(__file__).resolve().parents[2]
_WHEEL = Path(__file__).resolve().parents[1] / "shipped"


def shipped(name: str) -> Path:
    """Find a file or folder that ships with the package.

    In a checkout the folders lie beside the package, in a wheel they lie inside of it.

    Args:
        name: Its path in the repository: "configs/paper", "experiments/llava15.yaml".

    Raises:
        FileNotFoundError: If there is no such file or folder; names both.
    """
    root = _CHECKOUT if (_CHECKOUT / "pyproject.toml").is_file() else _WHEEL
    path = root / name
    if not path.exists():
        raise FileNotFoundError(f"{name} does not ship with llava_lab: there is no {path}")
    return path
