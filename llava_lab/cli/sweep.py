"""sweep: run what is missing of a sweep."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_lab.cli.arguments import experiment_parser, split
from llava_lab.cli.fit import quiet
from llava_lab.cli.verb import add_flag, one_message, positive
from llava_lab.core.messages import explained
from llava_lab.experiment.sweep import Layers, Point, Sweep


def main(arguments: Sequence[str]) -> None:
    """Run what is missing of a sweep."""
    with one_message():
        parser = experiment_parser(
            "sweep",
            "Fit every point of a sweep that has no results yet. Other options and -c files, such "
            "as --trainer.accelerator=gpu, are handed to every fit.",
        )
        parser.add_argument("sweep", type=Path, help="sweep file, such as sweeps/connector.yaml")
        parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
        parser.add_argument("--jobs", type=positive, default=1, help="points at once")
        add_flag(
            parser,
            "--dry-run",
            action="store_true",
            help="list the points and what each would reuse",
        )
        parser.add_argument(
            "--format", choices=("text", "json"), default="text", help="of --dry-run's list"
        )
        options, more = split(parser, arguments)
        quiet()
        from llava_lab.experiment.sweeping import run

        sweep = Sweep.read(options.sweep)
        if options.dry_run:
            dry_run(sweep, options.runs, more, options.format)
        else:
            run(sweep, options.runs, options.jobs, more)


def dry_run(sweep: Sweep, runs: Path, more: Layers, form: str) -> None:
    """List the points, and what a fit of each would do."""
    found = []
    for point in sweep.points():
        found.append(_would(sweep, runs, point, more))
        if form == "text":
            print(f"{point}: {found[-1]['results'] or 'to run'}", flush=True)
            for line in _lines(found[-1]):
                print(f"    {line}", flush=True)
    if form == "json":
        print(json.dumps(found, indent=2))


def _would(sweep: Sweep, runs: Path, point: Point, more: Layers) -> dict[str, Any]:
    """A point, and what its fit would do."""
    from llava_lab.experiment.sweeping import preview

    known = {"labels": point.labels, "seed": point.seed, "options": point.options}
    try:
        found = preview(sweep, runs, point, more)
    except Exception as error:
        if (message := explained(error)) is None:
            raise
        return {**known, "results": None, "stages": {}, "error": message}
    stages = {name: str(folder) if folder else None for name, folder in found.stages.items()}
    results = str(found.results) if found.results else None
    return {**known, "results": results, "stages": stages, "error": None}


def _lines(point: dict[str, Any]) -> list[str]:
    if point["error"]:
        return [f"error: {point['error']}"]
    if point["results"]:
        return []
    return [
        f"stage {name}: " + (f"would be reused from {folder}" if folder else "to train")
        for name, folder in point["stages"].items()
    ]
