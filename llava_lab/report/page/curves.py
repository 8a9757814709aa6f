"""12. Curves: runs -> losses of their stages by step, and scores on their way by what was spent."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llava_lab.report.page.configurations import Configuration
from llava_lab.report.trajectories import spots

POINTS = 20_000  # of all curves of a page
FEWEST, MOST = 20, 200  # of one curve


@dataclass(frozen=True)
class Curve:
    """Losses of one stage.

    Attributes:
        stage: The stage's name.
        label: The configuration and the seed of the run that trained it.
        steps: Steps, rising.
        losses: Mean loss around each of them.
    """

    stage: str
    label: str
    steps: list[int]
    losses: list[float]


@dataclass(frozen=True)
class Way:
    """One score of a run on its way, where its stages were asked in between (`evaluate_every`).

    Attributes:
        score: The score: "questions/accuracy".
        label: The configuration and the seed of the run.
        spent: What the run had spent at each point, all stages together.
        values: The score at each point, as a fraction.
    """

    score: str
    label: str
    spent: list[float]
    values: list[float]


def ways(found: Sequence[Configuration], at: str) -> list[Way]:
    """Scores of runs on their way and at their end.

    Runs with a stage that does not say what it has spent, as older versions wrote it, are left out.

    Args:
        found: The configurations.
        at: What is counted: `samples` or `flops`.
    """
    every = []
    for configuration in found:
        for run in configuration.runs:
            lines: dict[str, tuple[list[float], list[float]]] = {}
            stages = run.results["stages"]
            on_way = any("trajectory" in stage for stage in stages)
            on_way = on_way and all(stage.get(at) is not None for stage in stages)
            for spot, benchmarks in spots(run, at) if on_way else ():
                for benchmark, scores in benchmarks.items():
                    for name, score in scores.items():
                        line = lines.setdefault(f"{benchmark}/{name}", ([], []))
                        line[0].append(spot)
                        line[1].append(score["value"])
            label = f"{configuration.label}, seed {run.results['seed']}"
            every += [Way(key, label, *line) for key, line in lines.items() if len(line[0]) > 1]
    return every


def curves(found: Sequence[Configuration]) -> list[Curve]:
    """The loss of every stage that left events beside one of the runs.

    A stage that several runs share is trained, and shown, once.
    """
    stages = list(_trained(found))
    each = min(MOST, max(FEWEST, POINTS // max(1, len(stages))))
    return [
        Curve(stage, label, *_thinned(points, each))
        for stage, label, points in stages
        if len(points) > 1
    ]


def _trained(found: Sequence[Configuration]) -> Iterator[tuple[str, str, dict[int, float]]]:
    seen: set[str] = set()
    for configuration in found:
        for run in configuration.runs:
            for stage in run.results["stages"]:
                key = stage.get("fingerprint") or f"{run.path} {stage['name']}"
                folder = run.path.parent / "stages" / stage["name"]
                files = sorted(map(str, folder.glob("events.out.tfevents.*")))
                if files and key not in seen:
                    seen.add(key)
                    label = f"{configuration.label}, seed {run.results['seed']}"
                    yield stage["name"], label, _losses(files)


def _losses(files: Sequence[str]) -> dict[int, float]:
    """Losses by step; where a stage went on after an interruption, its later ones stand."""
    # Here, since it takes a second, and most tables need none of it.
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    points: dict[int, float] = {}
    for file in files:
        for event in EventFileLoader(file).Load():
            for value in event.summary.value:
                if value.tag == "loss":
                    points[event.step + 1] = value.tensor.float_val[0]
    return dict(sorted(points.items()))


def _thinned(points: dict[int, float], most: int) -> tuple[list[int], list[float]]:
    """At most so many points, each the mean of its neighbours."""
    steps, losses = list(points), list(points.values())
    width = -(-len(steps) // most)
    starts = range(0, len(steps), width)
    means = [sum(part) / len(part) for part in (losses[at : at + width] for at in starts)]
    ends = [steps[min(at + width, len(steps)) - 1] for at in starts]
    return ends, [float(f"{mean:.4g}") for mean in means]
