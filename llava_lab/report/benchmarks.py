"""12. Benchmarks: files of configs/benchmarks -> what each needs, asks and is published with."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from llava_lab.core.shipped import shipped
from llava_lab.core.yaml_file import read_mapping
from llava_lab.report.grid import Figure, Grid
from llava_lab.report.published import PAPER, Column, columns, every

FOLDER = "configs/benchmarks"
ROLES = ("questions", "labels", "images", "answers", "captions")
NONE = "–"
ROOT = "$LLAVA_DATA"
# Options that decide neither what is asked nor how it is answered and scored: where files lie, and
# other passes. Judges are compared by who they are.
PLACES = {"questions", "images", "answers", "captions", "labels.file", "files", "submission"}
FREE = {*PLACES, "name", "blind", "text_only", "metric.judge"}
COMMANDS = ("python -m", "-c ", "export ", "JUDGE_URL=")  # lines of a head that are no notes


@dataclass(frozen=True)
class Listed:
    """A benchmark that a file of configs/benchmarks asks.

    Attributes:
        file: Name of the file.
        title: First line of the file: what it is, by whom.
        notes: The lines below: where prompt and rule are from, and what to know.
        options: The benchmark's options.
    """

    file: str
    title: str
    notes: str
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its name in tables."""
        return self.options["name"]

    @property
    def metric(self) -> str:
        """The class of its metric, with the rule where it has several."""
        metric = self.options["metric"]
        options = {"class_path": metric} if isinstance(metric, str) else metric
        rule = f"({options['rule']})" if "rule" in options else ""
        return options["class_path"].rpartition(".")[2] + rule

    @property
    def prompt(self) -> str:
        """What is added to a question."""
        lines = (self.options.get("columns") or {}).get("prompts") or {}
        own = self.options.get("prompt") or ("by kind: " + " | ".join(lines.values()))
        return own if own != "by kind: " else "in the questions' file, or none"

    def needs(self) -> Iterator[tuple[str, str, str]]:
        """Its files: role, path, and what each is."""
        known = self.options.get("files") or {}
        for role in ROLES:
            given = self.options.get(role)
            path = given["file"] if isinstance(given, Mapping) else given
            if isinstance(path, str) and (role != "images" or role in known or not known):
                yield role, path, known.get(role, NONE)

    def differing(self, asked: Mapping[str, Any]) -> list[str]:
        """Options by which a benchmark of a configuration asks or scores otherwise.

        Args:
            asked: The benchmark's options.
        """
        ours, theirs = _deciding(self.options), _deciding(asked)
        return [
            f"{key} is {theirs.get(key)!r:.40}, not {ours.get(key)!r:.40}"
            for key in sorted(ours.keys() | theirs.keys())
            if not _same(ours.get(key) or None, theirs.get(key) or None)
        ]

    def published_as(self) -> list[str]:
        """Columns of published tables that are the same."""
        known = columns(PAPER).values()
        return [column.name for column in known if column.asked_by(self.options)]


def _deciding(options: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Options that decide a score, by their dotted keys; nothing where they are as if not set."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        name = f"{before}{key}"
        inner = {"class_path": value} if name == "metric" and isinstance(value, str) else value
        if isinstance(inner, Mapping) and name not in FREE:
            found |= _deciding(inner, f"{name}.")
        elif name not in FREE:
            found[name] = value
    return found


def _same(ours: Any, theirs: Any) -> bool:
    """Whether two values are equal; files, wherever the data lie."""
    if isinstance(ours, str) and ours.startswith(ROOT):
        return str(theirs).endswith(ours.removeprefix(ROOT))
    return ours == theirs


def asked_otherwise(column: Column, asked: Mapping[str, Any]) -> str | None:
    """How a benchmark of a configuration differs from the one that measures a published column.

    Args:
        column: The column, whose questions and metric the benchmark has.
        asked: The benchmark's options.

    Returns:
        The options that differ from those of the file that ships; None where none does.
    """
    found = [
        (each.file, each.differing(asked)) for each in listed() if column.asked_by(each.options)
    ]
    file, differing = min(found, key=lambda each: len(each[1]))
    return f"{'; '.join(differing)} ({FOLDER}/{file}.yaml)" if differing else None


def listed(names: Sequence[str] = ()) -> list[Listed]:
    """The benchmarks that ship, by name.

    Args:
        names: Those to take, by their own name or their file's; none takes all.

    Raises:
        ValueError: If there is none of a name; names those that are like it.
    """
    found = _all()
    known = {name for each in found for name in (each.name, each.file)}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 3, 0.4) or sorted(known)
            raise ValueError(f"there is no benchmark {name!r}; near it are {', '.join(near)}")
    return [each for each in found if not names or {each.name, each.file} & set(names)]


@cache
def _all() -> tuple[Listed, ...]:
    """Those of all files, those of folders behind the others."""
    paths = sorted(shipped(FOLDER).rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    return tuple(each for path in paths for each in _of_file(path))


def _of_file(path: Path) -> Iterator[Listed]:
    given = read_mapping(path)
    lines = re.match(r"(?:#.*\n)*", path.read_text(encoding="utf-8"))
    head = [line[1:].strip() for line in (lines[0] if lines else "").splitlines()]
    notes = [line for line in head[1:] if not line.startswith(COMMANDS)]
    for each in given["data"].get("benchmarks+", []):
        file = path.relative_to(shipped(FOLDER)).with_suffix("").as_posix()
        yield Listed(file, head[0] if head else "", " ".join(notes), _placed(each))


def _placed(value: Any) -> Any:
    """Options whose paths begin with the variable's name, as a shell has it."""
    if isinstance(value, str):
        path = value.replace("${oc.env:LLAVA_DATA,data}", ROOT)
        return path.replace("${paths.video_root}", ROOT)
    if isinstance(value, Mapping):
        return {key: _placed(each) for key, each in value.items()}
    return value


def benchmark_grids(found: Sequence[Listed]) -> list[Grid]:
    """Tables of benchmarks: what each asks, the files that it needs, its published numbers.

    Args:
        found: The benchmarks.
    """
    return [_asked(found), _files(found), _published(found)]


def _asked(found: Sequence[Listed]) -> Grid:
    rows = []
    for each in found:
        tokens = each.options.get("max_new_tokens")
        longest = Figure(NONE if tokens is None else str(tokens), tokens)
        drawn = each.options.get("temperature")
        temperature = Figure(NONE if drawn is None else f"{drawn:g}", drawn)
        rows.append([each.name, each.file, each.metric, longest, temperature, each.prompt])
    notes = {each.file: f"{each.file}: {each.title} {each.notes}".strip() for each in found}
    headers = ["benchmark", "file", "metric", "tokens", "T", "prompt that is added"]
    legend = (
        f"file: {FOLDER}/FILE.yaml, behind an experiment with -c. tokens: longest answer. T: "
        "temperature. Server: answers are written to the run's submissions, for the server."
    )
    about = {"table": "benchmarks"}
    return Grid("Benchmarks", headers, rows, legend, list(notes.values()), names=3, about=about)


def _files(found: Sequence[Listed]) -> Grid:
    rows = [[each.name, role, path, what] for each in found for role, path, what in each.needs()]
    legend = "$LLAVA_DATA is `data` unless it is set."
    headers = ["benchmark", "what", "where it belongs", "from"]
    about = {"table": "files of benchmarks"}
    return Grid("What has to be downloaded", headers, rows, legend, names=4, about=about)


def _published(found: Sequence[Listed]) -> Grid:
    """Numbers of the rows that runs of ours can be, from every table that has the column."""
    rows: list[list[str | Figure]] = []
    for each in found:
        for column in each.published_as():
            values: dict[tuple[str, float], list[str]] = {}
            for table in every():
                for row in table.rows:
                    if row.everywhere is not None and column in row.values:
                        values.setdefault((row.name, row.values[column]), []).append(table.id)
            unit = columns(PAPER)[column].unit
            for (name, value), tables in values.items():
                figure = Figure(f"{value:g}", value)
                rows.append([each.name, column, name, figure, unit, ", ".join(tables)])
    headers = ["benchmark", "column", "row", "published", "unit", "tables"]
    notes = ["Sources, and traps of each table: `table --paper ID`."]
    about = {"table": "published numbers of benchmarks"}
    return Grid("Published numbers of our versions", headers, rows, None, notes, 3, about)
