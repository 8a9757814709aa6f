"""12. Effort: runs that findings lack -> how many, which stages they share, and about how long."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from tqdm import tqdm

from llava_lab.core.progress import shown
from llava_lab.experiment.rehearsal import rehearse
from llava_lab.experiment.sweep import Layers, Point
from llava_lab.experiment.verdict_runs import FIRST_SEED, Chosen
from llava_lab.report.claims import Runs
from llava_lab.report.grid import Figure, Grid, figure
from llava_lab.report.rows import NONE

QUESTIONS = "questions"  # what a run does after its stages
LEGEND = (
    "Stages: those that the runs consist of, and how many of them are trained, as runs with the "
    "same stage share it. Hours on one core, by the times of earlier runs of the same stages."
)
Seconds = Mapping[tuple[str, str, str], float]  # by sweep, point and stage


@dataclass(frozen=True)
class Stages:
    """Stages of one sweep's runs.

    Attributes:
        sweep: Name of the sweep.
        runs: Number of runs.
        stages: Stages that they consist of.
        trained: Of these, those that no other run before has.
        seconds: How long they take, questions included; None where that is not known.
    """

    sweep: str
    runs: int
    stages: int
    trained: int
    seconds: float | None


def effort(sweeps: Sequence[Chosen], runs: Runs, more: Layers = ()) -> list[Stages]:
    """Find which stages the runs of sweeps share, by fingerprints in a small world; nothing trains.

    Args:
        sweeps: The runs to be made.
        runs: Runs that are there, for their times.
        more: Files and overrides for all runs.
    """
    seconds, known, found = recorded(runs), set(), []
    with TemporaryDirectory() as folder:
        for sweep in sweeps:
            stages, trained, times = 0, 0, []
            for point, seeds in shown(_once(sweep), f"fingerprints, {sweep.name}"):
                keys = rehearse(sweep, point, Path(folder), more).fingerprints
                new = [n for n, key in keys.items() for seed in seeds if (key, seed) not in known]
                known |= {(key, seed) for key in keys.values() for seed in seeds}
                stages, trained = stages + len(keys) * len(seeds), trained + len(new)
                times += [
                    _time(seconds, (sweep.name, point.name, stage))
                    for stage in (*new, *[QUESTIONS] * len(seeds))
                ]
            whole = sum(times)
            known_time = whole if whole == whole else None
            found.append(Stages(sweep.name, len(sweep.points()), stages, trained, known_time))
    return found


def effort_grid(found: Sequence[Stages], jobs: int, most: int) -> Grid:
    """A table of the runs that are to be made.

    Args:
        found: The runs of the next looks.
        jobs: Runs at once.
        most: Number of runs if every finding goes to its last look.
    """
    names = ("runs", "stages", "trained", "seconds")
    rows: list[list[str | Figure]] = [_row(each.sweep, each) for each in found]
    whole = [sum(getattr(each, name) for each in found) for name in names[:3]]
    times = [each.seconds for each in found]
    total = sum(t for t in times if t is not None) if times and None not in times else None
    everything = Stages("all", whole[0], whole[1], whole[2], total)
    notes = []
    if total is not None:
        notes.append(f"About {tqdm.format_interval(total / jobs)} with {jobs} at once.")
    elif found:
        notes.append("There are no times of earlier runs to tell by how long some will take.")
    if everything.stages:
        share = everything.trained / everything.stages
        notes.append(f"{share:.0%} of the stages of all runs are trained; the others are shared.")
    notes.append(f"To the last look of every finding: {most} runs, less where one decides before.")
    headers = ["sweep", "runs", "stages", "trained", "hours"]
    about = {"table": "effort", "jobs": jobs}
    rows.append(_row("all", everything))
    return Grid("runs to be made", headers, rows, LEGEND, notes, about=about)


def recorded(runs: Runs) -> Seconds:
    """Mean seconds of each stage of each point, and of its questions, by runs that are there."""
    every: dict[tuple[str, str, str], list[float]] = {}
    for (sweep, point, _), each in runs.items():
        cost = each.run.results["cost"]
        for stage in each.run.results["stages"]:
            if "seconds" in stage:
                every.setdefault((sweep, point, stage["name"]), []).append(stage["seconds"])
        if {"seconds", "seconds_trained_here"} <= cost.keys():
            asking = cost["seconds"] - cost["seconds_trained_here"]
            if asking >= 0:  # a run that was interrupted counts its last process alone
                every.setdefault((sweep, point, QUESTIONS), []).append(asking)
    return {key: fmean(times) for key, times in every.items()}


def _row(name: str, each: Stages) -> list[str | Figure]:
    hours = Figure(NONE, None) if each.seconds is None else figure(each.seconds / 3600, ".1f")
    return [name, figure(each.runs), figure(each.stages), figure(each.trained), hours]


def _time(seconds: Seconds, key: tuple[str, str, str]) -> float:
    """Seconds of a stage: of the same point, or the mean of the same sweep; else not a number."""
    if key in seconds:
        return seconds[key]
    alike = [each for (sweep, _, stage), each in seconds.items() if (sweep, stage) == key[::2]]
    return fmean(alike) if alike else float("nan")


def _once(sweep: Chosen) -> list[tuple[Point, list[int]]]:
    """A point of each name, with the seeds that it is run with: they share alike.

    All have one seed, of which a stage has one fingerprint in every sweep.
    """
    found: dict[str, tuple[Point, list[int]]] = {}
    for point in sweep.points():
        found.setdefault(point.name, (replace(point, seed=FIRST_SEED), []))[1].append(point.seed)
    return list(found.values())
