"""12. Machine: what of a run differs from machine to machine, in a file beside those of runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_lab.core.records import read_record, write_record

NAME = "seconds.json"
KEYS = ("seconds", "seconds_trained_here", "peak_memory_bytes", "reused")


def apart(results: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's results without times and memory, and these."""
    cost, stages = results["cost"], results["stages"]
    machine = {"cost": _only(cost), "stages": [_only(stage) for stage in stages]}
    rest = {"cost": _without(cost), "stages": [_without(stage) for stage in stages]}
    return {**results, **rest}, machine


def together(results: Mapping[str, Any], machine: Mapping[str, Any]) -> dict[str, Any]:
    """A run's results with its times and memory, as far as they are known."""
    stages = machine.get("stages") or [{}] * len(results["stages"])
    return {
        **results,
        "cost": {**results["cost"], **machine.get("cost", {})},
        "stages": [{**s, **more} for s, more in zip(results["stages"], stages, strict=True)],
    }


def keep(run: Path, machine: Mapping[str, Any]) -> None:
    """Keep times and memory beside a run's file, in one file for all runs of the folder."""
    known = {**_read(run), run.stem: machine}
    write_record(run.with_name(NAME), dict(sorted(known.items())))


def kept(run: Path) -> Mapping[str, Any]:
    """Times and memory of a run's file; nothing where they are not known."""
    return _read(run).get(run.stem, {})


def _read(run: Path) -> dict[str, Any]:
    file = run.with_name(NAME)
    return read_record(file, {}, f"Delete {file}; it holds times alone.") if file.is_file() else {}


def _only(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in record.items() if key in KEYS}


def _without(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in record.items() if key not in KEYS}
