"""Scores are of the questions that were asked: one answer a row, whatever the number of ranks."""

import csv
import json
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.multiprocessing
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image

from llava_lab.__main__ import main
from llava_lab.data.image_folder import VideoPath
from llava_lab.data.questions import Question, read_held_out, read_questions
from llava_lab.data.source import Source
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.video import Frames
from llava_lab.evaluate.benchmark import Benchmark, BenchmarkDataModule
from llava_lab.evaluate.groups import blind_groups, by_images, most_frequent, placed
from llava_lab.evaluate.interval import estimate
from llava_lab.evaluate.loggers import log_picture
from llava_lab.evaluate.metrics.question import ExactMatch, VQAAccuracy, YesNo
from llava_lab.evaluate.metrics.server import Server
from llava_lab.evaluate.scores import Scores
from llava_lab.model.connector.linear import Linear
from llava_lab.model.encoder.timm import TimmEncoder
from llava_lab.model.llava import Llava
from llava_lab.model.llm import CausalLM
from llava_lab.report.points import parse_points
from llava_lab.report.runs import read
from llava_lab.report.table import run_notes
from llava_lab.serve import models
from llava_lab.serve.answer import answer_questions, check_answerable
from llava_lab.serve.chat import talk

CONFIG = {
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 2,
}
WORDS = ["ring", "star", "heart", "cross", "square", "circle", "moon"]


def make_model() -> Llava:
    """A random model of a 256-token LM; a picture is 16 tokens."""
    torch.manual_seed(0)
    options = {"embed_dim": 48, "depth": 1, "num_heads": 4, "mlp_ratio": 2}
    encoder = TimmEncoder("xcit_nano_12_p16_224", -1, False, False, 64, None, options)
    llm = CausalLM(None, "v1", pretrained=False, config=CONFIG, tokenizer="asset:tokenizer")
    for weight in llm.parameters():
        if weight.ndim > 1:  # large, so that answers differ from question to question
            torch.nn.init.normal_(weight, std=0.3)
    return Llava(encoder, Linear, llm).eval()


@pytest.fixture(scope="module")
def model() -> Llava:
    return make_model()


def paint(folder: Path, names: list[str]) -> None:
    """One picture a name, each of another color."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (20 + number, 30), (40 * number % 256, 90, 7 * number)).save(folder / name)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def repeated(folder: Path, pictures: int = 7) -> Path:
    """Two questions a picture under one id, the second about another word, as MME has them."""
    names = [f"{number}.png" for number in range(pictures)]
    paint(folder / "images", names)
    rows = [
        {
            "question_id": f"existence/{name}",
            "image": name,
            "text": text,
            "category": "first" if text.startswith("Is") else "second",
            "answer": "yes",
        }
        for name, word in zip(names, WORDS, strict=False)
        for text in (f"Is there a {word}?", f"Describe what the {word} does.")
    ]
    return write_rows(folder / "questions.jsonl", rows)


def run_test(
    model: Llava, benchmarks: list[Benchmark], folder: Path, verb: str = "test", **options: Any
) -> Scores:
    """Scores as `test` computes them, or none as in `predict`."""
    temperature = options.pop("temperature", 0.0)
    scores = Scores(folder / "predictions")
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[scores],
        logger=options.pop("logger", False),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        default_root_dir=str(folder),
        **options,
    )
    data = BenchmarkDataModule(benchmarks, Pad(), "first", 4, temperature, 2)
    if verb == "test":
        trainer.test(model, datamodule=data, verbose=False)
    else:
        trainer.predict(model, datamodule=data, return_predictions=False)
    return scores


def read_lines(folder: Path, name: str = "q") -> list[dict[str, Any]]:
    return [json.loads(x) for x in (folder / "predictions" / f"{name}.jsonl").open()]


def benchmark(path: Path, metric: Any = None, **options: Any) -> Benchmark:
    return Benchmark("q", str(path), str(path.parent / "images"), metric or ExactMatch(), **options)


def test_what_is_not_scored_here_accepts_no_empty_answer(model: Llava, tmp_path: Path) -> None:
    """Beside answers for a server 0 were said to be accepted, where no rule had looked."""
    scores = run_test(model, [benchmark(repeated(tmp_path, 1), Server(), blind=False)], tmp_path)
    assert scores.counts()["q"]["empty_correct"] is None


def test_rows_with_one_id_have_an_answer_each_in_order(model: Llava, tmp_path: Path) -> None:
    path = repeated(tmp_path)
    questions = read_questions(path, tmp_path / "images")
    alone = [answer_questions(model, Pad(), [each], max_new_tokens=4)[0] for each in questions]
    pairs = zip(alone[::2], alone[1::2], strict=True)
    assert sum(first != second for first, second in pairs) > 2  # of the two of one id
    assert answer_questions(model, Pad(), questions, max_new_tokens=4) == alone
    backwards = answer_questions(model, Pad(), questions[::-1], max_new_tokens=4)
    assert backwards == alone[::-1]
    # Scored against what was said to each row, every row is right.
    rows = [json.loads(line) for line in path.open()]
    write_rows(path, [row | {"answer": text or "x"} for row, text in zip(rows, alone, strict=True)])
    scores = run_test(model, [benchmark(path)], tmp_path)
    assert [line["prediction"] for line in read_lines(tmp_path)] == alone
    right = sum(bool(text) for text in alone) / len(alone)
    assert scores.results["q"]["accuracy"].value == right


def test_answers_are_sampled_at_a_temperature_by_seed_and_id(
    model: Llava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmarks = [benchmark(repeated(tmp_path))]

    def said(seed: int, temperature: float) -> list[str]:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        run_test(model, benchmarks, tmp_path, temperature=temperature)
        return [line["prediction"] for line in read_lines(tmp_path)]

    sampled = said(0, 0.7)
    assert said(0, 0.7) == sampled != said(1, 0.7)
    assert said(0, 0.0) == said(1, 0.0) != sampled
    for wrong in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=rf"data\.temperature is {wrong}; it is 0 or more"):
            run_test(model, benchmarks, tmp_path, temperature=wrong)


def test_a_picture_may_stand_behind_its_question(tmp_path: Path) -> None:
    question, *_ = read_questions(repeated(tmp_path), tmp_path / "images")
    text = "Is there a ring?"
    assert placed(question, "last").text == f"{text}\n<image>"
    assert (
        placed(question, "last", "Answer yes or no.").text == f"{text}\nAnswer yes or no.\n<image>"
    )
    assert [len(each.questions) for each in by_images([question] * 2, "last")] == [2]


@pytest.fixture
def ask_file(
    model: Llava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[dict[str, Any]]]:
    """Runs `answer` on a file and returns what it wrote."""
    monkeypatch.setattr(models, "open_model", lambda *_: (model, Pad()))

    def run(path: Path, *more: str) -> list[dict[str, Any]]:
        out = tmp_path / "answers.jsonl"
        out.unlink(missing_ok=True)
        arguments = ["answer", "m", str(path), "--images", str(path.parent / "images")]
        main([*arguments, "--out", str(out), "--max-new-tokens", "4", *more])
        return [json.loads(line) for line in out.open()]

    return run


def test_answer_writes_a_line_a_row_with_its_id_as_it_stands_in_the_file(
    model: Llava, tmp_path: Path, ask_file: Callable[..., list[dict[str, Any]]]
) -> None:
    path = repeated(tmp_path, pictures=3)
    rows = [json.loads(line) for line in path.open()]
    ids = [4, "4", 4, "4", "a", "a", "a"]
    asked = [*rows, {"text": "What is a ring?"}]
    write_rows(path, [row | {"question_id": n} for row, n in zip(asked, ids, strict=True)])
    questions = read_questions(path, tmp_path / "images")
    found = ask_file(path)
    assert [line["question_id"] for line in found] == ids
    alone = [answer_questions(model, Pad(), [each], max_new_tokens=4)[0] for each in questions]
    assert [line["text"] for line in found] == alone


def test_answer_leaves_rows_out_that_cannot_be_asked_where_it_is_told_to(
    tmp_path: Path, ask_file: Callable[..., list[dict[str, Any]]], capsys: pytest.CaptureFixture
) -> None:
    path = repeated(tmp_path, pictures=4)
    every = ask_file(path)
    rows = [json.loads(line) for line in path.open()]
    rows[1] |= {"image": ["0.png"] * 80}
    rows[6] |= {"image": "missing.png"}
    (tmp_path / "images" / "1.png").write_bytes(b"no picture")
    write_rows(path, rows)
    with pytest.raises(SystemExit):
        ask_file(path)
    capsys.readouterr()
    with pytest.warns(UserWarning, match=r"1 of 8 rows are left out; .*missing\.png"):
        found = ask_file(path, "--on-bad-row", "skip")
    assert found == [every[place] for place in (0, 4, 5, 7)]
    said = capsys.readouterr().out
    assert all(f"left out: {path}, line {number}: " in said for number in (2, 3, 4))


def test_lmms_eval_has_its_answers_in_order_or_none_at_all(
    model: Llava, lmms_adapter: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmms_adapter, "open_model", lambda *_: (model, Pad()))
    monkeypatch.setattr(lmms_adapter, "REQUESTS_AT_ONCE", 2)
    asked = lmms_adapter.LlavaLab("m")
    paint(tmp_path, ["a.png", "b.png"])
    documents = [Image.open(tmp_path / f"{name}.png") for name in "abab"]
    asked.task_dict = {"t": {"test": documents}}

    def request(document: int, text: str, length: int) -> SimpleNamespace:
        options = {"max_new_tokens": length, "until": ["###"]}
        return SimpleNamespace(args=(text, options, lambda x: [x], document, "t", "test"))

    texts = [f"What does the {word} do?" for word in WORDS[:4]]
    requests = [request(n, text, 4 + n % 2) for n, text in enumerate(texts)]
    together = asked.generate_until(requests)
    assert together == [asked.generate_until([each])[0] for each in requests]
    # Where the task says where its picture stands, it stays there; others come first.
    words = "How many <image> do you see of them all there?"
    question = Question("q", (tmp_path / "a.png",), words, None, (), "q")
    kept, moved = (
        answer_questions(model, Pad(), [question], position=each, max_new_tokens=4)
        for each in ("keep", "first")
    )
    told = asked.generate_until([requests[0], request(0, words, 4)])
    assert told == [together[0], kept[0]] and kept != moved
    computed: list[int] = []
    monkeypatch.setattr(lmms_adapter, "answer_questions", lambda *_, **__: computed.append(1))
    with pytest.raises(ValueError, match=r"task t, document 3: .* for the answer"):
        asked.generate_until([*requests[:3], request(3, texts[3], 400)])
    assert not computed


def test_rows_that_are_equal_are_answered_and_counted_each(model: Llava, tmp_path: Path) -> None:
    path = repeated(tmp_path, pictures=3)
    rows = [json.loads(line) for line in path.open()]
    write_rows(path, [*rows, rows[0], rows[0]])
    scores = run_test(model, [benchmark(path)], tmp_path)
    lines = read_lines(tmp_path)
    assert len(lines) == 8 and lines[0] == lines[6] == lines[7]
    assert scores.results["q"]["accuracy"].n == 8


def test_held_out_conversations_with_one_id_are_scored_row_by_row(
    model: Llava, tmp_path: Path
) -> None:
    names = [f"{number}.png" for number in range(6)]
    paint(tmp_path / "images", names)
    rows = [
        {
            "id": "same",
            "image": name,
            "conversations": [
                {"from": "human", "value": f"<image>\nIs there a {word}?"},
                {"from": "gpt", "value": word},
            ],
        }
        for name, word in zip(names, WORDS, strict=False)
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    held = read_held_out(Source(path, tmp_path / "images"), 0.5)
    assert len({each.id for each in held}) == 1 < len(held)
    run_test(model, [benchmark(path, held_out=0.5, blind=False)], tmp_path)
    wanted = [answer_questions(model, Pad(), [each], max_new_tokens=4)[0] for each in held]
    assert [line["prediction"] for line in read_lines(tmp_path)] == wanted


def test_text_and_pictures_wherever_they_stand_are_answered_as_alone(
    model: Llava, tmp_path: Path
) -> None:
    """Questions of one picture in which it stands elsewhere, none, and the same one twice."""
    paint(tmp_path, ["a.png", "b.png"])
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    asked = [
        ("<image>\nWhat is the ring?", (a,)),
        ("Two: <image> and <image>?", (a, b)),
        ("Look at <image> and at <image>?", (a, b)),
        ("What is a ring?", ()),
        ("What is a star?", ()),
        ("<image> <image> Are they the same?", (a, a)),
    ]
    questions = [Question("1", shown, text, None, (), f"q {text}") for text, shown in asked]
    together = answer_questions(model, Pad(), questions, max_new_tokens=4, images_per_batch=4)
    alone = [answer_questions(model, Pad(), [each], max_new_tokens=4)[0] for each in questions]
    assert together == alone


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run_rank(rank: int, world: int, port: int, folder: Path) -> None:
    """One rank of a job that asks two benchmarks: one of a batch, and one of four."""
    torch.set_num_threads(1)
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": 0, "LOCAL_RANK": rank}
    os.environ |= {name: str(value) for name, value in names.items()}
    out = folder / str(world)
    one = Benchmark(
        "one", str(folder / "questions.jsonl"), str(folder / "images"), YesNo(), limit=2
    )
    all_ = Benchmark("all", str(folder / "questions.jsonl"), str(folder / "images"), YesNo())
    asked = [one, all_] if world == 1 else [all_, one]
    scores = run_test(make_model(), asked, out, devices=world, strategy="ddp")
    few = run_test(make_model(), [one], out / "few", devices=world, strategy="ddp")
    run_test(make_model(), [one, all_], out / "said", "predict", devices=world, strategy="ddp")
    found = {
        name: {key: asdict(score) for key, score in sorted(kept.items())}
        for name, kept in sorted((scores.results | {"few": few.results["one"]}).items())
    }
    kept = [found, sorted(scores.visual_tokens.items()), sorted(scores.counts().items())]
    (out / f"rank{rank}.json").write_text(json.dumps(kept))


@pytest.mark.timeout(180)
def test_two_ranks_give_what_one_gives_and_count_no_question_twice(tmp_path: Path) -> None:
    """Seven pictures in batches of two do not divide by two ranks; of one batch one has none."""
    repeated(tmp_path)
    for world in (1, 2):
        (tmp_path / str(world)).mkdir()
        torch.multiprocessing.start_processes(
            run_rank, args=(world, free_port(), tmp_path), nprocs=world, start_method="fork"
        )
    wanted = (tmp_path / "1" / "rank0.json").read_text()
    assert [(tmp_path / "2" / f"rank{rank}.json").read_text() for rank in (0, 1)] == [wanted] * 2
    found = json.loads(wanted)[0]
    assert found["all"]["accuracy"]["n"] == found["all"]["blind_accuracy"]["n"] == 14
    assert found["one"]["accuracy"]["n"] == found["few"]["accuracy"]["n"] == 2
    assert found["one"].keys() == found["few"].keys()
    for part in ("", "few", "said"):
        files = sorted((tmp_path / "1" / part / "predictions").iterdir())
        for file in files:
            other = tmp_path / "2" / part / "predictions" / file.name
            assert file.read_bytes() == other.read_bytes()
    points, other = (json.loads((tmp_path / n / "points.json").read_text()) for n in "12")
    assert points["benchmarks"] == other["benchmarks"] and set(other["benchmarks"]) == {
        "one",
        "all",
    }
    lines = [json.loads(line) for line in (tmp_path / "2/said/predictions/all.jsonl").open()]
    assert len(lines) == 14 and not any("correct" in line for line in lines)


def test_pictures_are_encoded_once_for_both_passes_and_answered_as_apart(
    model: Llava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = repeated(tmp_path), []
    pixels = Pad.pixels
    monkeypatch.setattr(Pad, "pixels", lambda *given: seen.append(1) or pixels(*given))
    together = run_test(model, [benchmark(path, YesNo(), text_only=True)], tmp_path)
    lines, pictures = read_lines(tmp_path), len(seen)
    # A limit that leaves all batches asks each pass by itself.
    apart = run_test(
        model, [benchmark(path, YesNo(), text_only=True)], tmp_path, limit_test_batches=99
    )
    assert read_lines(tmp_path) == lines and len(lines) == 14
    assert apart.results == together.results and apart.visual_tokens == together.visual_tokens
    assert (pictures, len(seen) - pictures) == (7, 14)


def test_a_line_of_predictions_has_both_passes(model: Llava, tmp_path: Path) -> None:
    path = repeated(tmp_path)
    scores = run_test(model, [benchmark(path, YesNo())], tmp_path)
    lines = read_lines(tmp_path)
    assert list(lines[0]) == [
        *("id", "question", "category", "answer", "prediction", "correct"),
        *("blind_prediction", "blind_correct"),
    ]
    for prefix in ("", "blind_"):
        right = sum(line[f"{prefix}correct"] for line in lines) / 14
        assert scores.results["q"][f"{prefix}accuracy"].value == right


def test_points_are_what_the_scores_are_made_of(model: Llava, tmp_path: Path) -> None:
    path = repeated(tmp_path)
    asked = benchmark(path, YesNo())
    scores = run_test(model, [asked], tmp_path).results["q"]
    content = json.loads((tmp_path / "points.json").read_text())
    stated = {name: asdict(score) for name, score in scores.items()}
    found = parse_points(content, "here", {"q": stated})
    assert {score for _, score in found} == set(scores)
    assert {"blind_mean_f1", "most_frequent_mean_f1", "most_frequent_f1/first"} <= set(scores)
    lines = read_lines(tmp_path)
    for prefix in ("", "blind_"):
        points = found["q", f"{prefix}accuracy"]
        assert points.got.tolist() == [line[f"{prefix}correct"] for line in lines]
        assert points.of.tolist() == [1] * 14 and points.content == asked.asked()
        assert points.ids[:2].tolist() == ["0:existence/0.png", "1:existence/0.png"]
        # Two questions a picture, whatever picture the blind pass showed.
        assert points.clusters.tolist() == [f"images/{n // 2}.png" for n in range(14)]
        for name in (f"{prefix}f1", f"{prefix}mean_f1", f"{prefix}recall/first"):
            of_points = estimate(found["q", name].ratio, points.clusters)
            assert list(of_points.interval()) == scores[name].ci95
    first = found["q", "accuracy/first"]
    assert first.of.tolist() == [1, 0] * 7 and first.ratio.n == scores["accuracy/first"].n


@pytest.mark.parametrize("options", [{"limit_test_batches": 1}, {"fast_dev_run": True}])
def test_only_what_was_answered_is_scored_and_results_say_so(
    model: Llava, tmp_path: Path, options: dict[str, Any]
) -> None:
    path = repeated(tmp_path)
    scores = run_test(model, [benchmark(path)], tmp_path, **options)
    assert len(read_lines(tmp_path)) == 4
    assert scores.results["q"]["accuracy"].n == scores.results["q"]["blind_accuracy"].n == 4
    (note,) = [note for note in run_notes({"answered": scores.counts()}) if "limits" in note]
    assert note.startswith("q: 4 of 14 questions were answered")


def test_without_any_answer_there_are_no_scores(model: Llava, tmp_path: Path) -> None:
    scores = run_test(model, [benchmark(repeated(tmp_path))], tmp_path, limit_test_batches=0)
    assert scores.results == {"q": {}} and read_lines(tmp_path) == []
    notes = run_notes({"answered": scores.counts()})
    assert notes[0].startswith("q: 0 of 14 questions were answered")


def test_empty_answers_keep_the_official_rule_and_are_counted(
    model: Llava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint(tmp_path / "images", ["a.png", "b.png"])
    rows = [
        {"question_id": n, "image": f"{'ab'[n % 2]}.png", "text": f"{n}?", "answer": answer}
        for n, answer in enumerate(["A", "ring", "the", "A"])
    ]
    path = write_rows(tmp_path / "q.jsonl", rows)
    monkeypatch.setattr("llava_lab.model.generate._text", lambda *_: "")
    scores = run_test(model, [benchmark(path, VQAAccuracy())], tmp_path)
    assert scores.results["q"]["accuracy"].value == 0.75
    counts = scores.counts()["q"]
    assert (counts["empty"], counts["empty_correct"]) == (4, 3)
    assert run_notes({"answered": {"q": counts}}) == [
        "q: 4 of 4 answers are empty; the benchmark's rule accepts 3 of them."
    ]


def asks(*shown: Path) -> Question:
    return Question("id", shown, "<image>\n" * len(shown) + "?", None, ("x",), str(shown))


def dealt(*groups: list[Path]) -> list[tuple[Path, ...]] | None:
    found = blind_groups(by_images([asks(*shown) for shown in groups]))
    return None if found is None else [group.images for group in found]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Twelve pictures, and behind them four of their copies under other names."""
    paint(tmp_path, [f"{number}.png" for number in range(12)])
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for number in range(4):
        (tmp_path / f"copy{number}.png").write_bytes(paths[number].read_bytes())
    return paths + [tmp_path / f"copy{number}.png" for number in range(4)]


def test_blind_deals_every_image_once_and_to_another_question(pictures: list[Path]) -> None:
    groups = [[path] for path in pictures[:12]]
    found = dealt(*groups)
    assert found is not None and sorted(found) == sorted(map(tuple, groups))
    assert all(tuple(mine) != theirs for mine, theirs in zip(groups, found, strict=True))
    assert dealt(*groups) == found


def test_blind_never_shows_a_group_its_own_pictures(pictures: list[Path]) -> None:
    p = pictures
    cases = [
        [[p[0]], [p[1]], [p[2], p[3]]],  # alone with its number of pictures
        [[p[0], p[1]], [p[1], p[0]]],  # the same pictures in another order ...
        [[p[0], p[1]], [p[1], p[0]], [p[2]]],  # ... beside one that is not
        [[p[0], p[1]], [p[1], p[2]], [p[2], p[0]], [p[4]]],  # each shares one with each
        [[p[n]] for n in (0, 12, 1, 13, 2, 14, 3, 15)],  # copies under other names
        [[p[0]], [p[12]], [p[1]]],  # more copies than others
        [[p[n], p[n]] for n in range(3)],
        [[], [p[0]], [p[1]], []],  # text alone
        [[p[0]], [p[1]], [p[2]], [p[3], p[0]]],  # alone, and it has a picture of another
        [[p[0], p[1]], [p[2]]],  # each is alone
    ]
    for groups in cases:
        found = dealt(*groups)
        if groups == cases[1]:
            assert found is None
            continue
        assert found is not None
        for own, shown in zip(groups, found, strict=True):
            mine = {path.read_bytes() for path in own}
            assert len(shown) == len(own) and mine.isdisjoint(path.read_bytes() for path in shown)
    # Of four pictures and their copies each is still shown once: groups have swapped.
    assert sorted(dealt(*cases[4]) or []) == sorted(map(tuple, cases[4]))


def test_without_any_picture_is_a_pass_of_its_own(model: Llava, tmp_path: Path) -> None:
    path = repeated(tmp_path)
    scores = run_test(model, [benchmark(path, text_only=True)], tmp_path)
    questions = [
        replace(each, images=(), text=each.prompt)
        for each in read_questions(path, tmp_path / "images")
    ]
    alone = answer_questions(model, Pad(), questions, max_new_tokens=4)
    lines = read_lines(tmp_path)
    assert [line["text_only_prediction"] for line in lines] == alone
    assert alone != [line["prediction"] for line in lines]
    assert list(lines[0])[-2:] == ["text_only_prediction", "text_only_correct"]
    found = scores.results["q"]
    assert {"text_only_accuracy", "text_only_accuracy/first", "blind_accuracy"} <= set(found)
    assert scores.visual_tokens["q"] == 16  # those of the questions' own pictures
    run_test(model, [benchmark(path, text_only=True)], tmp_path, "predict")
    assert list(read_lines(tmp_path)[0])[-1] == "prediction"


def test_without_any_picture_is_refused_where_there_is_none(model: Llava, tmp_path: Path) -> None:
    rows = [{"question_id": 1, "text": "?", "answer": "yes"}]
    path = write_rows(tmp_path / "q.jsonl", rows)
    asked = Benchmark("q", str(path), None, ExactMatch(), text_only=True)
    with pytest.raises(ValueError, match="text_only is true, but no question has an image"):
        BenchmarkDataModule([asked], Pad()).check(model)


def test_the_most_frequent_answer_of_each_type_is_a_baseline(model: Llava, tmp_path: Path) -> None:
    paint(tmp_path / "images", ["a.png", "b.png"])
    answers = {"color": ["red", "blue", "red"], "count": ["2", "3", "3", "2", "4"]}
    rows = [
        {"question_id": n, "image": "a.png", "text": "?", "category": kind, "answer": answer}
        for kind, given in answers.items()
        for n, answer in enumerate(given)
    ]
    path = write_rows(tmp_path / "q.jsonl", rows)
    found = run_test(model, [benchmark(path)], tmp_path).results["q"]
    assert found["most_frequent_accuracy/color"].value == pytest.approx(2 / 3)
    assert found["most_frequent_accuracy/count"].value == pytest.approx(
        2 / 5
    )  # 2, the first of two
    assert found["most_frequent_accuracy"].value == pytest.approx(4 / 8)
    people = [["a", "a", "b"], ["b", "b", "b"]]  # as of people who were asked
    said = [Question("1", (), "?", None, tuple(each), "") for each in people]
    assert most_frequent(said) == ["b", "b"]


def test_without_another_picture_there_is_no_blind_score_and_results_say_so(
    model: Llava, tmp_path: Path
) -> None:
    paint(tmp_path / "images", ["a.png"])
    (tmp_path / "images" / "b.png").write_bytes((tmp_path / "images" / "a.png").read_bytes())
    rows = [
        {"question_id": n, "image": f"{name}.png", "text": "What?", "answer": "a"}
        for n, name in enumerate("ab")
    ]
    path = write_rows(tmp_path / "q.jsonl", rows)
    scores = run_test(model, [benchmark(path)], tmp_path)
    assert list(scores.results["q"]) == ["accuracy", "most_frequent_accuracy"]
    notes = run_notes({"answered": scores.counts()})
    assert "q: no blind score, since a question could only be shown its own images." in notes
    scores = run_test(model, [benchmark(path, blind=False)], tmp_path)
    assert not scores.counts()["q"]["no_blind"]


def test_questions_beyond_the_context_are_refused_before_any_is_answered(
    model: Llava, tmp_path: Path
) -> None:
    """An 80-picture row, as of people who ask about films frame by frame, in a 256-token LM."""
    paint(tmp_path / "images", ["a.png"])
    rows = [
        {"question_id": 1, "image": "a.png", "text": "What?", "answer": "x"},
        {"question_id": 2, "image": ["a.png"] * 80, "text": "How many?", "answer": "x"},
    ]
    path = write_rows(tmp_path / "q.jsonl", rows)
    with pytest.raises(ValueError, match="1 of 2 questions cannot be asked") as refused:
        run_test(model, [benchmark(path)], tmp_path)
    said = str(refused.value)
    assert f"{path}, line 2: " in said and "1,280 of 80 pictures" in said
    assert "the LM reads 256" in said
    fit = int(said.split("what fits: ")[1].split(" pictures of this size")[0])
    assert not (tmp_path / "predictions").exists()

    def ask(count: int, length: int) -> list[str]:
        shown = (tmp_path / "images" / "a.png",) * count
        return answer_questions(model, Pad(), [asks(*shown)], max_new_tokens=length)

    path = write_rows(path, [rows[1] | {"image": ["a.png"] * fit}])
    run_test(model, [benchmark(path, blind=False)], tmp_path)  # so many do fit
    with pytest.raises(ValueError, match=f"what fits: {fit} pictures"):
        write_rows(path, [rows[1] | {"image": ["a.png"] * (fit + 1)}])
        run_test(model, [benchmark(path)], tmp_path)
    with pytest.raises(ValueError, match=r"300 for the answer.*what fits: .* answers of") as longer:
        ask(1, 300)
    most = int(str(longer.value).split("answers of ")[1].split(" tokens")[0])
    ask(1, most)
    with pytest.raises(ValueError, match=f"answers of {most} tokens"):
        ask(1, most + 1)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        ask(1, 0)


def test_a_blind_pass_beyond_the_context_is_refused_before_training(
    model: Llava, tmp_path: Path
) -> None:
    """Alone each fits; shown the video of another, a long question does not."""
    paint(tmp_path / "images" / "film", [f"{number}.png" for number in range(3)])
    for file in (tmp_path / "images" / "film").iterdir():
        Image.new("RGB", (20, 20), (9, 9, len(file.stem))).save(file)
    paint(tmp_path / "images", ["a.png"])
    rows = [
        {"question_id": 1, "image": "a.png", "text": "what " * 70, "answer": "x"},
        {"question_id": 2, "video": "film", "text": "What?", "answer": "x"},
    ]
    path = write_rows(tmp_path / "q.jsonl", rows)
    views = Frames(10, stride=1, image=Pad())
    data = BenchmarkDataModule([benchmark(path)], views, max_new_tokens=4)
    with pytest.raises(ValueError, match=r"line 1 \(blind: images of others\): .* frames"):
        data.check(model)
    BenchmarkDataModule([benchmark(path, blind=False)], views, max_new_tokens=4).check(model)


def test_every_picture_that_cannot_be_read_is_named_before_any_question_is_answered(
    model: Llava, tmp_path: Path
) -> None:
    path = repeated(tmp_path)
    (tmp_path / "images" / "3.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="2 of 14 questions cannot be asked") as refused:
        run_test(model, [benchmark(path)], tmp_path)
    assert all(f"line {number}: " in str(refused.value) for number in (7, 8))
    questions = read_questions(path, tmp_path / "images")
    with pytest.raises(ValueError, match="2 of 14 questions"):
        check_answerable(model, Pad(), questions, 4)


def test_a_video_beyond_the_context_is_refused_with_the_frames_that_fit(
    model: Llava, tmp_path: Path
) -> None:
    paint(tmp_path / "film", ["0.png"])
    asked = Question("v", (VideoPath(tmp_path / "film"),), "<image>\nWhat?", None, (), "the row")
    with pytest.raises(ValueError, match=r"the row: .* of 1 video, .*; what fits: (\d+) frames"):
        answer_questions(model, Frames(20, stride=1), [asked], max_new_tokens=4)


def test_a_conversation_that_outgrows_the_context_ends_in_one_message(
    model: Llava, tmp_path: Path
) -> None:
    lines = iter(["hello " * 30] * 10)
    with pytest.raises(ValueError, match=r"the chat, question [2-9]: .*the LM reads 256"):
        talk(model, Pad(), [], 16, lambda _: next(lines))


@pytest.mark.parametrize(
    ("row", "metric", "message"),
    [
        ({"answer": "maybe"}, YesNo(), "give exactly one, yes or no"),
        ({"category": "a\nb"}, ExactMatch(), "contains a line break"),
    ],
)
def test_what_a_rule_cannot_score_is_refused_before_training(
    model: Llava, tmp_path: Path, row: dict[str, Any], metric: Any, message: str
) -> None:
    paint(tmp_path / "images", ["a.png"])
    values = {"question_id": 1, "image": "a.png", "text": "?", "answer": "yes"} | row
    path = write_rows(tmp_path / "q.jsonl", [values])
    with pytest.raises(ValueError, match=f"line 1: .*{message}"):
        BenchmarkDataModule([benchmark(path, metric)], Pad()).check(model)


def test_a_limit_below_one_question_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="limit is 0"):
        benchmark(tmp_path / "q.jsonl", limit=0)


def test_a_share_of_a_question_file_is_not_held_out(tmp_path: Path) -> None:
    path = repeated(tmp_path)
    with pytest.raises(ValueError, match=r"held_out is 0\.1, but these are questions"):
        _ = benchmark(path, held_out=0.1).questions


class Odd(ExactMatch):
    """A rule of one's own with a fault."""

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        return float("nan")


def test_a_rule_that_gives_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match="Odd scores 'yes' with nan, not from 0 to 1"):
        Odd().update(["yes"], [["yes"]], [""])


@pytest.mark.parametrize(
    "score",
    [
        {"value": float("nan"), "ci95": [0, 1], "n": 3},
        {"value": None, "ci95": [0, 1], "n": 3},
        {"value": 0.5, "ci95": [0, float("nan")], "n": 3},
        {"value": 0.5, "ci95": [0.2], "n": 3},
        {"value": 0.5, "ci95": None, "n": 3},
        {"value": 0.5, "ci95": [0, 1], "n": -1},
    ],
)
def test_a_results_file_with_a_score_that_is_none_is_refused(
    tmp_path: Path, score: dict[str, Any]
) -> None:
    results = {"experiment": "e", "scale": "", "seed": 0, "stages": [], "cost": {}}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**results, "benchmarks": {"q": {"accuracy": score}}}))
    with pytest.raises(ValueError, match=r"results\.json: benchmarks, q, accuracy: "):
        read(path)


class Pictures(CSVLogger):
    """A logger with a method for pictures, such as that of Weights & Biases."""

    def log_image(self, key: str, images: list[Any]) -> None:
        self.pictures = {**getattr(self, "pictures", {}), key: images}


class Client:
    """The client of a logger that keeps pictures by run, such as that of MLflow."""

    def log_image(self, run_id: str, image: Any, artifact_file: str) -> None:
        self.logged = (run_id, image.size, artifact_file)


def test_scores_and_sheets_go_to_every_logger_that_takes_them(model: Llava, tmp_path: Path) -> None:
    path = repeated(tmp_path)
    plain, pictures = CSVLogger(tmp_path / "plain"), Pictures(tmp_path / "pictures")
    curves = TensorBoardLogger(tmp_path / "curves")
    scores = run_test(model, [benchmark(path)], tmp_path, logger=[plain, pictures, curves]).results[
        "q"
    ]
    for logger in (plain, pictures):
        (row,) = csv.DictReader((Path(logger.log_dir) / "metrics.csv").open())
        found = {name: float(value) for name, value in row.items() if name != "step"}
        assert found == {f"q/{key}": score.value for key, score in scores.items()}
        assert "q/accuracy" in found
    ((key, images),) = pictures.pictures.items()
    assert key == "samples/q" and images[0].mode == "RGB"
    assert list(tmp_path.glob("curves/**/events.out.tfevents*"))


def test_a_picture_goes_to_the_client_of_a_run(tmp_path: Path) -> None:
    client = Client()
    run: Any = SimpleNamespace(experiment=client, run_id="7")
    log_picture([run], "samples/q", Image.new("RGB", (4, 3)))
    assert client.logged == ("7", (4, 3), "samples/q.png")
