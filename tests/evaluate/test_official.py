"""Published benchmarks: their files as they lie on a disk become the questions that are asked."""

import base64
import csv
import importlib
import io
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, stage_options
from PIL import Image

from llava_lab.__main__ import main
from llava_lab.data.cells import filled
from llava_lab.data.fields import IMAGE_PLACEHOLDER
from llava_lab.data.official import read_official
from llava_lab.data.rows import BadRows, Refused
from llava_lab.evaluate.judge import Judge
from llava_lab.evaluate.metrics.captions import Captions
from llava_lab.evaluate.metrics.choice import Choice
from llava_lab.evaluate.metrics.server import Server
from llava_lab.evaluate.metrics.wups import Wups
from llava_lab.evaluate.official import Columns, Labels, Official

FOLDER = REPOSITORY / "configs" / "benchmarks"
CASES: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parent / "official" / "files.yaml").read_text("utf-8")
)
NOT_FILES = {"pictures", "expected", "submission", "lines"}


def picture(color: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(file, "PNG")
    return file.getvalue()


def write(path: Path, content: Any, lines: bool = False) -> None:
    """Write a file of a benchmark in the form that its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, "utf-8")
    elif path.suffix == ".jsonl" or lines:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in content), "utf-8")
    elif path.suffix == ".tsv":
        code = base64.b64encode(picture()).decode()
        with path.open("w", encoding="utf-8", newline="") as file:
            rows = [[code if cell == "PICTURE" else cell for cell in row] for row in content]
            csv.writer(file, delimiter="\t").writerows(rows)
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
        inside = {"bytes": picture(), "path": None}
        put = {"PICTURE": inside, "BYTES": picture()}
        rows = [
            {k: put.get(v, v) if isinstance(v, str) else v for k, v in row.items()}
            for row in content
        ]
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(content), "utf-8")


def lay_out(name: str, root: Path) -> None:
    """Write the files of a benchmark below a folder."""
    case = CASES[name]
    for each in case.get("pictures", []):
        (root / each).parent.mkdir(parents=True, exist_ok=True)
        (root / each).write_bytes(picture())
    for path, content in case.items():
        if path not in NOT_FILES:
            write(root / path, content, path in case.get("lines", []))


def made(given: Any) -> Any:
    """A part of a configuration as an object."""
    if isinstance(given, str) and given.startswith("llava_lab."):
        given = {"class_path": given}
    if not isinstance(given, dict) or "class_path" not in given:
        return given
    module, _, name = given["class_path"].rpartition(".")
    options = {key: made(value) for key, value in given.items() if key != "class_path"}
    if "judge" in options:
        options["judge"] = Judge(**options["judge"])
    return getattr(importlib.import_module(module), name)(**options)


@cache
def given() -> dict[str, str]:
    """Options of all published benchmarks, as JSON.

    LLaVA-Bench's, whose prompts are in a file of theirs, are in test_judged.py.
    """
    found = {}
    for file in sorted(FOLDER.rglob("*.yaml")):
        text = file.read_text("utf-8").replace("${oc.env:LLAVA_DATA,data}/eval", "/ROOT")
        text = text.replace("${oc.env:JUDGE_URL}", "http://127.0.0.1:9/v1")
        for each in yaml.load(text, yaml.CSafeLoader)["data"].get("benchmarks+", []):
            if not each["name"].startswith("llava_bench"):
                found[each["name"]] = json.dumps(each)
    return found


def benchmark_of(name: str, root: Path) -> Any:
    """A published benchmark, with its files below a folder."""
    options = json.loads(given()[name].replace("/ROOT", str(root)))
    if "columns" in options:
        options["columns"] = Columns(**options["columns"])
        options["labels"] = Labels(**options["labels"]) if options["labels"] else None
    return made(options)


def benchmarks(root: Path) -> dict[str, Any]:
    """All published benchmarks, with their files below a folder."""
    return {name: benchmark_of(name, root) for name in given()}


def test_each_published_benchmark_has_a_small_file_in_its_form() -> None:
    assert given().keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_published_files_become_the_questions_that_are_asked(name: str, tmp_path: Path) -> None:
    lay_out(name, tmp_path)
    benchmark = benchmark_of(name, tmp_path)
    expected = []
    for id, prompt, image, answers, category in CASES[name]["expected"]:
        kind = None if category == "-" else category
        expected.append((id, prompt, image, tuple(answers), kind))
    found = []
    for each in benchmark.questions:
        assert each.text.count(IMAGE_PLACEHOLDER) == len(each.images)
        assert all(path.is_file() and path.is_absolute() for path in each.images)
        image = each.images[0].name if each.images else None
        image = "inside" if image and getattr(benchmark, "_inside", False) else image
        line = f"\n{benchmark.prompt}" if benchmark.prompt else ""
        text = each.text.replace(f"{IMAGE_PLACEHOLDER}\n", "") + line
        found.append((each.id, text, image, each.answers, each.category))
    assert found == expected
    if not isinstance(benchmark.metric, Captions | Wups):  # they need what may not be there
        benchmark.metric.check(benchmark.questions)
    if "submission" in CASES[name]:
        said, text = CASES[name]["submission"]
        benchmark.submit(tmp_path / "out", [said])
        assert (tmp_path / "out" / f"{name}.json").read_text("utf-8") == text


def test_all_right_answers_score_one(tmp_path: Path) -> None:
    for name, benchmark in benchmarks(tmp_path).items():
        metric = benchmark.metric
        if isinstance(metric, Server | Captions | Wups) or hasattr(metric, "judge"):
            continue
        lay_out(name, tmp_path)
        answers = [question.answers[0] for question in benchmark.questions]
        lines = benchmark.metric.grade(benchmark.questions, answers)
        assert all(line["correct"] > 0 for line in lines), name


def test_files_that_are_not_there_are_named_in_one_message(tmp_path: Path) -> None:
    for benchmark in benchmarks(tmp_path).values():
        with pytest.raises(FileNotFoundError) as caught:
            benchmark.read()
        message = str(caught.value)
        assert benchmark.path in message and f"benchmark {benchmark.name}:" in message
        assert all(what in message for what in benchmark.files.values())
    with pytest.raises(FileNotFoundError, match="3 of 3 files and folders are not there"):
        benchmark_of("pope", tmp_path).read()


def test_a_label_that_is_missing_or_left_over_names_both_files(tmp_path: Path) -> None:
    lay_out("pope", tmp_path)
    labels = tmp_path / "pope" / "coco" / "coco_pope_random.json"
    whole = labels.read_text()
    labels.write_text(whole.splitlines()[0])
    with pytest.raises(BadRows, match=r"llava_pope_test\.jsonl, line 2 .* is not in .*coco_pope"):
        benchmark_of("pope", tmp_path).read()
    labels.write_text(whole + whole.splitlines()[0].replace("dog", "cow"))
    with pytest.raises(ValueError, match=r"line 3: a label of no question of .*jsonl"):
        benchmark_of("pope", tmp_path).read()
    labels.write_text(whole + whole.splitlines()[0].replace("yes", "no"))
    with pytest.raises(ValueError, match=r"line 3: another label for .* than .*, line 1"):
        benchmark_of("pope", tmp_path).read()


def test_of_two_labels_of_one_question_textvqas_script_takes_the_last(tmp_path: Path) -> None:
    lay_out("textvqa_ocr", tmp_path)
    path = tmp_path / "textvqa" / "TextVQA_0.5.1_val.json"
    given = json.loads(path.read_text())
    path.write_text(json.dumps({"data": [*given["data"], {**given["data"][1], "answers": ["go"]}]}))
    assert benchmark_of("textvqa_ocr", tmp_path).questions[0].answers == ("go",)


def test_a_picture_that_is_inside_of_a_file_is_written_once(tmp_path: Path) -> None:
    lay_out("mmbench", tmp_path)
    first = benchmark_of("mmbench", tmp_path).questions
    assert len({question.images for question in first}) == 1
    (path,) = first[0].images
    before = path.stat().st_mtime_ns
    assert benchmark_of("mmbench", tmp_path).questions == first
    assert path.read_bytes() == picture() and path.stat().st_mtime_ns == before
    text = (tmp_path / "mmbench" / "mmbench_dev_20230712.tsv").read_text()
    broken = text.replace(base64.b64encode(picture()).decode(), "!", 1)
    (tmp_path / "mmbench" / "mmbench_dev_20230712.tsv").write_text(broken)
    with pytest.raises(BadRows, match=r"row 1 .*: its picture is neither bytes nor base64"):
        benchmark_of("mmbench", tmp_path).read()


def test_the_longest_answer_is_the_benchmarks_own(tmp_path: Path) -> None:
    all_of_them = benchmarks(tmp_path)
    longest = {name: each.max_new_tokens for name, each in all_of_them.items()}
    assert {name for name, tokens in longest.items() if tokens == 1024} == {
        *("scienceqa", "mmbench", "mmbench_cn", "mm_vet"),
        *("scienceqa_img_hub", "mmbench_hub", "mmbench_cn_hub"),
        *("mm_vet_judged", "mathvista_judged", "vdd", "synthdog_en", "scienceqa_qcm_lea"),
        *("msvd_qa", "msrvtt_qa", "tgif_qa", "activitynet_qa"),
        *("vcg_generic", "vcg_temporal", "vcg_consistency"),
    }
    drawn = {name for name, each in all_of_them.items() if each.temperature}
    assert drawn == {
        *("msvd_qa", "msrvtt_qa", "tgif_qa", "activitynet_qa", "vdd", "scienceqa_qcm_lea"),
        *("vcg_generic", "vcg_temporal", "vcg_consistency"),
    }
    assert (longest["chartqa"], longest["docvqa"], longest["gqa"]) == (16, 32, 128)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.json", '{"data": []}', "holds no rows"),
        ("a.json", '{"rows": [1]}', "has no 'data', under which the rows are; it has rows"),
        ("a.json", '{"data": [1]}', "row 1: a int, not an object"),
        ("a.tsv", "x\ty\n1\n", "row 1: has not as many cells as the head has names"),
        ("a.tsv", "x\ty\n1\t2\t3\n", "row 1: has not as many cells as the head has names"),
        ("a.parquet", "no parquet", "cannot be read as parquet"),
        ("a.xml", "<a/>", r"read are \.json"),
    ],
)
def test_a_damaged_file_is_one_message(name: str, text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=problem) as caught:
        list(read_official(str(tmp_path / name), "data" if name == "a.json" else None))
    assert str(tmp_path / name) in str(caught.value)


def test_a_text_may_hold_what_parts_lines_elsewhere(tmp_path: Path) -> None:
    rows = [{"question": "Is it\u2028red\x85?"}, {"question": "Or blue?"}]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "lines.json").write_bytes(text.encode())
    found = [row.value["question"] for row in read_official(str(tmp_path / "lines.json"))]
    assert found == [row["question"] for row in rows]
    (tmp_path / "mme" / "art").mkdir(parents=True)
    (tmp_path / "mme" / "art" / "1.txt").write_text("Is it\u2028red?\tYes\n\nBlue?\tNo\n")
    found = [(row.number, row.value["left"]) for row in read_official(str(tmp_path / "mme"))]
    assert found == [(1, "Is it\u2028red?"), (3, "Blue?")]


def test_a_template_says_which_column_is_not_there() -> None:
    row = {"id": 7, "a": {"b": ["x", "y"]}, "none": None}
    assert filled("{id:03d}.jpg {a.b.1} {none}|", row) == "007.jpg y |"
    with pytest.raises(Refused, match=r"has no 'name', which '\{name\}' names; it has id"):
        filled("{name}", row)
    for wrong in ("{a:03d}", "{hidden:letter}"):
        with pytest.raises(Refused, match="cannot be filled in"):
            filled(wrong, {**row, "hidden": -1})


@pytest.mark.parametrize("change", [{"id": "\ud83d"}, {"answer": "\ud83d"}, {"kind": "\ud83d"}])
def test_what_no_file_of_answers_could_hold_is_refused_before_they_are_made(
    change: dict[str, str], tmp_path: Path
) -> None:
    """All answers were lost when they were written."""
    columns = Columns("{id}", "Which?", answers="{answer}", category="{kind}")
    write(tmp_path / "a.jsonl", [{"id": "1", "answer": "A", "kind": "x"} | change])
    with pytest.raises(BadRows, match="half a surrogate pair"):
        _ = Official("x", str(tmp_path / "a.jsonl"), str(tmp_path), columns, Server()).questions


def test_a_line_of_json_may_hold_a_separator_of_lines(tmp_path: Path) -> None:
    write(tmp_path / "a.json", '{"text": "one\u2028two"}\n{"text": "three"}\n')
    found = [row.value["text"] for row in read_official(str(tmp_path / "a.json"))]
    assert found == ["one\u2028two", "three"]


@pytest.mark.parametrize("change", [{"options": ["y", "x"]}, {"kind": "open"}])
def test_what_an_answer_is_scored_by_is_part_of_what_is_asked(change: Any, tmp_path: Path) -> None:
    """Results of a file whose options or kinds were changed since were taken for those of now."""
    columns = Columns("{id}", "Which?", answers="{answer}", choices="options", kind="{kind}")
    row = {"id": 1, "answer": "A", "options": ["x", "y"], "kind": "choice"}
    found = []
    for name, each in (("a", row), ("b", row | change)):
        write(tmp_path / f"{name}.jsonl", [each])
        file, metric = str(tmp_path / f"{name}.jsonl"), Choice("mmmu")
        found.append(Official("x", file, str(tmp_path), columns, metric).content())
    assert found[0] != found[1]


def test_options_of_a_benchmark_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    columns = Columns("{id}", "{text}", None, None)
    for options, problem in (
        ({"submission": "mail"}, "submission 'mail' is none of vqav2"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"files": {"sounds": "x"}}, "files are questions, images, labels"),
    ):
        with pytest.raises(ValueError, match=problem):
            Official("x", "x.json", str(tmp_path), columns, Server(), **options)


# Benchmarks that need what may not be installed, by the module that says so.
NEEDED = {"Captions": "pycocoevalcap", "Wups": "pywsd"}


def asked_files(videos: bool) -> dict[str, list[str]]:
    """Names of benchmarks by their file, of those about videos or of the others."""
    found = {}
    for file in sorted(FOLDER.rglob("*.yaml")):
        text = file.read_text("utf-8")
        names = [line.split()[-1] for line in text.splitlines() if line.startswith("      name: ")]
        about = any(mark in text for mark in ("video: true", "Zero_Shot_QA", "video-chatgpt"))
        absent = any(f".{m}\n" in text and not find_spec(n) for m, n in NEEDED.items())
        if set(names) <= set(CASES) and names and about == videos and not absent:
            found[str(file)] = names
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("experiment", ["llava15", "llava_next_video"])
def test_a_run_asks_all_published_benchmarks_of_small_files(
    experiment: str,
    judge_server: Any,
    shortened: list[str],
    small_videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_files = asked_files(videos="video" in experiment)
    names = [name for each in of_files.values() for name in each]
    root = tmp_path / "data" / "eval"
    # Of benchmarks of one file, the last one's has the columns of both.
    for name in sorted(names, key=lambda name: "no_ocr" not in name):
        lay_out(name, root)
    (clip, *_) = sorted((small_videos / "videos").rglob("*.mp4"))
    for path in root.rglob("*"):
        if path.suffix.lower() in (".mp4", ".mkv", ".avi"):
            path.write_bytes(clip.read_bytes())
    # A number for MM-Vet, an object for the others.
    judge = judge_server(lambda body: "0.5 {'pred': 'yes', 'score': 3}")
    monkeypatch.setenv("LLAVA_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("JUDGE_URL", judge.url)
    monkeypatch.chdir(tmp_path)
    path = REPOSITORY / "experiments" / f"{experiment}.yaml"
    files = [part for file in (str(path), *of_files) for part in ("-c", file)]
    main(["fit", *files, *shortened, *stage_options(path, tmp_path)])
    (path,) = tmp_path.glob("runs/*/*/results.json")
    found = json.loads(path.read_text())["benchmarks"]
    assert set(names) <= set(found)
    unscored = {name for name in names if not found[name]}
    assert unscored == {name for name in names if "metrics.server.Server" in given()[name]}
    sent = {file.stem for file in path.parent.glob("submissions/*")}
    assert sent == {name for name in names if '"submission": "' in given()[name]}
    if experiment == "llava15":
        assert found["mme"].keys() >= {"perception", "accuracy/color", "points/landmark"}
        assert found["mmbench"]["circular"]["n"] == 2
        assert found["mm_vet_judged"]["with_math"]["value"] == 0.5
    else:
        lines = (path.parent / "predictions" / "vdd.jsonl").read_text("utf-8").splitlines()
        said = [json.loads(line)["prediction"] for line in lines]
        shares = [0.6 if len(text) > 1 else 0.0 for text in said]  # shorter ones are not judged
        assert found["vdd"]["detail"]["value"] == pytest.approx(sum(shares) / 2) and len(said) == 2
        assert found["vcg_consistency"]["consistency"]["n"] == 1
    main(["table", str(path)])
