"""12. Elsewhere: runs that a sweep lacks and another sweep has made, of the same configuration."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from llava_lab.core.checkout import sha256_at
from llava_lab.experiment.experiment import Experiment
from llava_lab.experiment.sweep import Layers, Point
from llava_lab.experiment.verdict_runs import Chosen
from llava_lab.report.claims import Runs
from llava_lab.report.committed import Committed
from llava_lab.report.finding import Finding


def elsewhere(sweep: Chosen, runs: Runs, more: Layers = ()) -> Iterator[tuple[Point, Committed]]:
    """Points of a sweep whose very configuration, seed and world another sweep has run.

    Args:
        sweep: Points that have no runs.
        runs: Runs by the present version, with the files and options that their sweeps have now.
        more: Files and overrides for all points.
    """
    made = {
        (run.run.results["experiment"], run.run.results["config_sha256"]): run
        for run in runs.values()
        if run.sweep != sweep.name
    }
    for point in sweep.points() if made else ():
        run = Experiment.read_layers(sweep.layers(point, more)).run(Path())
        if found := made.get((run.experiment, run.config_sha256)):
            yield point, found


def rules_before(run: Committed, findings: Iterable[Finding]) -> dict[str, str]:
    """Hash of each rule that was committed, as it is, when a run was made; by the finding's id."""
    commit = run.run.results["git"]
    return {
        each.id: each.sha256
        for each in findings
        if commit and sha256_at(commit.removesuffix("+"), each.path) == each.sha256
    }
