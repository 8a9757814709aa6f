"""12. Finding file: a file of configs/findings, read and checked.

What the keys mean stands in configs/findings/F3.yaml.
"""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_lab.core.shipped import shipped
from llava_lab.core.yaml_file import read_mapping
from llava_lab.experiment.compose import Tree, merge
from llava_lab.experiment.layers import read_layers
from llava_lab.experiment.places import lost, places, settled
from llava_lab.experiment.sweep import Sweep, axis_values
from llava_lab.report.finding import EFFECT, Contrast, Finding, Look, Move, Stay, near
from llava_lab.report.published import published

FOLDER = "configs/findings"
CORRECTION = {"family": "all findings", "method": "holm"}
NEEDED = (
    *("finding", "claim", "source", "sweep", "contrasts", "must_move", "looks"),
    *("correction", "missing"),
)
KNOWN = (*NEEDED, "must_not", "described", "draws", "notes")


def read_findings(folder: Path | None = None) -> dict[str, Finding]:
    """Every finding of a folder, by id; by default those that ship with the package.

    Raises:
        ValueError: If a file is no finding, or levels differ; names it.
    """
    folder = folder or shipped(FOLDER)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; it should hold the findings")
    found = {each.id: each for each in map(read_finding, sorted(folder.glob("*.yaml"), key=_order))}
    sweeps: dict[str, Finding] = {}
    for each in found.values():
        other = sweeps.setdefault(each.sweep.name, each)
        if (other.sweep, other.draws) != (each.sweep, each.draws):
            raise ValueError(
                f"{each.path}: its sweep or draws are not those of {other.path}, which is about "
                f"sweep {other.sweep.name}, too; they share its runs"
            )
    levels = {each.level: each for each in found.values()}
    if len(levels) > 1:
        one, other, *_ = levels.values()
        raise ValueError(
            f"{other.path}: correction: level is {other.level}, and {one.level} in {one.path}; all "
            "findings share one"
        )
    return found


def chosen(findings: Mapping[str, Finding], ids: Sequence[str]) -> list[Finding]:
    """The findings of these ids, or all where none is named.

    Raises:
        ValueError: If there is none of an id; names the nearest.
    """
    for each in ids:
        if each not in findings:
            raise ValueError(f"there is no finding {each!r}{near(each, findings)}")
    return [findings[each] for each in dict.fromkeys(ids)] if ids else list(findings.values())


def _order(path: Path) -> tuple[int, str]:
    """F2 comes before F10."""
    digits = "".join(char for char in path.stem if char.isdigit())
    return int(digits or 0), path.stem


def read_finding(path: Path) -> Finding:
    """Read a finding's file.

    Raises:
        ValueError: If a key is unknown or missing, or names a point, a score or a table that there
            is not; names the file, the key and what is near.
    """
    given = read_mapping(path)
    _keys(f"{path}", given, NEEDED, KNOWN)
    if given["finding"] != path.stem:
        raise ValueError(f"{path}: finding is {given['finding']!r}; it is the file's name")
    claim = _text(path, "claim", given["claim"])
    tables, citation = _source(path, given["source"])
    sweep_path = path.parent / _text(path, "sweep", given["sweep"])
    sweep = Sweep.read(sweep_path)
    contrasts = _contrasts(path, given["contrasts"], point_names(sweep))
    move = [
        _move(f"{path}: must_move", each)
        for each in _list(f"{path}: must_move", given["must_move"], 1)
    ]
    stays = [
        _stay(f"{path}: must_not", each, contrasts[EFFECT], point_names(sweep))
        for each in _list(f"{path}: must_not", given.get("must_not", []))
    ]
    described = _list(f"{path}: described", given.get("described", []))
    looks, level = _looks(path, given["looks"], given["correction"])
    if given["missing"] != "repeat":
        raise ValueError(
            f"{path}: missing is {given['missing']!r}; it is repeat: a run that fails is made again"
        )
    draws = given.get("draws", {})
    if not isinstance(draws, Mapping):
        raise ValueError(f"{path}: draws is {draws!r:.200}, not names with options under each")
    draws = axis_values(path, "draws", draws) if draws else {}
    _check_draws(path, draws, sweep)
    notes = _list(f"{path}: notes", given.get("notes", []))
    found = Finding(
        *(path.stem, claim, tables, citation, sweep, contrasts, tuple(move), tuple(stays)),
        tuple(_text(path, "described", each) for each in described),
        *(looks, level, draws, tuple(_text(path, "notes", each) for each in notes)),
        *(path, sweep_path.resolve(), hashlib.sha256(path.read_bytes()).hexdigest()),
    )
    _check_benchmarks(found)
    return found


def _check_draws(path: Path, draws: Mapping[str, Mapping[str, Any]], sweep: Sweep) -> None:
    """Refuse draws of an option that points of the sweep set themselves, and would win."""
    drawn = {settled(place) for bundle in draws.values() for place in places(bundle)}
    for axis, bundles in sweep.axes.items():
        theirs = {settled(each) for bundle in bundles.values() for each in places(bundle, True)}
        if gone := [place for place in drawn if lost(place, theirs)]:
            raise ValueError(
                f"{path}: draws sets {'.'.join(min(gone))}, and so does axis {axis} of the sweep "
                f"{sweep.name}, which would win; draw what no axis sets"
            )


def point_names(sweep: Sweep) -> list[str]:
    """Names of a sweep's points, whatever their seed."""
    return list(dict.fromkeys(point.name for point in sweep.points()))


def _source(path: Path, given: Any) -> tuple[tuple[str, ...], str | None]:
    where = f"{path}: source"
    _keys(where, given, (), ("table", "citation"))
    tables = given.get("table", [])
    tables = [tables] if isinstance(tables, str) else _list(f"{where}: table", tables)
    for table in tables:
        try:
            published(_text(path, "source: table", table))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    citation = given.get("citation")
    if citation is not None:
        _text(path, "source: citation", citation)
    if not tables and not citation:
        raise ValueError(f"{where}: names neither a table nor a citation")
    return tuple(tables), citation


def _contrasts(path: Path, given: Any, points: list[str]) -> dict[str, Contrast]:
    where = f"{path}: contrasts"
    if not isinstance(given, Mapping) or EFFECT not in given:
        raise ValueError(f"{where}: there is no {EFFECT}, which the claim is about")
    found = {}
    for name, each in given.items():
        _keys(f"{where}: {name}", each, ("treatment", "against"), ("treatment", "against"))
        found[name] = _contrast(f"{where}: {name}", each, points)
    return found


def _contrast(where: str, given: Mapping[str, Any], points: list[str]) -> Contrast:
    names = [str(given[key]) for key in ("treatment", "against")]
    for name in names:
        if name not in points:
            raise ValueError(f"{where}: the sweep has no point {name!r}{near(name, points)}")
    if names[0] == names[1]:
        raise ValueError(f"{where}: {names[0]!r} is compared with itself")
    return Contrast(*names)


def _move(where: str, given: Any) -> Move:
    _keys(where, given, ("score", "direction", "least"), ("score", "direction", "least"))
    if given["direction"] not in ("up", "down"):
        raise ValueError(f"{where}: direction is {given['direction']!r}; it is up or down")
    return Move(_score(where, given["score"]), given["direction"], _points(where, given, "least"))


def _stay(where: str, given: Any, effect: Contrast, points: list[str]) -> Stay:
    _keys(where, given, ("score", "within"), ("score", "within", "treatment", "against"))
    given = {"treatment": effect.treatment, "against": effect.against, **given}
    contrast = _contrast(where, given, points)
    return Stay(_score(where, given["score"]), _points(where, given, "within"), contrast)


def _looks(path: Path, looks: Any, correction: Any) -> tuple[tuple[Look, ...], float]:
    where = f"{path}: correction"
    _keys(where, correction, (*CORRECTION, "level"), (*CORRECTION, "level"))
    for key, only in CORRECTION.items():
        if correction[key] != only:
            raise ValueError(f"{where}: {key} is {correction[key]!r}; it is {only!r}")
    level, where = correction["level"], f"{path}: looks"
    if not _is_number(level) or not 0 < level < 1:
        raise ValueError(f"{path}: correction: level is {level!r}; it is between 0 and 1")
    if not isinstance(looks, Mapping) or not looks:
        raise ValueError(f"{where} is {looks!r:.200}; it is numbers of seeds, each with an alpha")
    for seeds, alpha in looks.items():
        if type(seeds) is not int or not 2 <= seeds <= 1000:
            raise ValueError(f"{where}: {seeds!r} is no number of seeds from 2 on")
        if not _is_number(alpha) or not 0 < alpha < 1:
            raise ValueError(f"{where}: {seeds}: alpha is {alpha!r}; it is between 0 and 1")
    if list(looks) != sorted(looks):
        raise ValueError(f"{where}: {', '.join(map(str, looks))} seeds; a later look has more")
    if (spent := math.fsum(looks.values())) > level + 1e-12:
        raise ValueError(f"{where} spend {spent:g}, more than the level of {level:g}")
    return tuple(Look(seeds, alpha) for seeds, alpha in looks.items()), float(level)


def _check_benchmarks(finding: Finding) -> None:
    """Refuse a score of a benchmark that the sweep's experiment has not."""
    tree: Tree = {}
    for layer in read_layers(finding.sweep.layers(finding.sweep.points()[0]), quiet=True):
        tree = merge(tree, layer)
    asked = tree.get("data", {}).get("benchmarks", [])
    known = [str(each.get("name")) for each in asked if each is not None]
    for score in finding.scores:
        if (name := score.partition("/")[0]) not in known:
            raise ValueError(
                f"{finding.path}: {score}: {finding.sweep.name} asks no benchmark "
                f"{name!r}{near(name, known)}"
            )


def _score(where: str, given: Any) -> str:
    if not isinstance(given, str) or not all(given.partition("/")):
        raise ValueError(f"{where}: score is {given!r:.200}; it is BENCHMARK/SCORE")
    return given


def _points(where: str, given: Mapping[str, Any], key: str) -> float:
    value = given[key]
    if not _is_number(value) or not 0 < value <= 100:
        raise ValueError(f"{where}: {key} is {value!r}; it is points, above 0 and at most 100")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(path: Path, key: str, given: Any) -> str:
    if not isinstance(given, str) or not given.strip():
        raise ValueError(f"{path}: {key} is {given!r:.200}, not a text")
    return given


def _list(where: str, given: Any, least: int = 0) -> list[Any]:
    if not isinstance(given, list) or len(given) < least:
        raise ValueError(f"{where} is {given!r:.200}, not a list" + " of at least one" * least)
    return given


def _keys(where: str, given: Any, needed: Sequence[str], known: Collection[str]) -> None:
    """Refuse what is no mapping, lacks a key or has one too many; names it."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: {given!r:.200} where a mapping belongs")
    for key in given:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}{near(str(key), known)}")
    if missing := [key for key in needed if key not in given]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
