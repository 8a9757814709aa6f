"""A finished run: what was scored must lie beside its results as it was scored."""

from pathlib import Path

import pytest

from llava_lab.core.records import write_record
from llava_lab.experiment.run import STAGE, Run

POINTS = '{"benchmarks": {}}'


def finished(folder: Path) -> Run:
    """A run without stages or benchmarks, with a file of predictions and one of points."""
    run = Run(folder, "e", "tiny", 0, "seed_everything: 0\n")
    run.begin()
    (run.folder / "predictions").mkdir()
    (run.folder / "predictions" / "q.jsonl").write_text("{}\n")
    (run.folder / "points.json").write_text(POINTS)
    empty = {"stages": [], "benchmarks": {}, "benchmark_fingerprints": {}, "cost": {}}
    run.finish({**empty, "visual_tokens": {}})
    assert run.finished({}, {}) == run.results_file
    return run


@pytest.mark.parametrize("content", [None, POINTS + "\n"], ids=["missing", "changed"])
def test_benchmarks_are_asked_again_where_points_are_not_those_of_the_results(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(tmp_path)
    path = run.folder / "points.json"
    path.write_text(content) if content else path.unlink()
    assert run.finished({}, {}) is None
    said = capsys.readouterr()
    message = f"{path}: missing or not what was scored. The benchmarks are asked again."
    assert message in said.out + said.err
    path.write_text(POINTS)
    assert run.finished({}, {}) == run.results_file


def test_results_of_a_stage_that_was_trained_anew_since_are_not_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where data was changed, a fit of it was killed, and the data was put back."""
    run = finished(tmp_path)
    folder = run.stage("align")
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"")
    numbers = dict.fromkeys(STAGE, 0)
    record = {**numbers, "name": "align", "fingerprint": "old", "parent": None, "git": None}
    record |= {"reused": False, "held_out": {}}
    write_record(folder / "stage.json", record)
    results = run.results | {"stages": [{"name": "align", "fingerprint": "old"}]}
    write_record(run.results_file, results)
    assert run.finished({"align": "old"}, {}) == run.results_file
    write_record(folder / "stage.json", record | {"fingerprint": "new"})
    assert run.finished({"align": "old"}, {}) is None
    assert f"{folder}: trained anew on other data since" in capsys.readouterr().out
    with pytest.raises(ValueError, match="trained anew on other data since"):
        run.check_stages(results["stages"])


def test_benchmarks_are_asked_again_where_a_prediction_has_changed(tmp_path: Path) -> None:
    run = finished(tmp_path)
    (run.folder / "predictions" / "q.jsonl").write_text('{"id": 1}\n')
    assert run.finished({}, {}) is None
