"""12. Matching: a run's resolved configuration -> the row of a published table that it is."""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any

from llava_lab.data.grids import parse_grids
from llava_lab.report.published import Conditions, Published, Row

STAND_INS = ("tiny", "small")  # scales whose parts and data stand in for published ones
Config = Mapping[str, Any]


def row_of(table: Published, config: Config) -> Row | None:
    """The row of a table that a configuration is, or None.

    Args:
        table: The table.
        config: A resolved configuration, as a run's config.yaml holds it.

    Raises:
        ValueError: If it is two rows, which is a mistake in the table's file.
    """
    found = [row for row in _open(table, config) if next(_lacking(row, config), None) is None]
    if len(found) > 1:
        names = " and ".join(repr(row.name) for row in found)
        raise ValueError(
            f"{table.id}: {names} take the same configuration; their matches must differ"
        )
    return found[0] if found else None


def nearest(table: Published, config: Config) -> tuple[Row, list[str]] | None:
    """The row that most of a configuration is, and what keeps it from being that row.

    None where no row of the table can be reproduced at the run's scale.
    """
    rows = [(row, lacking(row, config)) for row in _open(table, config)]
    return min(rows, key=lambda each: len(each[1]), default=None)


def lacking(row: Row, config: Config) -> list[str]:
    """What keeps a configuration from being a row that can be reproduced: nothing, if it is."""
    return list(_lacking(row, config))


def _lacking(row: Row, config: Config) -> Iterator[str]:
    if config.get("scale") in STAND_INS:
        yield from _unmet(row.everywhere or {}, config)
    else:
        yield from _unmet(row.paper or {}, config)
        yield from _shortened(row.paper or {}, config)


def _open(table: Published, config: Config) -> list[Row]:
    """Rows that runs of a scale can be: those of which something stands in at some scales alone."""
    small = config.get("scale") in STAND_INS
    return [row for row in table.rows if row.everywhere is not None and (small or not row.stand_in)]


def _unmet(conditions: Conditions, config: Config) -> Iterator[str]:
    for key, wanted in conditions.items():
        found = _at(config, key)
        if not _is(wanted, found, key):
            yield f"{key} is {_shown(found)}, not {_shown(wanted)}"


def _shortened(conditions: Conditions, config: Config) -> Iterator[str]:
    """Stages that do not read all of their data, as published models did but where it is said."""
    for name, stage in (config.get("stages") or {}).items():
        data = stage.get("data", {})
        sources = data.get("sources") or []
        said = conditions.get(f"stages.{name}.data.sources")
        asked = said if isinstance(said, list) else []
        parts = [_source(each) for each in sources if each.get("sampling", "all") != "all"]
        own = any(not any(fnmatchcase(part, pattern) for pattern in asked) for part in parts)
        weighed = any(each.get("weight", 1) != 1 for each in sources)
        if own or weighed or data.get("max_steps") is not None:
            yield f"stages.{name} reads a part of its data"


def _at(config: Config, key: str) -> Any:
    """The value of a dotted key, or None."""
    found: Any = config
    for part in key.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found


def _is(wanted: Any, found: Any, key: str) -> bool:
    """Whether a value meets a condition, as docs/tables.md describes them."""
    if isinstance(wanted, Mapping):
        return any(_is(each, found, key) for each in wanted["any"])
    if wanted is None or found is None:
        return wanted is found
    if isinstance(wanted, list):
        names = _names(found)
        pairs = [[_named(name, pattern) for name in names] for pattern in wanted]
        return len(names) == len(wanted) and all(map(any, [*pairs, *zip(*pairs, strict=True)]))
    if isinstance(wanted, bool) or isinstance(found, bool):
        return wanted is found or wanted == "*"
    if isinstance(wanted, int | float):
        return isinstance(found, int | float) and float(found) == float(wanted)
    if isinstance(found, Mapping):
        found = _class(found)
    return fnmatchcase(str(found), wanted) or (key.endswith(".grids") and _same(found, wanted))


def _names(found: Any) -> list[str]:
    """Names of stages, file names of sources, or the texts of a list.

    A source of which a part is read has that behind its name: "detail_23k.json (random:5%)".
    """
    if isinstance(found, Mapping):
        return [name for name, stage in found.items() if stage is not None]
    if not isinstance(found, Sequence) or isinstance(found, str):
        return [str(found)]
    return [
        _source(each) if isinstance(each, Mapping) else PurePath(str(each)).name for each in found
    ]


def _source(source: Config) -> str:
    name, part = PurePath(str(source.get("path", ""))).name, source.get("sampling", "all")
    return name if part == "all" else f"{name} ({part})"


def _named(name: str, pattern: str) -> bool:
    """Whether a name is of a pattern, which may leave out how much of a source is read."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.partition(" (")[0], pattern)


def _class(found: Mapping[str, Any]) -> str:
    """Name of the class that stands there, without its module."""
    return str(found.get("class_path", "")).rpartition(".")[2]


def _same(found: Any, wanted: str) -> bool:
    """Whether two lists of candidate grids hold the same ones, however they are written."""
    return set(parse_grids(found)) == set(parse_grids(wanted))


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and "any" in value:
        return " or ".join(map(_shown, value["any"]))
    if isinstance(value, Mapping):
        return _class(value) or ", ".join(_names(value))
    if isinstance(value, list):
        return ", ".join(_names(value)) or "nothing"
    return "null" if value is None else str(value)
