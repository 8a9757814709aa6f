"""Questions to an engine: one answer each in the order of the file, nothing asked twice."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import EngineHandler, EngineServer
from PIL import Image

from llava_lab.__main__ import main
from llava_lab.core import engine as module


class Server(EngineServer):
    """Says what it was asked; refuses texts that it is told to refuse."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.asked: list[dict[str, Any]] = []
        self.refused: set[str] = set()

    def texts(self) -> Counter[str]:
        return Counter(each["messages"][0]["content"][-1]["text"] for each in self.asked)


class Handler(EngineHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.body()
        *shown, last = body["messages"][0]["content"]
        with self.server.lock:
            self.server.asked.append(body)
        if last["text"] in self.server.refused:
            return self.reply("", 400)
        said = f"{len(shown)} and {last['text']}"
        choice = {"message": {"content": "" if "nothing" in said else said}}
        self.send({"choices": [{**choice, "finish_reason": "length"}]})


@pytest.fixture
def server(running, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(module, "BACKOFF", 0.001)
    running(made := Server())
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    rows = [
        {"question_id": 4, "image": "a.png", "text": "<image>\nWhat?"},
        {"question_id": 4, "image": ["a.png", "b.png"], "text": "<image>\n<image>\nAlike?"},
        {"question_id": "5", "text": "Say nothing."},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def ask(file: Path, url: str, *more: str) -> list[dict[str, Any]]:
    out = file.with_name("answers.jsonl")
    flags = ["--images", str(file.parent), "--out", str(out), "--engine-url", url]
    main(["answer", "mine", str(file), *flags, "--in-flight", "1", *more])
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_an_engine_is_shown_the_pictures_before_the_words(server: Server, file: Path) -> None:
    rows = ask(file, server.url, "--prompt", "Be short.", "--max-new-tokens", "7", "--stop", "###")
    assert [row["question_id"] for row in rows] == [4, 4, "5"]
    # Cut at the longest answer, or empty, an answer counts, as it does with a model of ours.
    assert [row["text"] for row in rows] == [
        "1 and What?\nBe short.",
        "2 and Alike?\nBe short.",
        "",
    ]
    assert {row["model_id"] for row in rows} == {"mine"}
    urls = [part["image_url"]["url"] for part in server.asked[1]["messages"][0]["content"][:2]]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    sampling = [(each["max_tokens"], each["temperature"], each["stop"]) for each in server.asked]
    assert sampling == [(7, 0, ["###"])] * 3
    assert not file.with_name("answers.jsonl.journal").exists()


def test_what_an_engine_refuses_is_listed_and_alone_asked_again(
    server: Server, file: Path, capsys: pytest.CaptureFixture
) -> None:
    server.refused = {"Alike?"}
    with pytest.raises(SystemExit):
        ask(file, server.url)
    said = capsys.readouterr().err
    assert "1 of 3 questions have no answer" in said and "line 2: " in said and "says 400" in said
    with pytest.raises(SystemExit):
        ask(file, server.url, "--max-new-tokens", "9")
    assert "begun with another model or other options" in capsys.readouterr().err
    server.refused = set()
    assert len(ask(file, server.url)) == 3
    with pytest.raises(SystemExit):
        ask(file, server.url, "--max-new-tokens", "9")
    assert "answers.jsonl: exists already" in capsys.readouterr().err
    assert server.texts() == {"What?": 1, "Alike?": 2, "Say nothing.": 1}


def test_what_an_engine_cannot_be_asked_is_refused_before_it_is_asked(
    server: Server, file: Path, capsys: pytest.CaptureFixture
) -> None:
    row = {"question_id": 6, "image": ["a.png", "b.png"], "text": "<image>\nor\n<image>\nWhich?"}
    file.write_text(file.read_text() + json.dumps(row) + "\n")
    with pytest.raises(SystemExit):
        ask(file, server.url)
    said = capsys.readouterr().err
    assert "line 4: has images between its words" in said and "without --engine-url" in said
    assert not server.asked
    for flags in (["--frames", "4"], ["--template", "v1"]):
        with pytest.raises(SystemExit):
            ask(file, server.url, *flags)
        assert "an engine has its own" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["answer", "m", str(file), "--out", "a.jsonl", "--stop", "#"])
    assert "--stop changes nothing here: it is an engine's" in capsys.readouterr().err


def test_an_answer_stays_with_its_question_when_a_row_is_found_again(
    server: Server, file: Path
) -> None:
    """Answers were kept by place: a picture that had come meanwhile moved them all by one."""
    row = {"question_id": 1, "image": "late.png", "text": "Late?"}
    same = {"question_id": 4, "image": "a.png", "text": "<image>\nWhat?"}
    file.write_text(json.dumps(row) + "\n" + file.read_text() + json.dumps(same) + "\n")
    server.refused = {"Alike?"}
    with pytest.raises(SystemExit):
        ask(file, server.url, "--on-bad-row", "skip")
    Image.new("RGB", (4, 4)).save(file.with_name("late.png"))
    server.refused = set()
    rows = ask(file, server.url, "--on-bad-row", "skip")
    assert [row["text"] for row in rows] == [
        "1 and Late?",
        "1 and What?",
        "2 and Alike?",
        "",
        "1 and What?",
    ]
    assert server.texts() == {"What?": 2, "Alike?": 2, "Say nothing.": 1, "Late?": 1}


def test_a_journal_that_was_kept_by_place_is_refused(
    server: Server, file: Path, capsys: pytest.CaptureFixture
) -> None:
    server.refused = {"Alike?"}
    with pytest.raises(SystemExit):
        ask(file, server.url)
    journal = file.with_name("answers.jsonl.journal")
    first, *kept = journal.read_text().splitlines()
    old = [json.dumps([str(place), json.loads(line)[1]]) for place, line in enumerate(kept)]
    journal.write_text("\n".join([first, *old, ""]))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        ask(file, server.url)
    assert "holds 2 results, and none of this command, such as '0'" in capsys.readouterr().err
