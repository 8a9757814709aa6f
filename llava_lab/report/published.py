"""12. Published: the papers' own numbers, each with its source."""

from pathlib import Path
from typing import Any

import yaml

KINDS = ("retrieved", "memory", "derived")


def published(experiment: str, folder: Path) -> list[dict[str, Any]]:
    """Read the published rows of an experiment from a folder of YAML files.

    Args:
        experiment: Name of the experiment, as in a file's `experiment` key: a name or several.
        folder: Where the files lie, usually `configs/paper`.

    Returns:
        One mapping for each row: model, values by benchmark, and its table's title, source,
        source_kind (how the number was come by), provenance and notes. Empty where no file is
        about the experiment.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; it should hold the published numbers")
    rows = []
    for path in sorted(folder.glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not {"experiment", "tables"} <= content.keys():
            raise ValueError(f"{path}: needs the keys experiment and tables")
        names = content["experiment"]
        if experiment in ([names] if isinstance(names, str) else names):
            for table in content["tables"]:
                rows += _rows(table, path)
    return rows


def _rows(table: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    missing = [key for key in ("title", "source", "source_kind", "rows") if not table.get(key)]
    if missing:
        raise ValueError(f"{path}: table {table.get('title')!r} lacks {', '.join(missing)}")
    if table["source_kind"] not in KINDS:
        raise ValueError(
            f"{path}: table {table['title']!r} has source_kind {table['source_kind']!r};"
            f" it is one of {', '.join(KINDS)}"
        )
    notes = table.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise ValueError(
            f"{path}: table {table['title']!r}: notes are texts; quote one that has a colon"
        )
    shared = {key: table[key] for key in ("title", "source", "source_kind")}
    shared |= {"provenance": table.get("provenance", ""), "notes": notes}
    return [{"model": row["model"], "values": row["values"], **shared} for row in table["rows"]]
