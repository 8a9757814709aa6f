"""Benchmarks that an LM judges: published files in, judged once, the judge named in the results."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from conftest import REPOSITORY, stage_options

from llava_lab.cli import fit as cli
from llava_lab.core.ranks import on_one_rank
from llava_lab.data.rows import BadRows
from llava_lab.data.views.video import Frames
from llava_lab.evaluate.judge import Judge, JudgePrompt
from llava_lab.evaluate.metrics.judged import (
    Aspects,
    Consistency,
    Relative,
    RightAnswer,
)
from llava_lab.evaluate.metrics.open_ended import OpenEnded
from llava_lab.evaluate.metrics.server import Server
from llava_lab.evaluate.scores import Scores
from llava_lab.report.judges import judge_notes
from llava_lab.report.runs import RunResults, read
from llava_lab.report.table import all_grids

ASSETS = {
    "video_qa": RightAnswer,
    **dict.fromkeys(("correctness", "detail", "context", "temporal"), Aspects),
    "consistency": Consistency,
    "relative": Relative,
}


def dump(path: Path, rows: list[dict]) -> str:
    lines = map(json.dumps, rows)
    text = "\n".join(lines) if path.suffix == ".jsonl" else json.dumps(rows)
    path.write_text(text)
    return str(path)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("v_abc.mp4", "v_def.MKV", "ghi.avi", "v_ghi.webm", "j.k.gif", "abc.txt"):
        (folder / name).write_bytes(b"")
    (folder / "frames").mkdir()
    (folder / "frames" / "0.png").write_bytes(b"")
    return folder


def activity(tmp_path: Path, videos: Path, metric: Any = None, **options: Any) -> OpenEnded:
    names = ["abc", "def", "v_abc", "ghi", "j.k", "frames", "abc"]
    ids = ["a_0", "d_0", "a_1", "g_0", 7, "f_0", "a_0"]
    asked = [
        {"question_id": i, "video_name": name, "question": f"what is {n}?"}
        for n, (i, name) in enumerate(zip(ids, names, strict=True))
    ]
    told = [{"question_id": i, "answer": f"it is {n}", "type": 3} for n, i in enumerate(ids)]
    return OpenEnded(
        "activity",
        dump(tmp_path / "test_q.json", asked),
        str(videos),
        metric,
        dump(tmp_path / "test_a.json", told),
        **options,
    )


def test_questions_of_videos_are_read_as_published(tmp_path: Path, videos: Path) -> None:
    found = activity(tmp_path, videos).questions
    assert [q.id for q in found] == ["a_0", "d_0", "a_1", "g_0", "7", "f_0", "a_0_1"]
    assert [q.images[0].name for q in found] == [
        *("v_abc.mp4", "v_def.MKV", "v_abc.mp4", "ghi.avi", "j.k.gif", "frames", "v_abc.mp4")
    ]
    assert [q.answers for q in found] == [(f"it is {n}",) for n in range(7)]
    assert found[0].text == "<image>\nwhat is 0?" and not activity(tmp_path, videos).blind


def test_rows_of_video_chatgpt_are_read(tmp_path: Path, videos: Path) -> None:
    rows = [
        {"video_name": "v_abc", "Q": "What?", "A": "This."},
        {"video_name": "v_def", "Q1": "Who?", "Q2": "Which one?", "A": "She."},
    ]
    path = dump(tmp_path / "qa.json", rows)
    found = OpenEnded("vcg", path, str(videos), None).questions
    assert [(q.id, q.prompt, q.answers[0]) for q in found] == [
        ("1", "What?", "This."),
        ("2/1", "Who?", "She."),
        ("2/2", "Which one?", "She."),
    ]
    rows[0]["video_name"] = "xyz"
    rows[1]["Q2"] = None
    with pytest.raises(BadRows) as bad:
        _ = OpenEnded("vcg", dump(tmp_path / "qa.json", rows), str(videos), None).questions
    assert "row 1 (id 1): video 'xyz' is not in" in str(bad.value)
    assert "row 2 (id 2): 'text' must be text" in str(bad.value)


def test_questions_and_answers_must_be_the_same(tmp_path: Path, videos: Path) -> None:
    benchmark = activity(tmp_path, videos)
    dump(tmp_path / "test_a.json", [{"question_id": "a_0", "answer": "x"}])
    with pytest.raises(BadRows, match="question 'd_0' has no answer in"):
        _ = benchmark.questions
    more = [{"question_id": i, "answer": "x"} for i in ("a_0", "a_0", "a_1", "d_0", "g_0", 7)]
    dump(tmp_path / "test_a.json", [*more, {"question_id": "f_0", "answer": "x"}, more[1]])
    with pytest.raises(ValueError, match=r"1 answers are to no question of .*first to 'a_0'"):
        _ = benchmark.questions


def test_llava_bench_is_read_with_references_and_captions(tmp_path: Path, videos: Path) -> None:
    (videos / "001.jpg").write_bytes(b"")
    row = {"question_id": 0, "image": "001.jpg", "text": "Name it.", "category": "conv"}
    told = [{"question_id": 0, "text": "A.", "answer_id": "x"}]
    (question,) = OpenEnded(
        "wild",
        dump(tmp_path / "q.jsonl", [row]),
        str(videos),
        None,
        dump(tmp_path / "a.jsonl", told),
        dump(tmp_path / "context.jsonl", [{"id": 0, "image": "001.jpg", "caption": ["a", "b"]}]),
    ).questions
    assert question.caption == "a\nb" and question.answers == ("A.",)
    assert question.category == "conv"


@pytest.mark.parametrize("name", ASSETS)
def test_prompts_that_ship_show_what_is_judged(name: str) -> None:
    prompt = JudgePrompt(f"asset:judge/{name}.yaml", ASSETS[name].needs)
    case = {need: f"<{need}>" for need in ASSETS[name].needs}
    text = prompt.messages(case)[-1]["content"]
    assert all(f"<{need}>" in text for need in ASSETS[name].needs)
    assert not re.search(r"\{\w+\}", text)


def test_video_answers_are_judged_right_or_wrong(judge_server, tmp_path, videos) -> None:
    def say(body: dict) -> str:
        text = body["messages"][-1]["content"]
        number = int(re.search(r"what is (\d)\?", text)[1])
        verdict = "yes" if number < 3 else "No."
        return f"{{'pred': '{verdict}', 'score': {5 - number / 2}}}"

    server = judge_server(say)
    judge = Judge(server.url, "judge-1", str(tmp_path / "kept"))
    metric = RightAnswer(judge, "asset:judge/video_qa.yaml")
    questions = activity(tmp_path, videos, metric).questions
    lines = metric.grade(questions, ["I say so"] * 7)
    assert [line["correct"] for line in lines] == [1, 1, 1, 0, 0, 0, 0]
    assert [line["score"] for line in lines] == [5, 4, 4, 3, 3, 2, 2]
    found = metric.compute()
    assert found["accuracy"].value == pytest.approx(3 / 7) and found["accuracy"].n == 7
    assert found["score"].value == pytest.approx(23 / 35)
    assert metric.grade(questions, ["I say so"] * 7) == lines and len(server.bodies) == 7
    assert metric.compute() == found
    other = RightAnswer(Judge(server.url, "judge-2", judge.cache), "asset:judge/video_qa.yaml")
    assert other.settings() != metric.settings()
    first, second = (activity(tmp_path, videos, each).content() for each in (metric, other))
    assert first != second


def test_aspects_are_scored_from_0_to_5(judge_server, tmp_path, videos) -> None:
    server = judge_server(
        lambda body: '{"score": 4.9}' if "the detail orientation" in str(body) else "{'score': 1}"
    )
    prompts = {name: f"asset:judge/{name}.yaml" for name in ("detail", "context")}
    metric = Aspects(Judge(server.url, "j", str(tmp_path / "kept")), prompts)
    questions = activity(tmp_path, videos, metric).questions
    lines = metric.grade(questions, ["yes", "", "n", "no", "no", "no", "no"])
    assert [line["detail"] for line in lines] == [4, 0, 0, 4, 4, 4, 4]
    assert [line["context"] for line in lines] == [1, 0, 0, 1, 1, 1, 1]
    assert lines[0]["correct"] == pytest.approx(0.5)
    assert len(server.bodies) == 2 * 5  # two answers are none
    found = metric.compute()
    assert found["detail"].value == pytest.approx(20 / 35) and found["detail"].n == 7
    assert found["context"].value == pytest.approx(5 / 35)
    assert list(metric.settings()["prompts"]) == ["detail", "context"]


def test_both_wordings_are_judged_together(judge_server, tmp_path, videos) -> None:
    server = judge_server(lambda body: f'{{"score": {2 + ("yes" in str(body))}}}')
    judge = Judge(server.url, "j", str(tmp_path / "kept"))
    metric = Consistency(judge, {"consistency": "asset:judge/consistency.yaml"})
    rows = [{"video_name": "abc", "Q1": f"a{n}", "Q2": f"b{n}", "A": "so"} for n in range(3)]
    benchmark = OpenEnded("vcg", dump(tmp_path / "q.json", rows), str(videos), metric)
    metric.check(benchmark.questions)
    lines = metric.grade(benchmark.questions, ["yes", "it is", "it", "is", "no", ""])
    assert [line.get("consistency") for line in lines] == [3, None, 2, None, 0, None]
    assert len(server.bodies) == 2 and metric.compute()["consistency"].n == 3
    with pytest.raises(ValueError, match=r"row 2: question 2/1 has no second wording"):
        metric.check(benchmark.questions[:3])


def test_wordings_of_rows_with_one_id_are_paired_row_by_row(judge_server, tmp_path, videos) -> None:
    said: list[str] = []

    def say(body: dict) -> str:
        said.append(str(body["messages"]))
        return '{"score": 3}'

    judge = Judge(judge_server(say).url, "j", str(tmp_path / "kept"), in_flight=1)
    metric = Consistency(judge, {"consistency": "asset:judge/consistency.yaml"})
    rows = [
        {"question_id": 5, "video_name": "abc", "Q1": f"a{n}", "Q2": f"b{n}", "A": "so"}
        for n in range(3)
    ]
    questions = OpenEnded("v", dump(tmp_path / "q.json", rows), str(videos), metric).questions
    metric.check(questions)
    assert [q.id for q in questions[2:4]] == ["5_1/1", "5_1/2"]
    again = [replace(q, id=f"5/{1 + n % 2}") for n, q in enumerate(questions)]
    for number, asked in enumerate((questions, again)):
        said.clear()
        judge.model = f"j{number}"  # nothing is kept of another
        lines = metric.grade(asked, [f"says {n}" for n in range(6)])
        assert len(said) == 3 and [bool(line) for line in lines] == [True, False] * 3
        for n, messages in enumerate(said):
            assert all(f"says {place}" in messages for place in (2 * n, 2 * n + 1))
            assert f"a{n}" in messages and f"b{n}" in messages


def test_questions_with_one_id_are_judged_each(judge_server, tmp_path, videos) -> None:
    server = judge_server(
        lambda body: f"{{'pred': '{'yes' if 'zebra' in str(body) else 'no'}', 'score': 3}}"
    )
    judge = Judge(server.url, "j", str(tmp_path / "kept"))
    metric = RightAnswer(judge, "asset:judge/video_qa.yaml")
    questions = [replace(q, id="same") for q in activity(tmp_path, videos, metric).questions]
    lines = metric.grade(questions, ["zebra", "no", "no", "zebra", "no", "no", "no"])
    assert [line["correct"] for line in lines] == [1, 0, 0, 1, 0, 0, 0]
    assert metric.compute()["accuracy"].n == 7


def test_open_files_with_faults_end_in_one_message(tmp_path: Path, videos: Path) -> None:
    (videos / "1.jpg").write_bytes(b"")
    row = {"question_id": 1, "image": "1.jpg", "text": "?"}

    def read_with(rows: list, captions: list | None = None) -> list:
        told = None if captions is None else dump(tmp_path / "c.jsonl", captions)
        asked = dump(tmp_path / "q.json", rows)
        return OpenEnded("w", asked, str(videos), None, captions=told).questions

    with pytest.raises(BadRows, match="'question_id' must be text"):
        read_with([{"image": "1.jpg", "text": "?"}])
    with pytest.raises(BadRows, match="a row must be an object"):
        read_with(["no row"])
    caption = {"image": "1.jpg", "caption": "A."}
    assert read_with([row], [caption, caption])[0].caption == "A."
    with pytest.raises(ValueError, match=r"line 2: a second caption of '1\.jpg'"):
        read_with([row], [caption, caption | {"caption": "B."}])
    for fault in ("no row", {"caption": "A."}):
        with pytest.raises(ValueError, match="line 1: a caption has `image` and `caption`"):
            read_with([row], [fault])


def test_a_pair_is_one_sample_of_the_sheet(judge_server, small_videos, tmp_path) -> None:
    judge = Judge(judge_server(lambda body: '{"score": 5}').url, "j", str(tmp_path / "kept"))
    metric = Consistency(judge, {"consistency": "asset:judge/consistency.yaml"})
    path = dump(tmp_path / "q.json", [{"video_name": "000001", "Q1": "a", "Q2": "b", "A": "so"}])
    benchmark = OpenEnded("vcg", path, str(small_videos / "videos" / "eval"), metric)
    texts = ["yes", "yes"]
    drawn: list[tuple] = []
    writer = SimpleNamespace(add_image=lambda name, picture, **_: drawn.append((name, picture)))
    trainer: Any = SimpleNamespace(
        loggers=[SimpleNamespace(experiment=writer)], datamodule=SimpleNamespace(views=Frames())
    )
    lines = metric.grade(benchmark.questions, texts)
    Scores._show(trainer, "vcg", benchmark.questions, texts, lines)
    assert [name for name, _ in drawn] == ["samples/vcg"]


def test_a_judge_reads_captions_and_boxes_of_coco(tmp_path, videos) -> None:
    (videos / "1.jpg").write_bytes(b"")
    rows = [{"question_id": 0, "image": "1.jpg", "text": "What?", "category": "conv"}]
    box = {"category": "dog", "bbox": [0.1, 0.2, 0.5, 1.0]}
    told = [{"image": "1.jpg", "captions": ["a dog", "it runs"], "instances": [box]}]
    captions = dump(tmp_path / "c.jsonl", told)
    path = dump(tmp_path / "q.jsonl", rows)
    (asked,) = OpenEnded("coco", path, str(videos), Server(), None, captions).read()
    assert asked.caption == "a dog\nit runs\n\ndog: [0.1, 0.2, 0.5, 1.0]"
    dump(tmp_path / "c.jsonl", [{**told[0], "instances": [1]}])
    with pytest.raises(ValueError, match=r"c\.jsonl, line 1: `instances` are objects"):
        OpenEnded("coco", path, str(videos), Server(), None, captions).read()


def test_relative_scores_are_ratios_of_means(judge_server, tmp_path, videos) -> None:
    marks = iter(["8, 4\nwhy", "9 10", "10 6"])
    judge = Judge(judge_server(lambda body: next(marks)).url, "j", str(tmp_path / "kept"))
    judge.in_flight = 1
    metric = Relative(judge, "asset:judge/relative.yaml")
    (videos / "1.jpg").write_bytes(b"")
    rows = [
        {"question_id": n, "image": "1.jpg", "text": f"{n}?", "category": "conv" if n else "detail"}
        for n in range(3)
    ]
    told = [{"question_id": n, "text": "x"} for n in range(3)]
    captions = dump(tmp_path / "c.jsonl", [{"image": "1.jpg", "caption": "a"}])
    path, answers = dump(tmp_path / "q.jsonl", rows), dump(tmp_path / "a.jsonl", told)
    benchmark = OpenEnded("wild", path, str(videos), metric, answers, captions)
    metric.check(benchmark.questions)
    lines = metric.grade(benchmark.questions, ["so"] * 3)
    assert lines[1] == {"correct": 1.0, "score": 10.0, "reference_score": 9.0}
    found = metric.compute()
    assert found["relative"].value == pytest.approx(20 / 27)
    assert found["relative/conv"].value == pytest.approx(16 / 19)
    with pytest.raises(ValueError, match="no caption of its picture"):
        metric.check(OpenEnded("wild", path, str(videos), metric, answers).questions)
    blind = tmp_path / "blind.yaml"
    blind.write_text("user: '{question} {answer} {prediction}'")
    metric.prompts = {"relative": JudgePrompt(str(blind), ())}
    with pytest.raises(ValueError, match=r"benchmark wild: captions are for a judge, and none of"):
        OpenEnded("wild", path, str(videos), metric, answers, captions)


def rank(index: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=index, world_size=2
    )

    def judge() -> dict[str, int]:
        Path(folder, f"asked by {index}").touch()
        return {"a": 3}

    def refuse() -> None:
        raise ValueError(f"refused to {index}")

    found = on_one_rank(judge)
    with pytest.raises(ValueError) as refused:
        on_one_rank(refuse)
    Path(folder, f"{index}.json").write_text(json.dumps([found, str(refused.value)]))
    torch.distributed.destroy_process_group()


def test_one_rank_asks_for_all(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(
        rank, args=(str(tmp_path),), nprocs=2, start_method="fork"
    )
    for index in range(2):
        told = json.loads((tmp_path / f"{index}.json").read_text())
        assert told == [{"a": 3}, "refused to 0"]
    assert not (tmp_path / "asked by 1").exists()


@pytest.mark.timeout(600)
def test_a_judged_benchmark_is_fitted_and_tested(
    judge_server, shortened: list[str], small_videos: Path, tmp_path: Path
) -> None:
    server = judge_server(lambda body: '{"pred": "yes", "score": 3}')
    judge = {"url": server.url, "model": "judge-1", "cache": str(tmp_path / "kept")}
    benchmark = {
        "class_path": "llava_lab.evaluate.metrics.open_ended.OpenEnded",
        "init_args": {
            "name": "judged",
            "questions": str(small_videos / "questions.jsonl"),
            "images": str(small_videos / "videos"),
            "limit": 5,
            "metric": {
                "class_path": "llava_lab.evaluate.metrics.judged.RightAnswer",
                "init_args": {"judge": judge, "prompt": "asset:judge/video_qa.yaml"},
            },
        },
    }
    experiment = REPOSITORY / "experiments" / "llava_next_video.yaml"
    options = ["-c", str(experiment), *shortened, *stage_options(experiment, tmp_path)]
    options += [f"--data.benchmarks={json.dumps([benchmark])}"]
    cli.main(["fit", *options])
    (path,) = tmp_path.glob("runs/*/*/results.json")
    first = json.loads(path.read_text())
    assert first["benchmarks"]["judged"]["accuracy"] == {
        "value": 1.0,
        "ci95": [pytest.approx(0.3424, abs=1e-3), 1.0],  # as of two videos
        "n": 5,
    }
    assert first["benchmarks"]["judged"]["score"]["value"] == pytest.approx(0.6)
    model, told = (first["judges"]["judged"][key] for key in ("model", "prompts"))
    told = told["answer"]
    assert model == "judge-1" and told["prompt"] == "asset:judge/video_qa.yaml"
    assert len(told["prompt_sha256"]) == 64 and "{prediction}" in told["prompt_texts"]["user"]
    lines = (path.parent / "predictions" / "judged.jsonl").read_text().splitlines()
    assert [json.loads(line)["score"] for line in lines] == [3] * 5
    asked = len(server.bodies)
    assert 1 <= asked <= 5
    cli.main(["test", *options])
    assert len(server.bodies) == asked
    assert json.loads(path.read_text())["benchmarks"] == first["benchmarks"]
    grid = next(all_grids([[read(path)]]))
    (note,) = (note for note in grid.notes if "judge-1" in note)
    assert note.startswith("judged: judged by judge-1 (asset:judge/video_qa")
    assert note.endswith("; a score of 5 points is 100.")
    server.say = lambda body: 403
    changed = options[-1].replace("judge-1", "judge-2")
    with pytest.raises(SystemExit, match=r"^error: the judge judge-2: http.* says 403"):
        cli.main(["fit", *options[:-1], changed])
    kept = [path.read_text() for path in tmp_path.glob("runs/*/*/predictions/judged.jsonl")]
    assert len(kept) == 2  # what was answered is there, judged or not


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("judged.Aspects", "q: judged by j (p aaaaaaaaaaaa); a score of 5 points is 100."),
        ("mm_vet.MMVet", "q: judged by j (p aaaaaaaaaaaa); a score of 1 is 100."),
        (
            "judged.Relative",
            "q: judged by j (p aaaaaaaaaaaa); 100 is as many points as the reference answers get.",
        ),
        ("extracted.ExtractedMathVista", "q: answers are cut out by j (p aaaaaaaaaaaa)."),
        ("mine.Own", "q: judged by j (p aaaaaaaaaaaa)."),
        (None, "q: judged by j (p aaaaaaaaaaaa)."),
    ],
)
def test_a_note_says_what_the_points_of_a_metric_are(metric: str | None, said: str) -> None:
    judges = {"q": {"model": "j", "prompts": {"x": {"prompt": "p", "prompt_sha256": "a" * 64}}}}
    asked = {"name": "q", "metric": {"class_path": f"llava_lab.evaluate.metrics.{metric}"}}
    config = None if metric is None else json.dumps({"data": {"benchmarks": [asked]}})
    assert judge_notes(RunResults(Path("none"), {"judges": judges}, text=config)) == [said]


def test_files_of_judged_benchmarks_are_parsed_and_spelt_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    names = ["msvd_qa", "msrvtt_qa", "tgif_qa", "activitynet_qa", "video_chatgpt", "vdd"]
    paths = [REPOSITORY / "configs" / "benchmarks" / f"{name}.yaml" for name in names]
    given = [
        each for path in paths for each in yaml.safe_load(path.read_text())["data"]["benchmarks+"]
    ]
    monkeypatch.setenv("JUDGE_URL", "http://127.0.0.1:9/v1")
    experiment, paper = "experiments/llava_next_video.yaml", "configs/scale/paper.yaml"
    files = [str(REPOSITORY / each) for each in (experiment, paper)] + [str(path) for path in paths]
    cli.main(["fit", *(part for file in files for part in ("-c", file)), "--print_config"])
    parsed = yaml.safe_load(capsys.readouterr().out)["data"]["benchmarks"]
    assert [each["name"] for each in parsed] == [
        *("msvd_qa", "msrvtt_qa", "tgif_qa", "activitynet_qa"),
        *("vcg_generic", "vcg_temporal", "vcg_consistency", "vdd"),
    ]
    for ours, theirs in zip(parsed, given, strict=True):
        assert set(ours) == set(theirs)
        metric = ours["metric"]
        assert set(metric["judge"]) == set(theirs["metric"]["judge"])
        assert metric["judge"]["model"] == "gpt-3.5-turbo-0613"
