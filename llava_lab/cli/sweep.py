"""sweep: run what is missing of a sweep."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_lab.cli.arguments import experiment_parser, split
from llava_lab.cli.fit import quiet, stage_lines
from llava_lab.cli.verb import add_flag, one_message, positive, refuse_idle
from llava_lab.core.messages import explained
from llava_lab.core.shipped import here_or_shipped
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
        parser.add_argument(
            "--jobs",
            type=positive,
            help="points at once; by default one a GPU, or one where there are none",
        )
        parser.add_argument(
            "--launcher",
            default="local",
            help="local, slurm, or a YAML file of sbatch's options such as "
            "configs/launcher/slurm.yaml; --slurm.partition=gpu sets one of them",
        )
        add_flag(
            parser,
            "--dry-run",
            action="store_true",
            help="list the points and what each would reuse",
        )
        parser.add_argument(
            "--format", choices=("text", "json"), default="text", help="of --dry-run's list"
        )
        options, layers = split(parser, arguments)
        if not options.dry_run:
            refuse_idle(parser, options, ["--format"], "it is of the list of --dry-run")
        more = [each for each in layers if not str(each).startswith("slurm.")]
        given = [str(each).removeprefix("slurm.") for each in layers if each not in more]
        if given and options.launcher == "local":
            raise ValueError(f"--slurm.{given[0]}: --launcher slurm is missing")
        quiet()
        sweep = Sweep.read(options.sweep)
        sweep.refuse_overrides(more)
        if options.dry_run:
            dry_run(sweep, options.runs, more, options.format)
        elif options.launcher == "local":
            from llava_lab.experiment.sweeping import run

            run(sweep, options.runs, options.jobs, more)
        else:
            run_on_slurm(sweep, options, given, more)


def run_on_slurm(
    sweep: Sweep, options: argparse.Namespace, given: Sequence[str], more: Layers
) -> None:
    """Run what is missing as jobs of Slurm.

    Args:
        sweep: The sweep.
        options: Options of the verb.
        given: Options of sbatch, such as "partition=gpu".
        more: Files and overrides for all points.

    Raises:
        ValueError: If the launcher is unknown, or its options are.
    """
    from llava_lab.experiment.slurm import SlurmSweep
    from llava_lab.experiment.slurm_options import read_options

    launcher = options.launcher
    if launcher != "slurm" and Path(launcher).suffix != ".yaml":
        raise ValueError(f"--launcher {launcher}: it is local, slurm, or a YAML file for Slurm")
    file = launcher if launcher == "slurm" else str(here_or_shipped(Path(launcher)))
    SlurmSweep(sweep, options.runs, read_options(file, given), options.jobs, more).run()


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
        return {**known, "results": None, "stages": {}, "endings": {}, "error": message}
    stages = {name: str(folder) if folder else None for name, folder in found.stages.items()}
    results = str(found.results) if found.results else None
    known |= {"results": results, "stages": stages, "endings": found.endings}
    return {**known, "error": None}


def _lines(point: dict[str, Any]) -> list[str]:
    if point["error"]:
        return [f"error: {point['error']}"]
    if point["results"]:
        return []
    return list(stage_lines(point["stages"], point["endings"]))
