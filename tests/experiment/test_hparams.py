"""TensorBoard's HPARAMS tab has a line a point of a sweep."""

import json
from pathlib import Path

from conftest import REPOSITORY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from llava_lab.core.records import write_record
from llava_lab.experiment import sweeping
from llava_lab.experiment.hparams import hparams_folder, write_hparams
from llava_lab.experiment.sweep import Sweep

AXES = """
experiment: {experiment}
seeds: [3]
axes:
  stages.align.lr_scale: [0.5, 1e1]
  rate: {{half: {{stages.instruct.lr_scale: 25}}, full: }}
"""


def finished_point(folder: Path, accuracy: float = 0.75) -> tuple[Sweep, Path, Path]:
    file = folder / "some.yaml"
    file.write_text(AXES.format(experiment=REPOSITORY / "experiments" / "llava15.yaml"))
    results = folder / "results.json"
    scores = {"accuracy": {"value": accuracy}, "blind_accuracy": {"value": 0.25}}
    cost = {"train_flops": 1e15, "visual_tokens_mean": 36.0, "seconds": 8.0}
    results.write_text(json.dumps({"benchmarks": {"questions": scores}, "cost": cost}))
    sweep = Sweep.read(file)
    return sweep, results, sweep.record(folder / "runs", sweep.points()[0])


def shown(record: Path) -> tuple[dict[str, object], dict[str, float]]:
    """A point's values and scores, as TensorBoard reads them."""
    events = EventAccumulator(str(hparams_folder(record))).Reload()
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    given = metadata.parse_session_start_info_plugin_data(content).hparams
    values = {key: getattr(v, v.WhichOneof("kind")) for key, v in given.items()}
    tags = events.Tags()["scalars"] or events.Tags()["tensors"]
    return values, {tag: events.Scalars(tag)[-1].value for tag in tags}


def test_a_point_is_shown_with_its_values_and_final_scores(tmp_path: Path) -> None:
    sweep, results, record = finished_point(tmp_path)
    write_hparams(sweep, sweep.points()[0], record, results)
    values, scores = shown(record)
    # Numbers where all of an axis are; a score of the wrong pictures is none of the point's.
    assert values == {"stages.align.lr_scale": 0.5, "rate": "half", "seed": 3.0}
    assert scores["questions/accuracy"] == 0.75 and scores["visual_tokens_mean"] == 36.0
    assert "questions/blind_accuracy" not in scores


def test_a_point_that_is_fitted_again_stands_there_once(tmp_path: Path) -> None:
    for accuracy in (0.5, 0.25):
        sweep, results, record = finished_point(tmp_path, accuracy)
        write_hparams(sweep, sweep.points()[0], record, results)
    assert len(list(hparams_folder(record).iterdir())) == 1
    assert shown(record)[1]["questions/accuracy"] == 0.25


def test_points_of_an_older_version_are_shown_too(tmp_path: Path, monkeypatch) -> None:
    sweep, results, record = finished_point(tmp_path)
    write_record(record, {"command": [], "exit": 0, "results": str(results)})
    monkeypatch.setattr(sweeping, "_still", lambda *_: True)
    assert sweeping.finished(sweep, tmp_path / "runs") == {str(sweep.points()[0])}
    assert shown(record)[0]["rate"] == "half"
