"""Sweep: an experiment, axes and seeds -> a point for each combination; values, nothing is run.

sweep: connector                       # its name; by default the file's
experiment: ../experiments/llava15.yaml
overlays: []                           # more -c files; without a scale the tiny one is taken
seeds: [0, 1, 2]
axes:
  model.connector.depth: [1, 2, 3]     # an option with its values, or
  rate:                                # bundles of options, each with a name
    half: {stages.instruct.lr_scale: 25}
    full: {}
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_lab.core.atomic import plain_name
from llava_lab.core.records import read_record
from llava_lab.core.yaml_file import read_mapping
from llava_lab.experiment.compose import Tree, merge, write_value
from llava_lab.experiment.layers import own_layer, read_layers
from llava_lab.experiment.places import Place, lost, places, settled

KEYS = {"sweep", "experiment", "overlays", "seeds", "axes", "published"}
ENVIRONMENT = re.compile(r"\$\{oc\.env:\s*(\w+)")
Layers = Sequence[Path | str]


@dataclass(frozen=True)
class Point:
    """One combination of values with one seed.

    Attributes:
        labels: Name of the value on each axis.
        options: Options and their values.
        seed: The seed.
    """

    labels: dict[str, str]
    options: dict[str, Any]
    seed: int

    @property
    def name(self) -> str:
        """Names of its values: what it is called whatever its seed."""
        return ", ".join(self.labels.values())

    def __str__(self) -> str:
        values = " ".join(f"{axis}={label}" for axis, label in self.labels.items())
        return f"{values} seed={self.seed}".strip()

    @property
    def overrides(self) -> list[str]:
        """The options as overrides, the seed last."""
        named = [f"{key}={write_value(value)}" for key, value in self.options.items()]
        return [*named, f"seed_everything={self.seed}"]


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read and checked.

    Attributes:
        name: Its name.
        files: The experiment and the overlays.
        axes: Name of each axis, its values' names, and the options that each sets.
        seeds: Seeds.
        published: Published tables about the same question, by their ids: "llava15/table2".
    """

    name: str
    files: tuple[Path, ...]
    axes: dict[str, dict[str, dict[str, Any]]]
    seeds: tuple[int, ...]
    published: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> "Sweep":
        """Read a sweep file.

        Raises:
            ValueError: If a key is unknown or missing, or an axis has no values; names it.
        """
        found = read_mapping(path)
        if not {"experiment", "axes"} <= found.keys():
            raise ValueError(f"{path}: a sweep needs the keys experiment and axes")
        if unknown := sorted(found.keys() - KEYS):
            raise ValueError(f"{path}: unknown key {unknown[0]!r}; known are {', '.join(KEYS)}")
        named = [found["experiment"], *_listed(path, found, "overlays", [])]
        if odd := [name for name in named if not isinstance(name, str)]:
            raise ValueError(f"{path}: {odd[0]!r} is no file; experiment and overlays name files")
        files = [path.parent / name for name in named]
        if missing := [name for name in files if not name.is_file()]:
            raise ValueError(f"{path}: there is no file {missing[0]}")
        axes = found["axes"]
        if not isinstance(axes, dict) or not all(isinstance(axis, str) for axis in axes):
            raise ValueError(f"{path}: axes is {axes!r:.200}, not names with values under each")
        axes = {axis: axis_values(path, axis, values) for axis, values in axes.items()}
        _refuse_overridden(path, axes)
        published = _listed(path, found, "published", [])
        if odd := [name for name in published if not isinstance(name, str)]:
            raise ValueError(
                f"{path}: published: {odd[0]!r:.200} is no table's id; `table --paper` lists them"
            )
        name = plain_name(str(found.get("sweep", path.stem)), f"{path}: sweep")
        return cls(name, tuple(files), axes, _seeds(path, found), tuple(published))

    def points(self) -> list[Point]:
        """Every combination of values, with every seed."""
        axes = [list(values.items()) for values in self.axes.values()]
        points = []
        for chosen in itertools.product(*axes):
            labels = dict(zip(self.axes, (label for label, _ in chosen), strict=True))
            options = {key: value for _, bundle in chosen for key, value in bundle.items()}
            points += [Point(labels, options, seed) for seed in self.seeds]
        return points

    def layers(self, point: Point, more: Layers = ()) -> list[Path | str]:
        """Files and overrides of a point: what is the point's own comes last and wins.

        Args:
            point: The point.
            more: Files and overrides for all points.
        """
        return [*self.files, *more, *point.overrides]

    def refuse_overrides(self, more: Layers) -> None:
        """Refuse files and overrides that set what points set themselves; theirs would win.

        A file that names a scale is none of them: points stand on it.

        Raises:
            ValueError: Names the option.
        """
        own = [{("seed_everything",)} | set(places(point.options)) for point in self.points()]
        for given in more:
            for place in map(settled, places(own_layer(given), whole=True)):
                if any(place in each for each in own) or all(lost(place, each) for each in own):
                    where = "seeds" if place == ("seed_everything",) else "axes"
                    what = f"-c {given}" if isinstance(given, Path) else f"--{given}"
                    key = ".".join(place)
                    raise ValueError(f"{what}: the sweep's {where} set {key}; change it there")

    def folder(self, runs: Path) -> Path:
        """Where the records of its points lie."""
        return runs / "sweeps" / self.name

    def record(self, runs: Path, point: Point, more: Layers = ()) -> Path:
        """Record of a point, named by its labels and all that its layers say.

        Variables of the environment that they refer to, such as LLAVA_DATA, count where they are
        set.
        """
        tree: Tree = {}
        for layer in read_layers(self.layers(point, more)):
            tree = merge(tree, layer)
        names = set(ENVIRONMENT.findall(json.dumps(tree))) & os.environ.keys()
        known = [{name: os.environ[name] for name in names}] if names else []
        key = json.dumps([point.labels, point.seed, tree, *known], sort_keys=True)
        return self.folder(runs) / f"{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"

    def recorded(self, runs: Path, more: Layers = ()) -> Iterator[tuple[Point, Path]]:
        """Points of which a record names results that are there, with the results."""
        for point in self.points():
            if results := recorded_results(self.record(runs, point, more)):
                yield point, results


def recorded_results(record: Path) -> Path | None:
    """The results that a point's record names, if they are there."""
    if not record.is_file():
        return None
    known = read_record(record, {"command": list, "exit": int}, "Delete it to fit the point again.")
    if not isinstance(named := known.get("results"), str):
        return None
    # RUNS/sweeps/NAME/RECORD names RUNS/EXPERIMENT/ID/results.json, as it was called from where the
    # sweep ran: there may be other runs of that name here, or RUNS may have been moved.
    results = record.parents[2].joinpath(*Path(named).parts[-3:])
    if not results.is_file() and Path(named).is_absolute():
        results = Path(named)
    return results if results.is_file() else None


def _listed(path: Path, found: dict[str, Any], key: str, default: list[Any]) -> list[Any]:
    values = found.get(key, default)
    if not isinstance(values, list):
        raise ValueError(f"{path}: {key} is {values!r:.200}, not a list")
    return values


def _seeds(path: Path, found: dict[str, Any]) -> tuple[int, ...]:
    seeds = _listed(path, found, "seeds", [0])
    if not seeds or not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
        raise ValueError(f"{path}: seeds is {seeds!r:.200}, not a list of whole numbers from 0")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{path}: seeds is {seeds!r:.200}; one stands there twice")
    return tuple(seeds)


def axis_values(path: Path, axis: str, values: Any) -> dict[str, dict[str, Any]]:
    """Names of an axis's values, and the options that each sets.

    Args:
        path: The file that they stand in.
        axis: The axis's name.
        values: A list of values, or names with options under each.

    Raises:
        ValueError: If they are neither; names the axis.
    """
    found: dict[str, Any] = {}
    if isinstance(values, list):
        found = {_written(value): {axis: value} for value in values}
    elif isinstance(values, dict):
        found = {str(name): {} if each is None else each for name, each in values.items()}
    bundles = found.values()
    if found and all(isinstance(b, dict) and all(isinstance(k, str) for k in b) for b in bundles):
        if len(found) < len(values):
            raise ValueError(f"{path}: {axis}: a value stands there twice")
        return {
            name: {key: _from_here(path, value) for key, value in bundle.items()}
            for name, bundle in found.items()
        }
    raise ValueError(
        f"{path}: {axis}: an axis is a list of values, or names with options under each"
    )


def _refuse_overridden(path: Path, axes: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Refuse axes of which a later one, or the seeds, would replace what an earlier one sets."""
    before: dict[Place, str] = {}
    for axis, bundles in axes.items():
        mine: set[Place] = set()
        for bundle in bundles.values():
            inside: dict[Place, str] = {}  # what stands before in the bundle itself
            for key, value in bundle.items():
                own = set(places({key: value}))
                if ("seed_everything",) in own:
                    raise ValueError(
                        f"{path}: {axis}: seed_everything is set by seeds: [0, 1, ...]"
                    )
                known = before | inside
                whole = set(places({key: value}, whole=True))
                if gone := [place for place in known if lost(place, whole)]:
                    raise ValueError(
                        f"{path}: {axis} sets {key}, which replaces {'.'.join(gone[0])} of "
                        f"{known[gone[0]]}; change the order of the axes, or make one of both"
                    )
                inside |= dict.fromkeys(map(settled, own), axis)
            mine |= inside.keys()
        before |= dict.fromkeys(mine, axis)


def _from_here(path: Path, value: Any) -> Any:
    """A value; if it names a YAML file beside the sweep's, with the way there."""
    yaml_file = isinstance(value, str) and value.endswith((".yaml", ".yml"))
    return str(path.parent / value) if yaml_file and (path.parent / value).is_file() else value


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
