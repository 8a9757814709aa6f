"""World: settings and a seed -> a folder of generated files, written atomically."""

import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from llava_lab.core import verdict_worlds
from llava_lab.core.atomic import new_folder
from llava_lab.core.numbers import at_least
from llava_lab.core.progress import shown
from llava_lab.core.records import file_sha256, read_object, read_record, write_record

MANIFEST = verdict_worlds.MANIFEST


@dataclass
class World:
    """Base of generated data: the same settings give the same files.

    Args:
        root: Folder to create. A finished world with the same settings is left as it is.
        seed: Seed of everything in it.
    """

    # Raise it with every change of a byte of any file: an old world is then refused.
    version: ClassVar[int]
    root: Path
    seed: int = 0

    def __post_init__(self) -> None:
        self.root = Path(self.root)
        verdict_worlds.check_seed(self.seed, type(self).__name__)
        for each in fields(self):
            if each.name != "root":
                number = {each.name: getattr(self, each.name)}
                at_least(int(each.default != 0), f"{type(self).__name__}: ", **number)

    def generate(self) -> None:
        """Write the world unless it exists; a killed process leaves no partial world."""
        if self._finished():
            return
        try:
            # After a power cut the manifest reveals missing content.
            with new_folder(self.root, flush=False) as draft:
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
        """Whether `root` holds a world of these settings; anything else in it is refused."""
        if not self.root.exists() or (self.root.is_dir() and not any(self.root.iterdir())):
            return False
        way_out = "Delete the folder or choose another root."
        manifest = self.root / MANIFEST
        if not manifest.is_file():
            raise ValueError(f"{self.root} exists but is no tiny world (no {MANIFEST}). {way_out}")
        found, wanted = read_object(manifest, way_out).get("settings"), self._settings()
        if not isinstance(found, dict):
            raise ValueError(f"{manifest}: damaged, has no settings. {way_out}")
        names = sorted(name for name in found | wanted if found.get(name) != wanted.get(name))
        if names:
            there = ", ".join(f"{name}={found.get(name)}" for name in names)
            sought = ", ".join(f"{name}={wanted.get(name)}" for name in names)
            raise ValueError(f"{self.root} holds a world of {there}, not {sought}. {way_out}")
        self._verify(manifest, way_out)
        return True

    def _verify(self, manifest: Path, way_out: str) -> None:
        """Refuse a world with a missing or changed file."""
        digests = read_record(manifest, {"files": dict}, way_out)["files"]
        files = shown(list(digests.items()), f"{self.root}: files compared")
        odd = [name for name, digest in files if _digest(self.root / name) != digest]
        if odd:
            raise ValueError(
                f"{self.root / odd[0]}: missing or damaged, one of {len(odd)} of the world's "
                f"{len(digests)} files. Delete {self.root}; it is made again."
            )

    # No ABC: the parser treats pure dataclasses as groups of keys.
    def _write(self, folder: Path) -> None:
        """Write every file, and the manifest with `finish`."""
        raise NotImplementedError

    def finish(self, folder: Path, files: dict[str, bytes]) -> None:
        """Write files by name, and the manifest of settings and of every file's digest."""
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        every = sorted(path for path in folder.rglob("*") if path.is_file())
        made = shown(every, f"{self.root}: digests of files")
        digests = {path.relative_to(folder).as_posix(): _digest(path) for path in made}
        write_record(folder / MANIFEST, {"settings": self._settings(), "files": digests})


def _digest(path: Path) -> str | None:
    """SHA-256 of a file's bytes; None if there is none."""
    return file_sha256(path) if path.is_file() else None


def json_list(rows: Iterable[dict[str, Any]]) -> bytes:
    """Write a JSON list with one row a line, for useful line numbers and diffs."""
    return ("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n").encode()


def json_lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """Write one row a line."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
