"""0j. World: a folder of files made from a seed, whole or not at all."""

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from llava_lab.disk import new_folder

MANIFEST = "manifest.json"


@dataclass
class World:
    """Files that are the same for the same settings.

    Args:
        root: Folder to create. A finished world with the same settings is left as it is.
        seed: Seed of everything in it.
    """

    # Raise it with every change that alters a byte of any file: an old world is then refused.
    version: ClassVar[int]
    root: Path
    seed: int = 0

    def __post_init__(self) -> None:
        self.root = Path(self.root)
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.default == 0 else 1
            if field.name not in ("root", "seed") and value < least:
                name = f"{type(self).__name__} needs {field.name}"
                raise ValueError(f"{name} >= {least}, got {value}.")

    def generate(self) -> None:
        """Write the world unless it is there already; a killed run leaves no half-world."""
        if self._finished():
            return
        try:
            with new_folder(self.root) as draft:
                self._write(draft)
        except OSError:
            # Another process may have been faster.
            if not self._finished():
                raise

    def _rng(self, *key: object) -> random.Random:
        return random.Random("/".join(map(str, (self.seed, *key))))

    def _settings(self) -> dict[str, int]:
        settings = {name: value for name, value in asdict(self).items() if name != "root"}
        return {"generator_version": self.version, **settings}

    def _finished(self) -> bool:
        """Tell whether `root` holds this very world; refuse if it holds anything else."""
        if not self.root.exists() or (self.root.is_dir() and not any(self.root.iterdir())):
            return False
        way_out = "Delete the folder or choose another root."
        manifest = self.root / MANIFEST
        if not manifest.is_file():
            raise ValueError(f"{self.root} exists but is no tiny world (no {MANIFEST}). {way_out}")
        found, wanted = json.loads(manifest.read_text()).get("settings", {}), self._settings()
        names = sorted(name for name in found | wanted if found.get(name) != wanted.get(name))
        if names:
            there = ", ".join(f"{name}={found.get(name)}" for name in names)
            asked = ", ".join(f"{name}={wanted.get(name)}" for name in names)
            raise ValueError(f"{self.root} holds a world of {there}, not {asked}. {way_out}")
        return True

    # No ABC: the parser takes classes that are dataclasses all through for plain groups of keys.
    def _write(self, folder: Path) -> None:
        """Write every file, and the manifest with `finish`."""
        raise NotImplementedError

    def finish(self, folder: Path, files: dict[str, bytes]) -> None:
        """Write files by name, and the manifest of settings and digests."""
        digests = {}
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
            digests[name] = hashlib.sha256(content).hexdigest()
        manifest = {"settings": self._settings(), "sha256": digests}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def json_list(rows: Iterable[dict[str, Any]]) -> bytes:
    """Write a JSON list with a row on each line, so that line numbers and diffs mean something."""
    return ("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n").encode()


def json_lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """Write a row on each line."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
