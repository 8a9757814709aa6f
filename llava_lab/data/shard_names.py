"""1. Shard names: files of a data set -> none of them is missing, and all are of one split.

The hub's names say of how many files one is, `train-00003-of-00008.parquet`, some with a digest
behind; so that a file less is no smaller data set, and one of an older upload no larger one.
"""

import re
from collections.abc import Sequence
from pathlib import Path

_OF = re.compile(r"(.+)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?")
_SPLIT = re.compile(r"(?:.*-)?(train|validation|valid|val|dev|eval|test)(?:-.*)?")


def check_whole(files: Sequence[Path]) -> None:
    """Refuse files of which some are missing, or are there twice, by what their names say.

    Raises:
        ValueError: Names a file, how many there are, and of how many.
    """
    of: dict[Path, list[tuple[int, int]]] = {}
    for file in files:
        if match := _OF.fullmatch(file.stem):
            of.setdefault(file.with_name(match[1]), []).append((int(match[3]), int(match[2])))
    for stem, found in of.items():
        total, last = max(found)
        first = int(last == total)  # some count from 1
        expected = [(total, number) for number in range(first, first + total)]
        if sorted(found) != expected:
            missing = [number for each, number in expected if (each, number) not in found]
            which = f"number {missing[0]} is not" if missing else "some are twice"
            raise ValueError(
                f"{stem}-*: {len(found)} files, whose names say that they are {total}; {which}: "
                "fetch them anew, or name those to be read one by one"
            )


def check_one_split(root: Path, files: Sequence[Path]) -> None:
    """Refuse a folder that holds several splits, of which one is probably not to be trained on.

    Args:
        root: The folder.
        files: The files that are read of it.

    Raises:
        ValueError: Names a file of two of them.
    """
    splits: dict[str, Path] = {}
    for file in files:
        within = file.relative_to(root).with_suffix("")
        if found := [match[1] for part in within.parts if (match := _SPLIT.fullmatch(part))]:
            splits.setdefault(found[-1], file)
    if len(splits) > 1:
        one, other = list(splits.values())[:2]
        raise ValueError(
            f"{root}: holds the splits {', '.join(splits)}, as {one.relative_to(root)} and "
            f"{other.relative_to(root)}; name the folder of one, or link its files into a folder"
        )
