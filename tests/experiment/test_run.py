"""A finished run: what was scored must lie beside its results as it was scored."""

from pathlib import Path

import pytest

from llava_lab.experiment.run import Run

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


def test_benchmarks_are_asked_again_where_a_prediction_has_changed(tmp_path: Path) -> None:
    run = finished(tmp_path)
    (run.folder / "predictions" / "q.jsonl").write_text('{"id": 1}\n')
    assert run.finished({}, {}) is None
