"""A sweep of 4 x 4 points against its 16 fits one by one, each with --fresh.

    python tests/benchmarks/shared.py [--steps 900 300] [--fits 4] [--json FILE]

The points are four sets of grids that a model is trained with, by four that it is used with, as in
sweeps/inference_grids.yaml, at the tiny scale with so many steps of alignment and of instruction
and few questions. The sweep aligns once and instructs four times. Of the 16 fresh fits `--fits` are
made, spread over the grids of training, and their mean counts 16 times. Features of the encoder
are stored before for both. Times are what the processes had of cores. About an hour on one
core; ends with status 1 where the sweep takes more than a third.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from common import options, prepared, report, say

from llava_lab.core.shipped import shipped
from llava_lab.experiment.sweep import Sweep
from llava_lab.experiment.sweeping import fit_command

GRIDS = {"1x1": "1x1", "2x2": "2x2", "1x2 to 1x4": "{2x2, 1x{2,3,4}, {2,3,4}x1}", "3x3": "3x3"}
THIRD = 1 / 3


def write_sweep(folder: Path, align: int, instruct: int) -> Path:
    """The sweep, and the small world that it is on."""
    overlay = {
        "tiny_world": {
            **{"root": f"{folder}/world", "seed": 0, "train_images": 2000},
            **{"eval_images": 60, "text_rows": 400},
        },
        "paths": {"root": f"{folder}/world"},
        "stages": {
            "align": {"data": {"max_steps": align, "feature_store": f"{folder}/features"}},
            "instruct": {"data": {"max_steps": instruct, "feature_store": f"{folder}/features"}},
        },
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(overlay))
    axes = {
        "trained": {k: {"stages.instruct.data.views.grids": g} for k, g in GRIDS.items()},
        "used": {k: {"data.views.grids": g} for k, g in GRIDS.items()},
    }
    experiment = str(shipped("experiments/llava_next.yaml"))
    (path := folder / "shared.yaml").write_text(
        yaml.safe_dump({"experiment": experiment, "overlays": ["small.yaml"], "axes": axes})
    )
    return path


def seconds(command: list[str]) -> float:
    """What a process and those that it starts have of cores."""

    def spent() -> float:
        found = resource.getrusage(resource.RUSAGE_CHILDREN)
        return found.ru_utime + found.ru_stime

    before = spent()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return spent() - before


def main(given: argparse.Namespace) -> int:
    """The sweep, and some of its fits."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_sweep(folder, *given.steps)
        sweep = Sweep.read(path)
        points = sweep.points()
        for point in points[:: len(GRIDS)]:  # makes the world, and stores features
            seconds(fit_command(sweep.layers(point), folder / "warm"))
            say(f"{point}: features are there")
        fresh = []
        for point in points[:: len(points) // given.fits]:
            command = fit_command(sweep.layers(point), folder / "fresh")
            fresh.append(seconds([*command, "--fresh"]))
            say(f"{point}: {fresh[-1]:.0f} s")
        lab = [sys.executable, "-m", "llava_lab", "sweep", str(path)]
        whole = seconds([*lab, f"--runs={folder / 'swept'}", "--jobs=1"])
    single = len(points) * sum(fresh) / len(fresh)
    rows = {
        "16 fits, --fresh": {"seconds": single, "share": 1.0},
        "the sweep": {"seconds": whole, "share": whole / single},
    }
    about = {"steps": given.steps, "fits": len(fresh)}
    report("A sweep of 4 x 4 points", rows, given.json, **about)
    return int(whole / single > THIRD)


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, nargs=2, default=[900, 300])
    parser.add_argument("--fits", type=int, default=4, help="fresh fits, of 16")
    sys.exit(main(prepared(parser)))
