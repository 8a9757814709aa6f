"""Hyperparameters: a finished point of a sweep -> a line of TensorBoard's HPARAMS tab.

`tensorboard --logdir runs/sweeps/NAME` shows every point with its values on the sweep's axes, its
seed, its final scores and what it cost.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from llava_lab.core.atomic import new_folder
from llava_lab.evaluate.points import PASSES
from llava_lab.experiment.sweep import Point, Sweep

COSTS = ("train_flops", "visual_tokens_mean")


def hparams_folder(record: Path) -> Path:
    """Where the events of a point lie, of which this is the record."""
    return record.parent / "hparams" / record.stem


def write_hparams(sweep: Sweep, point: Point, record: Path, results: Path) -> None:
    """Write a point's values and final scores for TensorBoard, in place of earlier ones.

    Args:
        sweep: The sweep.
        point: The point.
        record: The point's record.
        results: Its results.json.
    """
    # Here, since TensorBoard takes a second, and a dry run needs none of it.
    from torch.utils.tensorboard import FileWriter
    from torch.utils.tensorboard.summary import hparams, scalar

    found = json.loads(results.read_text(encoding="utf-8"))
    values = {axis: _value(sweep, axis, label) for axis, label in point.labels.items()}
    scores = {
        f"{benchmark}/{name}": float(score["value"])
        for benchmark, of in found["benchmarks"].items()
        for name, score in of.items()
        if not name.startswith(PASSES)
    }
    costs = {name: float(found["cost"][name]) for name in COSTS if name in found["cost"]}
    place = hparams_folder(record)
    shutil.rmtree(place, ignore_errors=True)
    summaries = [scalar(name, number) for name, number in (scores | costs).items()]
    with new_folder(place, flush=False) as folder:
        writer = FileWriter(str(folder))
        for summary in (*hparams({**values, "seed": point.seed}, scores | costs), *summaries):
            writer.add_summary(summary)
        writer.close()


def _value(sweep: Sweep, axis: str, label: str) -> Any:
    """A label as a number where all of its axis are, so that TensorBoard draws it on a scale."""
    try:
        return {name: float(name) for name in sweep.axes[axis]}[label]
    except ValueError:
        return label
