"""12. Foreign: logs of lmms-eval and answer files -> results beside ours."""

from collections.abc import Sequence
from pathlib import Path

from llava_lab.report.lmms_eval import is_log, logs_in, read_log
from llava_lab.report.published import Published
from llava_lab.report.rows import ScoreRow, score_rows
from llava_lab.report.runs import RunResults, find, read, results_below


def read_all(
    paths: Sequence[Path],
    questions: Path | None = None,
    images: Path | None = None,
    metric: str = "VQAAccuracy",
) -> list[RunResults]:
    """Read runs, logs of lmms-eval and answer files.

    Args:
        paths: Run folders, results.json files, logs or folders of them, or answer files (.jsonl).
        questions: Question file that answer files answer.
        images: Folder of its images, or None where it has none.
        metric: How answers are scored: the class of a metric.

    Raises:
        ValueError: If one is damaged, or cannot be told apart.
    """
    own: list[Path] = []
    found: list[RunResults] = []
    for path in paths:
        logs = logs_in(path) if path.is_dir() else [path] if is_log(path) and path.is_file() else []
        found += map(read_log, logs)
        if path.suffix == ".jsonl" and path.is_file():
            found.append(_answers(path, questions, images, metric))
        elif not logs or (path.is_dir() and results_below(path)):
            own.append(path)
    if questions is not None and not any(run.results.get("origin") == "answer" for run in found):
        raise ValueError("--questions is of answer files: name one, such as answers.jsonl")
    return [*map(read, find(own)), *found]


def _answers(path: Path, questions: Path | None, images: Path | None, metric: str) -> RunResults:
    from llava_lab.report.answers import read_answers  # which wants torch

    if questions is None:
        raise ValueError(
            f"{path}: an answer file has no right answers; name the question file that it answers, "
            "with these, by --questions (and its --images)"
        )
    return read_answers(path, questions, images, metric)


def beside(
    table: Published, groups: Sequence[tuple[str, list[RunResults]]]
) -> tuple[list[tuple[str, dict[str, ScoreRow]]], list[str]]:
    """Rows of a published table that are results of others, below its own.

    Args:
        table: The table.
        groups: Labels and results of others.

    Returns:
        Label and scores by column; and notes on those that measure none of its columns.
    """
    rows, notes = [], []
    for label, (run, *_) in groups:
        scores = {(row.benchmark, row.score): row for row in score_rows([run])}
        names = {column.name for column in table.columns}
        own = {
            column: scores[key[0], key[1]]
            for column, key in run.results["columns"].items()
            if column in names and (key[0], key[1]) in scores
        }
        if own:
            rows.append((label, own))
            said = ", ".join(
                f"{column}: {' '.join(run.results['columns'][column])}" for column in own
            )
            notes.append(f"{label}, ± half of a 95% interval over questions: {said}.")
        else:
            asked = ", ".join(run.results["benchmarks"])
            notes.append(f"{label}: none of {asked} measures a column of this table.")
        notes += [f"{label}: {note}" for note in run.results["notes"] if own]
    return rows, notes
