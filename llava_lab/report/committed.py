"""12. Committed: runs that verdicts are made from <-> small files under results/.

    results/<sweep>/<point>-seed100.json   a run: scores, options, what each question gave
    results/<sweep>/seconds.json           what differs from machine to machine: times, memory
    results/questions/<hash>.json          what runs were asked: ids and categories
    results/findings/<id>.jsonl            history of a finding: report.history

They hold what `results.json`, `config.yaml` and `points.json` of a run say. What is long and no
reading matter is compressed: JSON or YAML, by zlib, as base64.
"""

import base64
import hashlib
import json
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llava_lab.core.records import file_sha256, read_object, read_record, write_record
from llava_lab.evaluate.points import NAME as POINTS
from llava_lab.experiment.sweep import Point
from llava_lab.report import machine
from llava_lab.report.points import Points
from llava_lab.report.runs import RunResults, check

WAY_OUT = "Take the committed file again, or delete it and `report --run` makes it anew."
QUESTIONS, FINDINGS = "questions", "findings"
LEFT_OUT = ("predictions_sha256", "points_sha256")
SCORE = ("value", "ci95", "n")
FIELDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("sweep", "point", "record", "config"), str),
    **dict.fromkeys(("labels", "options", "worlds", "rules", "results", "points"), dict),
    "seed": int,
}


@dataclass(frozen=True)
class Committed:
    """A run that verdicts are made from.

    Attributes:
        sweep: Name of its sweep.
        point: Name of its point: "2x2, A".
        labels: Name of the value on each axis.
        options: Options of the point and of its world.
        seed: Its seed.
        worlds: Seed of each generated world that it was trained and asked on.
        rules: Hash of each finding's file when it was run, by id.
        record: Hash of all that its files and options say.
        run: Its results.
    """

    sweep: str
    point: str
    labels: Mapping[str, str]
    options: Mapping[str, Any]
    seed: int
    worlds: Mapping[str, int]
    rules: Mapping[str, str]
    record: str
    run: RunResults

    @property
    def name(self) -> str:
        """Its file's name in the folder of results."""
        return f"{self.run.path.parent.name}/{self.run.path.name}"

    @cached_property
    def sha256(self) -> str:
        """Of its file."""
        return file_sha256(self.run.path)

    @cached_property
    def points(self) -> dict[str, Points]:
        """What each question gave each score, by the score's name behind its benchmark's."""
        return {"/".join(key): each for key, each in self.run.points.items()}


def file_of(folder: Path, sweep: str, point: str, seed: int) -> Path:
    """Where a run's file lies.

    Args:
        folder: The folder of results.
        sweep: Name of its sweep.
        point: Name of its point.
        seed: Its seed.
    """
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", point).strip("-.") or "point"
    if plain != point:  # two names may be written alike
        plain += f"-{hashlib.sha256(point.encode()).hexdigest()[:4]}"
    return folder / sweep / f"{plain}-seed{seed}.json"


def commit(
    folder: Path, sweep: str, point: Point, record: str, run: RunResults, rules: Mapping[str, str]
) -> Path:
    """Write a finished run under results/.

    Args:
        folder: The folder of results.
        sweep: Name of its sweep.
        point: Its point.
        record: Hash of all that its files and options say.
        run: Its results.
        rules: Hash of each finding's file that it is run for, by id.

    Raises:
        ValueError: If the run has no points beside its results, or they are damaged.
    """
    path = file_of(folder, sweep, point.name, point.seed)
    text = run.path.with_name("config.yaml").read_text(encoding="utf-8")
    results, times = machine.apart(
        {key: each for key, each in run.results.items() if key not in LEFT_OUT}
    )
    results["benchmarks"] = {
        name: {score: _packed_score(each) for score, each in scores.items()}
        for name, scores in results["benchmarks"].items()
    }
    config = run.config or {}
    worlds = {key: config[key]["seed"] for key in ("tiny_world", "tiny_videos") if config.get(key)}
    content = {
        "sweep": sweep,
        "point": point.name,
        "labels": point.labels,
        "seed": point.seed,
        "worlds": worlds,
        "options": _portable(point.options, folder),
        "record": record,
        "rules": dict(rules),
        "results": results,
        "config": _packed(text),
        "points": {name: _keep(folder, each) for name, each in _points(run).items()},
    }
    write_record(path, content)
    machine.keep(path, times)
    return path


def commit_again(
    folder: Path, sweep: str, point: Point, record: str, run: Committed, rules: Mapping[str, str]
) -> Path:
    """Write a run that another sweep has made once more, as a run of a point with its options.

    Args:
        folder: The folder of results.
        sweep: Name of the point's sweep.
        point: The point.
        record: Hash of all that its files and options say.
        run: The other sweep's run, of the same configuration and seed.
        rules: Hash of each finding's file that stood before the run, by id.
    """
    path = file_of(folder, sweep, point.name, point.seed)
    kept = read_record(run.run.path, FIELDS, WAY_OUT)
    options = _portable(point.options, folder)
    place = {"sweep": sweep, "point": point.name, "labels": point.labels, "options": options}
    write_record(path, {**kept, **place, "record": record, "rules": dict(rules)})
    machine.keep(path, machine.kept(run.run.path))
    return path


def is_results(folder: Path) -> bool:
    """Whether a folder is one of runs that verdicts are made from, and not of an experiment's."""
    return all((folder / name).is_dir() for name in (QUESTIONS, FINDINGS))


def read_results(folder: Path) -> list[Committed]:
    """Every run under a folder of results, by sweep, point and seed.

    Raises:
        ValueError: If a file is damaged, or two are of one run; names it.
    """
    files = [path for path in folder.glob("*/*.json") if path.parent.name not in (QUESTIONS,)]
    found: dict[tuple[str, str, int], Committed] = {}
    asked: dict[str, Mapping[str, Any]] = {}
    for path in sorted(path for path in files if path.name != machine.NAME):
        each = _read(folder, path, asked)
        key = (each.sweep, each.point, each.seed)
        if file_of(folder, *key) != path:
            raise ValueError(
                f"{path}: holds {' '.join(map(str, key))}, which is no file of its name"
            )
        found[key] = each
    return [found[key] for key in sorted(found)]


def _read(folder: Path, path: Path, asked: dict[str, Mapping[str, Any]]) -> Committed:
    kept = read_record(path, FIELDS, WAY_OUT)
    try:
        points = {name: _joined(folder, each, asked) for name, each in kept["points"].items()}
        results = machine.together(kept["results"], machine.kept(path))
        results["benchmarks"] = {
            name: {score: _score(each) for score, each in scores.items()}
            for name, scores in results["benchmarks"].items()
        }
        text = _unpacked(kept["config"])
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise ValueError(f"{path}: damaged ({error}). {WAY_OUT}") from error
    run = RunResults(path, check(path, results), {"benchmarks": points}, text)
    known = {key: kept[key] for key in FIELDS if key not in ("results", "config", "points")}
    return Committed(**known, run=run)


def _portable(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Options, with the files that they name as they are found from where the results lie."""
    return {
        key: os.path.relpath(each, folder.absolute().parent)
        if isinstance(each, str) and os.path.isabs(each) and os.path.isfile(each)
        else each
        for key, each in options.items()
    }


def _points(run: RunResults) -> dict[str, Any]:
    """What each question gave, of the file beside the results."""
    if not run.points:
        raise ValueError(
            f"{run.path}: no {POINTS} beside it, so that no verdict can be made of it. Delete "
            f"{run.path.name}; its `fit` asks the benchmarks again"
        )
    return read_object(run.path.with_name(POINTS), "Delete it.")["benchmarks"]


def _keep(folder: Path, benchmark: Mapping[str, Any]) -> dict[str, Any]:
    """What questions gave; what was asked is equal for many runs, and kept once for all."""
    asked = {key: each for key, each in benchmark.items() if key != "passes"}
    text = json.dumps(asked, sort_keys=True)
    name = _name(text)
    if not (path := folder / QUESTIONS / f"{name}.json").is_file():
        write_record(path, {"asked": _packed(text)})
    every = list(range(len(asked["ids"])))
    passes = {
        prefix: {**each, "places": None if each["places"] == every else each["places"]}
        for prefix, each in benchmark["passes"].items()
    }
    return {"asked": name, "passes": _packed(json.dumps(passes))}


def _joined(
    folder: Path, kept: Mapping[str, Any], known: dict[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """A benchmark as points.json has it; what it asked is read once for all runs."""
    name = kept["asked"]
    if name not in known:
        path = folder / QUESTIONS / f"{name}.json"
        text = _unpacked(read_record(path, {"asked": str}, WAY_OUT)["asked"])
        if _name(text) != name:
            raise ValueError(f"{path} holds other questions")
        known[name] = json.loads(text)
    every = list(range(len(known[name]["ids"])))
    passes = {
        prefix: {**each, "places": every if each["places"] is None else each["places"]}
        for prefix, each in json.loads(_unpacked(kept["passes"])).items()
    }
    return {**known[name], "passes": passes}


def _packed_score(score: Mapping[str, Any]) -> Any:
    """Value, both ends of the interval and n, where a score is no more than that."""
    if tuple(score) != SCORE:
        return dict(score)
    return [round(score["value"], 7), *(round(end, 5) for end in score["ci95"]), score["n"]]


def _score(kept: Any) -> dict[str, Any]:
    if isinstance(kept, Mapping):
        return dict(kept)
    value, low, high, n = kept
    return {"value": value, "ci95": [low, high], "n": n}


def _name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _packed(text: str) -> str:
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _unpacked(packed: str) -> str:
    return zlib.decompress(base64.b64decode(packed, validate=True)).decode()
