"""Engines: a reply that is no whole answer is never written; no secret is shown or written."""

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import EngineHandler, EngineServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from llava_lab.__main__ import main
from llava_lab.core import engine as module
from llava_lab.core.atomic import plain_name
from llava_lab.core.engine import ChatEngine, TruncatedReply, UnusableReply
from llava_lab.data.image_folder import VideoPath
from llava_lab.data.modules.preference import read_preferences
from llava_lab.data.questions import Question
from llava_lab.data.sample import read_samples
from llava_lab.data.source import Source
from llava_lab.evaluate.benchmark import Benchmark, BenchmarkDataModule
from llava_lab.evaluate.judge import Judge
from llava_lab.evaluate.metrics.question import VQAAccuracy
from llava_lab.experiment.run import Run
from llava_lab.experiment.sweep import Sweep
from llava_lab.serve.caption import caption
from llava_lab.serve.caption_inputs import CaptionInput, read_inputs
from llava_lab.serve.prefer import check, pairs

GOOD = {"message": {"content": "A dog."}, "finish_reason": "stop"}


class Choices(EngineServer):
    """An engine that replies with what `choose` makes of its number; a str is the whole body."""

    def __init__(self, choose: Callable[[int], Any]):
        super().__init__(ChoicesHandler)
        self.choose, self.number = choose, 0


class ChoicesHandler(EngineHandler):
    server: Choices

    def do_POST(self) -> None:
        self.body()
        with self.server.lock:
            choice = self.server.choose(self.server.number)
            self.server.number += 1
        text = choice if isinstance(choice, str) else json.dumps({"choices": [choice]})
        content = text.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def replying(running, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Choices]:
    monkeypatch.setattr(module, "BACKOFF", 0.001)

    def start(choose: Callable[[int], Any]) -> Choices:
        server = Choices(choose)
        running(server)
        return server

    return start


NO_ANSWER = {
    "null": {"message": {"content": None}, "finish_reason": "stop"},
    "no content": {"message": {}, "finish_reason": "stop"},
    "empty": {"message": {"content": " \n"}, "finish_reason": "stop"},
    "number": {"message": {"content": 3}, "finish_reason": "stop"},
    "object": {"message": {"content": {"text": "A dog."}}, "finish_reason": "stop"},
    "refusal": {"message": {"content": None, "refusal": "I can't."}, "finish_reason": "stop"},
    "refusal beside": {"message": {"content": "A dog.", "refusal": "No."}, "finish_reason": "stop"},
    "filtered": {"message": {"content": "A"}, "finish_reason": "content_filter"},
    "a call": {"message": {"content": "A", "tool_calls": []}, "finish_reason": "tool_calls"},
    "aborted": {"message": {"content": "A"}, "finish_reason": "abort"},
    "cut": {"message": {"content": "A brown d"}, "finish_reason": "length"},
    "cut and null": {"message": {"content": None}, "finish_reason": "length"},
    "surrogate": {"message": {"content": "A \ud83d dog."}, "finish_reason": "stop"},
}
NO_REPLY = {
    "no json": "<html>",
    "no choices": "{}",
    "a list": "[]",
    "choices of nothing": '{"choices": [null]}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("case", [*NO_ANSWER, *NO_REPLY])
def test_a_reply_that_is_no_whole_answer_is_an_error(case: str, replying) -> None:
    server = replying(lambda _: NO_ANSWER.get(case) or NO_REPLY[case])
    with pytest.raises(ValueError) as caught:
        ChatEngine(server.url, "m", 1).complete([], max_tokens=5)
    assert isinstance(caught.value, UnusableReply) == (case in NO_ANSWER)
    assert isinstance(caught.value, TruncatedReply) == case.startswith("cut")
    assert caught.value.args[0] and len(str(caught.value)) < 500


def test_whole_answers_in_parts_or_without_a_reason_are_taken(replying) -> None:
    parts = [{"type": "text", "text": "A "}, {"type": "text", "text": "dog. "}]
    for choice in (
        {"message": {"content": "A dog."}},
        {"message": {"content": parts}, "finish_reason": "eos_token"},
        {"message": {"content": " A dog.\n", "refusal": None}, "finish_reason": None},
    ):
        server = replying(lambda _, choice=choice: choice)
        assert ChatEngine(server.url, "m", 1).complete([]) == "A dog."


NO_EMPTY_ANSWER = ["number", "object", "refusal", "filtered", "a call", "cut and null"]


def test_an_answer_that_need_not_be_whole_may_be_null(replying) -> None:
    """As SGLang writes an empty one: it was asked for again in every run, for good."""
    server = replying(lambda _: NO_ANSWER["null"])
    assert ChatEngine(server.url, "m", 1).complete([], whole=False) == ""
    called = {"content": None, "tool_calls": [{"id": "1"}]}
    thought = {"content": None, "reasoning_content": "Hm."}
    others = [{"message": each, "finish_reason": "stop"} for each in (called, thought)]
    for choice in (*others, *(NO_ANSWER[case] for case in NO_EMPTY_ANSWER)):
        server = replying(lambda _, choice=choice: choice)
        with pytest.raises(UnusableReply):
            ChatEngine(server.url, "m", 1).complete([], whole=False)


def test_a_reply_is_read_as_utf8_whatever_a_server_calls_it(
    replying, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON that was sent as text/plain was read as Latin-1."""
    said = json.dumps({"choices": [{"message": {"content": "Caf\u00e9"}}]}, ensure_ascii=False)
    server = replying(lambda _: said)
    own = server.RequestHandlerClass.send_response
    monkeypatch.setattr(
        server.RequestHandlerClass,
        "send_response",
        lambda self, code: (own(self, code), self.send_header("Content-Type", "text/plain")),
    )
    assert ChatEngine(server.url, "m", 1).complete([]) == "Caf\u00e9"


def captions(folder: Path, url: str, *more: str) -> None:
    out = ["--out", str(folder / "rows.json"), "--model", "m", "--engine-url", url]
    main(["caption", str(folder / "pictures"), *out, "--in-flight", "1", *more])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / f"{number}.png")
    return tmp_path


BAD = {**NO_ANSWER, "mark": {"message": {"content": "An <image> of a dog."}}}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_caption_is_named_tried_again_and_never_written(
    case: str, replying, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    bad = [True]
    server = replying(lambda number: BAD[case] if bad[0] and number else GOOD)
    with pytest.raises(SystemExit) as stopped:
        captions(folder, server.url)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "2 of 3 inputs have no caption" in said
    assert "1.png: " in said and "2.png: " in said and not (folder / "rows.json").exists()
    bad[0] = False
    asked = server.number
    captions(folder, server.url, "--max-new-tokens", "512")
    assert server.number == asked + 2, "the one that was whole is kept"
    rows = read_samples(Source(folder / "rows.json", folder / "pictures"), 0)
    assert [row.turns[1].text for row in rows] == ["A dog."] * 3


def test_a_reply_that_is_empty_once_is_asked_for_again(replying, folder: Path) -> None:
    server = replying(lambda number: NO_ANSWER["null"] if number == 1 else GOOD)
    captions(folder, server.url)
    assert server.number == 4


def test_captions_of_an_older_journal_that_no_reader_takes_are_made_anew(
    replying, folder: Path
) -> None:
    server = replying(lambda _: BAD["mark"])
    with pytest.raises(SystemExit):
        captions(folder, server.url)
    (journal,) = folder.glob("*.journal")
    keys = [each.key for each in read_inputs(folder / "pictures", None)]
    with journal.open("a") as file:
        for entry in zip(keys, ["", None, "A <image>."], strict=True):
            file.write(json.dumps(entry) + "\n")
    server.choose = lambda _: GOOD
    captions(folder, server.url)
    rows = read_samples(Source(folder / "rows.json", folder / "pictures"), 0)
    assert [row.turns[1].text for row in rows] == ["A dog."] * 3


def test_a_damaged_journal_is_one_message(
    replying, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    for line in ('["0.png"', '{"asked": 1}', "[1, 2]", "\udcff", "[" * 100_000):
        server = replying(lambda number: BAD["mark"] if number else GOOD)
        with pytest.raises(SystemExit):
            captions(folder, server.url)
        (journal,) = folder.glob("*.journal")
        with journal.open("a", errors="surrogateescape") as file:
            file.write(line + "\n")
        capsys.readouterr()
        with pytest.raises(SystemExit):
            captions(folder, server.url)
        said = capsys.readouterr().err
        assert f"{journal}, line 3: damaged" in said and said.count("\n") == 1, line
        journal.unlink()


NOISE = "QA_GT_caption_based_noisy"  # which readers take out of released rows
TEXTS = st.text(max_size=20) | st.sampled_from(
    [
        "",
        " ",
        "A dog.",
        "<image>",
        "a <video> b",
        "\ud83d",
        "\0",
        "\u2028x",
        "QA_GT_caption_based_noisy",
    ]
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXTS, min_size=3, max_size=3), videos=st.booleans())
def test_whatever_captions_are_written_are_read_again(
    texts: list[str], videos: bool, folder: Path
) -> None:
    paths = [folder / "pictures" / f"{number}.png" for number in range(3)]
    items = [CaptionInput(p.name, p.name, VideoPath(p) if videos else p) for p in paths]
    out = folder / "rows.jsonl"
    for left in (out, folder / "rows.jsonl.journal"):
        left.unlink(missing_ok=True)
    try:
        caption(items, lambda asked: zip(asked, texts, strict=True), None, out, "")
    except ValueError as problem:
        assert "inputs have no caption" in str(problem) and not out.exists()
        return
    rows = read_samples(Source(out, folder / "pictures"), 0, videos=True)
    assert [row.id for row in rows] == [item.id for item in items]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    answers=st.lists(TEXTS, min_size=2, max_size=4),
    images=st.integers(0, 2),
    asked=st.sampled_from(["What?", "Is {} or {} red?", "<video> what?", " ", "{}"]),
)
def test_whatever_pairs_are_written_are_read_again(
    answers: list[str], images: int, asked: str, folder: Path
) -> None:
    shown = tuple(folder / "pictures" / f"{number}.png" for number in range(images))
    marks = ["<image>"] * images
    text = asked.format(*marks) if asked.count("{}") == images else "\n".join([*marks, asked])
    question = Question("q", shown, text, None, ("A.",), "q.jsonl, line 1")
    scored = {"q": [(answer, number) for number, answer in enumerate(answers)]}
    try:
        check([question], judged=False, images=folder / "pictures")
        rows, _ = pairs([question], scored, folder / "pictures")
    except ValueError:
        return
    out = folder / "pairs.jsonl"
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    (found,) = read_preferences(Source(out, folder / "pictures"), 0)
    assert found.images == shown and found.turns[0].text.count("<image>") == images


SECRETS = (
    "http://user:s3cret@127.0.0.1:1/v1",
    "http://s3cret@127.0.0.1:1/v1",
    "http://127.0.0.1:1/v1?api_key=s3cret",
    "http://127.0.0.1:1/v1#s3cret",
    "http://user:s3cret@127.0.0.1:port/v1",
)


@pytest.mark.parametrize("url", SECRETS)
def test_an_address_with_a_secret_is_refused_and_not_repeated(
    url: str, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        captions(folder, url)
    said = capsys.readouterr()
    assert stopped.value.code == 2 and "OPENAI_API_KEY" in said.err
    assert "s3cret" not in said.err + said.out
    assert {path.name for path in folder.iterdir()} == {"pictures"}
    with pytest.raises(ValueError, match="OPENAI_API_KEY") as caught:
        Judge(url, "m")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000/v1", "ftp://host/v1", "http:///v1", "http://h:x"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is no engine's URL"):
        ChatEngine(url, "m", 1)


def test_a_key_that_an_engine_repeats_is_not_shown(
    replying, folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    server = replying(lambda _: '{"error": "wrong key s3cret"}')
    with pytest.raises(SystemExit):
        captions(folder, server.url)
    said = capsys.readouterr().err
    assert "wrong key ***" in said and "s3cret" not in said


NAMES = (
    "../x",
    "a/b",
    "",
    ".",
    "..",
    ".hidden",
    "a\0b",
    "-x",
    "a\nb",
    "a\\b",
    " a",
    "a ",
    "x" * 200,
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no plain file name") as caught:
        plain_name(name, "experiment")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="is no plain file name"):
        Run(tmp_path, name, "tiny", 0, "")
    benchmark = Benchmark(name, "q.jsonl", None, VQAAccuracy())
    with pytest.raises(ValueError, match=r"data\.benchmarks: name"):
        BenchmarkDataModule([benchmark], None)
    if name:
        path = tmp_path / "sweep.yaml"
        (tmp_path / "e.yaml").touch()
        path.write_text(json.dumps({"sweep": name, "experiment": "e.yaml", "axes": {"a": [1]}}))
        with pytest.raises(ValueError, match=r"sweep\.yaml: sweep .* is no plain file name"):
            Sweep.read(path)


def test_plain_names_pass(tmp_path: Path) -> None:
    for name in ("questions", "llava-1.5 (13B)", "mme_perception", "größe", "a+b=c", string.digits):
        assert plain_name(name, "name") == name
    twice = [Benchmark(name, "q.jsonl", None, VQAAccuracy()) for name in ("MME", "mme")]
    with pytest.raises(ValueError, match="two benchmarks have one name"):
        BenchmarkDataModule(twice, None)
