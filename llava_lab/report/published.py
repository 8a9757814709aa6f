"""12. Published: the papers' own tables, each with its source, and what a run must be for a row."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from math import isfinite
from pathlib import Path, PurePath
from typing import Any, Literal

from llava_lab.core.shipped import shipped
from llava_lab.core.yaml_file import read_mapping

PAPER = shipped("configs/paper")
# What is in the folder beside tables.
COLUMNS, RECIPES, LMMS_EVAL = "columns.yaml", "recipes.yaml", "lmms_eval.yaml"
KINDS = ("results", "recipe", "model card", "training compute")
SOURCES = ("retrieved", "memory", "derived")
PROVENANCES = (
    *("primary", "paper_text_copy", "third_party_transcription", "mixed", "computed", "recalled"),
)
NEEDED = ("title", "source", "source_kind", "provenance", "columns", "rows")
KNOWN = {*NEEDED, "kind", "derived", "notes"}
ROW = {"name", "settings", "values", "note", "matches", "paper", "stand_in", "experiment"}
Conditions = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes:
        name: Its name, which means the same in every table.
        unit: What its figures are: "%", "points", "hours".
        better: Which way is better, or None where that is not known.
        ours: What a benchmark of ours must be to measure the same: `questions`, a pattern of the
            file's name, or of its folder's and its own; `metric`, the class; `score`, its name;
            `judge`, the model that judged what was published. None where none of ours does.
        whole: Its figure of a score that is 1 (100 %) with us.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"] | None = None
    ours: Mapping[str, str] | None = None
    whole: float = 100

    def asked_by(self, benchmark: Mapping[str, Any]) -> bool:
        """Whether a benchmark of a configuration measures the same.

        Args:
            benchmark: Its options, of which `questions` and `metric` count.
        """
        if self.ours is None:
            return False
        metric = benchmark.get("metric", {})
        name = metric if isinstance(metric, str) else metric.get("class_path", "")
        pattern = self.ours["questions"]
        parts = PurePath(str(benchmark.get("questions", ""))).parts
        file = "/".join(parts[-1 - pattern.count("/") :])
        return name.rpartition(".")[2] == self.ours["metric"] and fnmatchcase(file, pattern)


@dataclass(frozen=True)
class Row:
    """A row of a published table.

    Attributes:
        name: What it is called.
        values: Figures by column, as printed; those that are not printed are not there.
        settings: What is said of it in texts or numbers, such as its LM.
        note: What else has to be known of it, or None.
        everywhere: What a run of any scale must be to stand in this row; None if none can.
        paper: What a run must be where no parts and no data stand in for the published ones.
        stand_in: What stands in for the row's own at another scale: then a run of that scale alone
            can be placed. None where there is no need.
        experiment: Experiment beside whose plan the row is shown, or None.
    """

    name: str
    values: Mapping[str, float]
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str | None = None
    everywhere: Conditions | None = None
    paper: Conditions | None = None
    stand_in: str | None = None
    experiment: str | None = None


@dataclass(frozen=True)
class Published:
    """A published table.

    Attributes:
        id: Its file's name and its own: "llava15/table2".
        title: What it is about.
        kind: `results`, or `recipe`, `model card`, `training compute`.
        source: Document and place.
        source_kind: How its numbers were come by: read there, recalled, or derived.
        provenance: What was read: the authors' own page, a text copy of a paper, ...
        columns: Columns in their order.
        derived: Names of columns that are computed from others.
        notes: Its traps, and what its figures are.
        rows: Rows in their order.
    """

    id: str
    title: str
    kind: str
    source: str
    source_kind: str
    provenance: str
    columns: tuple[Column, ...]
    derived: tuple[str, ...]
    notes: tuple[str, ...]
    rows: tuple[Row, ...]


def published(id: str, folder: Path = PAPER) -> Published:
    """The published table of an id.

    Raises:
        ValueError: If there is none; names those that are like it.
    """
    file, _, name = id.partition("/")
    tables = _tables(folder, file) if file in _files(folder) else {}
    if name in tables:
        return tables[name]
    known = [table.id for table in every(folder)]
    near = [each for each in known if each.startswith(f"{file}/")]
    near = near or get_close_matches(id, known, 5, 0.5) or known
    raise ValueError(
        f"no published table is called {id!r}; "
        + ("there are " if near is known else "near it are ")
        + f"{', '.join(near[:12])}. `table --paper` lists all {len(known)}"
    )


def every(folder: Path = PAPER) -> Iterator[Published]:
    """All published tables, in the order of their files."""
    for file in _files(folder):
        yield from _tables(folder, file).values()


@cache
def _files(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; it should hold the published numbers")
    names = sorted(path.name for path in folder.glob("*.yaml"))
    return tuple(
        name.removesuffix(".yaml") for name in names if name not in (COLUMNS, RECIPES, LMMS_EVAL)
    )


@cache
def _tables(folder: Path, file: str) -> dict[str, Published]:
    path = folder / f"{file}.yaml"
    return {name: _table(folder, path, name, given) for name, given in read_mapping(path).items()}


@cache
def columns(folder: Path) -> dict[str, Column]:
    """Columns of all tables, by name."""
    path, found = folder / COLUMNS, {}
    for group, given in read_mapping(path).items():
        where = f"{path}: {group}"
        _check(where, given, ("unit", "columns"), {"unit", "columns", "better", "ours", "whole"})
        if given.get("better") not in (None, "higher", "lower"):
            raise ValueError(f"{where}: better is {given['better']!r}; it is higher or lower")
        for name in given["columns"]:
            if name in found:
                raise ValueError(f"{where}: {name!r} has a unit already")
            ours = given.get("ours", {}).get(name)
            whole = given.get("whole", 100)
            found[name] = Column(name, given["unit"], given.get("better"), ours, whole)
    return found


@cache
def recipes(folder: Path) -> dict[str, dict[str, Conditions]]:
    """Conditions that rows name together, by name: `every` and `paper`."""
    path = folder / RECIPES
    found = read_mapping(path) if path.is_file() else {}
    for name, given in found.items():
        _check(f"{path}: {name}", given, ("every",), {"every", "paper"})
    return found


def _table(folder: Path, path: Path, name: str, given: Any) -> Published:
    where = f"{path}: table {name!r}"
    _check(where, given, NEEDED, KNOWN)
    given = dict(given)
    for key, value in (("kind", "results"), ("derived", []), ("notes", [])):
        given.setdefault(key, value)
    for key, known in (("kind", KINDS), ("source_kind", SOURCES), ("provenance", PROVENANCES)):
        if given[key] not in known:
            raise ValueError(f"{where}: {key} is {given[key]!r}; it is one of {', '.join(known)}")
    if not isinstance(given["notes"], list) or not all(isinstance(n, str) for n in given["notes"]):
        raise ValueError(f"{where}: notes are texts; quote one that has a colon")
    about = columns(folder)
    if odd := [each for each in given["columns"] if each not in about]:
        raise ValueError(f"{where}: column {odd[0]!r} has no unit in {folder / COLUMNS}")
    rows = tuple(_row(folder, where, given["columns"], each) for each in given["rows"])
    names = [row.name for row in rows]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{where}: two rows are called {twice[0]!r}")
    content: dict[str, Any] = {
        key: given[key] for key in ("title", "kind", "source", "source_kind", "provenance")
    }
    content |= {key: tuple(given[key]) for key in ("derived", "notes")}
    content["columns"] = tuple(about[each] for each in given["columns"])
    return Published(f"{path.stem}/{name}", rows=rows, **content)


def _row(folder: Path, where: str, names: list[str], given: Any) -> Row:
    _check(f"{where}: a row", given, ("name", "values"), ROW)
    where = f"{where}: row {given['name']!r}"
    for name, value in given["values"].items():
        if name not in names:
            raise ValueError(f"{where}: {name!r} is no column of the table")
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise ValueError(f"{where}: {name} is {value!r}, which is no number")
    texts = {key: given[key] for key in ("note", "stand_in", "experiment") if key in given}
    row = Row(given["name"], given["values"], given.get("settings", {}), **texts)
    if "matches" not in given:
        if lost := {"paper", "stand_in"} & given.keys():
            raise ValueError(f"{where}: {lost.pop()} without matches")
        return row
    own = dict(given["matches"])
    name = own.pop("recipe", None)
    if name is not None and name not in recipes(folder):
        known = ", ".join(recipes(folder))
        raise ValueError(f"{where}: there is no recipe {name!r} in {RECIPES}; there are {known}")
    shared = recipes(folder)[name] if name is not None else {"every": {}}
    everywhere = {**shared["every"], **own}
    paper = {**shared["every"], **shared.get("paper", {}), **own, **given.get("paper", {})}
    return Row(row.name, row.values, row.settings, everywhere=everywhere, paper=paper, **texts)


def _check(where: str, given: Any, needed: tuple[str, ...], known: set[str]) -> None:
    """Refuse what is no mapping, lacks a key or has one too many; names it."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: {given!r:.200} where a mapping belongs")
    if missing := [key for key in needed if key not in given]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    if unknown := sorted(set(map(str, given)) - known):
        near = ", ".join(sorted(known))
        raise ValueError(f"{where}: {unknown[0]!r} is unknown; there are {near}")
