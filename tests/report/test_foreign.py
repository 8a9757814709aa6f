"""Logs of lmms-eval, in the form that its evaluation_tracker writes, and answer files."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from llava_lab.cli.table import main
from llava_lab.report.foreign import read_all
from llava_lab.report.lmms_eval import known_units, read_log
from llava_lab.report.published import PAPER, columns, every
from llava_lab.report.rows import score_rows

DATE = "20260801_120000"
RIGHT = [1, 1, 0, 1, 0, 1, 1, 1, 0, 1]


def log(folder: Path, right: list[int] | None = RIGHT, date: str = DATE, **changes: Any) -> Path:
    """A log of two tasks: one a mean of its samples, one in points without an error."""
    folder.mkdir(parents=True, exist_ok=True)
    gqa = {"alias": "gqa", "samples": 10, "exact_match,none": 0.7, "exact_match_stderr,none": 0.15}
    mme = {"alias": "mme", "mme_perception_score,none": 1510.5, "samples": 20}
    mme["mme_perception_score_stderr,none"] = "N/A"
    mme |= {"mme_cognition_score,none": 250.0, "mme_cognition_score_stderr,none": 10.0}
    content = {
        "results": {"gqa": gqa, "mme": mme},
        "n-samples": {"gqa": {"original": 10, "effective": 10}},
        "config": {"model": "llava_hf"},
        "model_name": "llava-hf/llava-1.5-7b-hf",
        **changes,
    }
    path = folder / f"{date}_results.json"
    path.write_text(json.dumps(content, indent=2))
    if right is not None:
        lines = [
            {
                **{"doc_id": number, "doc_hash": f"h{number}", "target": "red\u2028", "input": "?"},
                **{"filtered_resps": "red", "exact_match": float(each)},
            }
            for number, each in enumerate(right)
        ]
        dumped = [json.dumps(line, ensure_ascii=False) for line in reversed(lines)]  # as it does
        text = "".join(f"{line}\n" for line in dumped)
        (folder / f"{date}_samples_gqa.jsonl").write_text(text)
    return path


def test_a_metric_that_is_the_mean_of_its_samples_has_points_as_ours_do(tmp_path: Path) -> None:
    run = read_log(log(tmp_path))
    rows = {(row.benchmark, row.score): row for row in score_rows([run])}
    row = rows["gqa", "exact_match"]
    assert (row.value.value, row.n) == (0.7, 10)
    # Wilson's score interval of 7 of 10, with Student's t of 9 degrees of freedom.
    assert 0.3 < row.value.low < 0.45 and 0.85 < row.value.high < 0.95
    assert run.kept is not None and list(run.kept["benchmarks"]) == ["gqa"]
    first = run.kept["benchmarks"]["gqa"]["passes"][""]["scores"]["exact_match"]["got"]
    assert first == RIGHT  # in the order of the documents


def test_other_metrics_have_the_error_that_is_stated_or_say_that_there_is_none(
    tmp_path: Path,
) -> None:
    run = read_log(log(tmp_path, right=None))
    rows = {(row.benchmark, row.score): row.value for row in score_rows([run])}
    assert rows["gqa", "exact_match"].low == pytest.approx(0.7 - 1.96 * 0.15, abs=1e-4)
    assert rows["mme", "mme_cognition_score"].high == pytest.approx(2.5 + 1.96 * 0.1, abs=1e-4)
    assert rows["mme", "mme_perception_score"].value == pytest.approx(15.105)
    assert rows["mme", "mme_perception_score"].low == 0
    notes = " ".join(run.results["notes"])
    assert "no interval is known of mme_perception_score" in notes
    assert "no interval is known of mme_cognition_score" not in notes


@pytest.mark.parametrize(
    ("task", "metric", "stated", "scores"),
    [
        ("nocaps_val", "nocaps_CIDEr", (1.0554, 0.8829), (1.0554, 0.8829)),
        ("activitynetqa", "gpt_eval_score", (0.95, 3.2), (0.19, 0.64)),
        ("mmbench_en_dev", "gpt_eval_score", (0.9, 64.3), (0.009, 0.643)),
        ("own", "right", (0.5, 1.5), (0.005, 0.015)),
    ],
)
def test_a_unit_is_that_of_the_metric_whatever_its_number_is(
    tmp_path: Path, task: str, metric: str, stated: tuple[float, ...], scores: tuple[float, ...]
) -> None:
    """A share that is stated as 1.06 was printed as 1.1, and one of 0.88 as 88.3."""
    found = []
    for number in stated:
        results = {task: {f"{metric},none": number, f"{metric}_stderr,none": "N/A"}}
        run = read_log(log(tmp_path, right=None, results=results))
        found.append(run.results["benchmarks"][task][metric]["value"])
    assert found == pytest.approx(scores)
    said = any(f"{metric} 1.5 as lmms-eval states it" in n for n in run.results["notes"])
    assert said == (task == "own")


def test_a_number_in_a_unit_of_its_own_is_written_as_it_is_stated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0.5 was a fraction of 0.005, with an end that was infinite."""
    results = {"own": {"right,none": 0.5}, "mine": {"right,none": 7.0, "right_stderr,none": 0.5}}
    log(tmp_path, right=None, results=results)
    main([str(tmp_path), "--format", "csv"])
    main([str(tmp_path), "--format", "json"])
    *lines, grid = capsys.readouterr().out.split("\n", 3)
    head, own, mine = csv.reader(lines)
    place, unit = head.index("value"), head.index("unit")
    assert own[place : place + 3] == ["0.5", "", ""] and own[unit] == "as stated"
    assert [float(n) for n in mine[place : place + 3]] == pytest.approx([7, 6.02, 7.98], abs=1e-3)
    values = [row["value"] for row in json.loads(grid)[0]["rows"]]
    assert values[0] == {"value": 0.5, "low": None, "high": None} and values[1]["value"] == 7


def test_part_of_a_task_is_no_published_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"gqa": {"original": 12578, "effective": 10}, "mme": {"original": 20, "effective": 20}}
    wanted = next(t for t in every() if {"GQA", "MME"} <= {c.name for c in t.columns})
    log(tmp_path, **{"n-samples": counts})
    main(["--paper", wanted.id, str(tmp_path), "--format", "json"])
    (grid,) = json.loads(capsys.readouterr().out)
    row = grid["rows"][-1]
    assert row["GQA"] is None and row["MME"]["value"] == 1510.5
    assert any("gqa: 10 of 12578 questions, which is no column" in n for n in grid["notes"])


def test_a_score_of_others_is_printed_in_the_unit_of_its_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = next(t for t in every() if "ActivityNet-QA score" in {c.name for c in t.columns})
    results = {"activitynetqa": {"gpt_eval_score,none": 3.2, "gpt_eval_accuracy,none": 53.8}}
    log(tmp_path, right=None, results=results)
    main(["--paper", wanted.id, str(tmp_path), "--format", "csv"])
    main(["--paper", wanted.id, str(tmp_path), "--format", "md"])
    last = [line for line in capsys.readouterr().out.splitlines() if "by lmms-eval |" in line][-1]
    assert "| 3.2 ± 2.5 |" in last and "| 53.8 ± 50.0 |" in last


def test_an_answer_with_a_separator_of_lines_is_one_line(tmp_path: Path) -> None:
    """lmms-eval writes U+2028 as it is, at which str.splitlines parts a line."""
    path = log(tmp_path)
    file = tmp_path / f"{DATE}_samples_gqa.jsonl"
    before = read_log(path)
    file.write_text(file.read_text().replace('"red"', '"red\u2028blue"'), encoding="utf-8")
    assert read_log(path).kept == before.kept


def test_two_models_that_answered_the_same_documents_have_equal_questions(tmp_path: Path) -> None:
    one, two = (read_log(log(tmp_path / name)) for name in ("a", "b"))
    asked = [run.kept["benchmarks"]["gqa"]["questions"] for run in (one, two) if run.kept]
    assert asked[0] == asked[1]


def test_a_published_table_has_them_in_rows_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = next(t for t in every() if {"GQA", "MME"} <= {c.name for c in t.columns})
    log(tmp_path / "elsewhere")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "llava-hf__llava-1.5-7b-hf").symlink_to(tmp_path / "elsewhere")
    main(["--paper", wanted.id, str(tmp_path / "logs"), "--format", "json"])
    (grid,) = json.loads(capsys.readouterr().out)
    row = grid["rows"][-1]
    assert row["row"] == "llava-hf/llava-1.5-7b-hf, by lmms-eval"
    assert row["GQA"]["value"] == 70 and row["MME"]["value"] == 1510.5  # as the column's others
    assert any("GQA: gqa exact_match" in note for note in grid["notes"])


def test_a_table_names_them_and_shows_neither_stages_nor_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log(tmp_path)
    main([str(tmp_path), "--format", "md"])
    text = capsys.readouterr().out
    assert "### llava-hf/llava-1.5-7b-hf, by lmms-eval (" in text
    assert "Stages" not in text and "Cost" not in text and "1510.5" in text


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: log(f).write_text("{"), "damaged"),
        (lambda f: log(f, results={}), "has no results. Is it a log of lmms-eval?"),
        (lambda f: log(f, results={"gqa": 3}), "task gqa is 3, no mapping"),
        (lambda f: log(f, results={"gqa": {"alias": "gqa"}}), "no task has a number"),
        (
            lambda f: log(f, results={"gqa": {"exact_match,none": 62.0}}),
            "exact_match is 62, which is not from 0 to 1, as lmms-eval states it",
        ),
        (lambda f: (log(f), log(f, date="20260802_1")), "2 runs of lmms-eval, 20260801_120000_res"),
        (lambda f: doubled(log(f)), "10 documents stand in it twice"),
        (lambda f: cut(log(f)), r"_samples_gqa.jsonl, line 10: damaged"),
    ],
)
def test_what_cannot_be_read_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], break_it: Any, message: str
) -> None:
    break_it(tmp_path)
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert message in capsys.readouterr().err


def doubled(path: Path) -> None:
    samples = path.with_name(f"{DATE}_samples_gqa.jsonl")
    samples.write_text(2 * samples.read_text())


def cut(path: Path) -> None:
    samples = path.with_name(f"{DATE}_samples_gqa.jsonl")
    samples.write_text(samples.read_text()[:-20])


def test_a_table_without_its_tasks_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {"own_task": {"alias": "own", "right,none": 0.5, "right_stderr,none": "N/A"}}
    log(tmp_path, right=None, results=results)
    main(["--paper", "llava15/table2", str(tmp_path), "--format", "md"])
    assert "none of own_task measures a column of this table" in capsys.readouterr().out


def test_every_column_that_a_task_measures_is_one_and_all_of_them_the_same() -> None:
    """TextVQA with and without OCR tokens are two benchmarks, 12 points apart."""
    known = columns(PAPER)
    named = [unit.columns for metrics in known_units()[0].values() for unit in metrics.values()]
    assert len(named) > 20 and not [c for each in named for c in each if c not in known]
    for each in named:
        assert len({repr(known[column].ours) for column in each}) == 1, each


QUESTIONS = [("a", "red"), ("b", "2"), ("b", "no"), ("c", "left")]


@pytest.fixture
def answered(tmp_path: Path) -> tuple[Path, Path]:
    """A question file and its answers, of which the last is missing and one is wrong."""
    asked, answers = tmp_path / "asked.jsonl", tmp_path / "answers.jsonl"
    rows = [
        {"question_id": name, "text": f"What of {name}?", "answer": right, "category": name}
        for name, right in QUESTIONS
    ]
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [
        {"question_id": name, "prompt": "?", "text": text, "model_id": "mine", "metadata": {}}
        for (name, _), text in zip(QUESTIONS, ["Red", "3", "no"], strict=False)
    ]
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return asked, answers


def test_an_answer_file_is_scored_question_by_question(answered: tuple[Path, Path]) -> None:
    asked, answers = answered
    (run,) = read_all([answers], asked, None, "VQAAccuracy")
    rows = {row.score: row for row in score_rows([run])}
    assert rows["accuracy"].value.value == pytest.approx(2 / 3)
    assert rows["accuracy/b"].value.value == 0.5
    assert run.results["experiment"] == "mine" and run.results["origin"] == "answer"
    assert run.results["notes"] == ["asked: 1 questions have no answer, and do not count."]


def test_an_answer_file_is_of_the_columns_that_its_folder_says(tmp_path: Path) -> None:
    """Question files of many benchmarks are called alike: "validation-00000"."""
    asked = tmp_path / "docvqa" / "validation-0.jsonl"
    asked.parent.mkdir()
    asked.write_text(json.dumps({"question_id": "a", "text": "What?", "answer": "red"}) + "\n")
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"question_id": "a", "text": "red", "model_id": "mine"}) + "\n")
    (run,) = read_all([answers], asked, None, "ANLS")
    assert run.results["columns"] == {"DocVQA": ("validation-0", "accuracy")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "has no right answers; name the question file"),
        (["--questions", "asked.jsonl", "--metric", "Bleu"], "--metric Bleu: no metric"),
        (
            ["--questions", "asked.jsonl", "--metric", "Choice"],
            "'rule'); there are ANLS, Captions, ",
        ),
        (["--questions", "twice.jsonl"], "2 answers to question 'b', which twice.jsonl asks 3"),
        (["--questions", "other.jsonl"], "question 'b' is not in other.jsonl, or not in the order"),
    ],
)
def test_answers_that_cannot_be_scored_are_one_message(
    answered: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(answered[0].parent)
    lines = answered[0].read_text().splitlines(keepends=True)
    Path("other.jsonl").write_text(lines[0] + lines[3])
    Path("twice.jsonl").write_text("".join([*lines, lines[1]]))
    with pytest.raises(SystemExit):
        main(["answers.jsonl", *options])
    assert message in capsys.readouterr().err
