"""Captions: one row an input whatever breaks, and nothing asked twice."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import EngineHandler, EngineServer
from PIL import Image

from llava_lab.__main__ import main
from llava_lab.core import engine as module
from llava_lab.serve import answer, models
from llava_lab.serve.caption import caption
from llava_lab.serve.caption_engines import LocalEngine
from llava_lab.serve.caption_inputs import CaptionInput, read_inputs

PICTURES = 30
OURS = SimpleNamespace(llm=SimpleNamespace(template="v1"))


class Server(EngineServer):
    """An engine that sometimes refuses, breaks off, or is slow."""

    def __init__(self, faults: dict[int, str], seconds: float = 0.0):
        super().__init__(Handler)
        self.faults, self.seconds = faults, seconds
        self.asked: Counter[str] = Counter()
        self.stops: set[str] = set()
        self.open = self.most_open = self.requests = 0


class Handler(EngineHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.body()
        with self.server.lock:
            self.server.open += 1
            self.server.most_open = max(self.server.most_open, self.server.open)
            number = self.server.requests
            self.server.requests += 1
        time.sleep(self.server.seconds)
        fault = self.server.faults.get(number)
        part = body["messages"][0]["content"][0]
        picture = part[part["type"]]["url"]
        with self.server.lock:
            self.server.open -= 1
            self.server.stops.add(json.dumps(body.get("stop")))
            if fault is None:
                self.server.asked[picture] += 1
        if fault == "break":
            self.connection.close()
            return
        self.reply(f"{body['model']}: {len(picture)} characters", int(fault or 200))


@pytest.fixture
def serve(running, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Server]:
    monkeypatch.setattr(module, "BACKOFF", 0.001)

    def start(faults: dict[int, str] | None = None, seconds: float = 0.0) -> Server:
        server = Server(faults or {}, seconds)
        running(server)
        return server

    return start


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for index in range(PICTURES):
        levels = draw.integers(0, 255, (8, 8 + index, 3), dtype=np.uint8)
        place = folder / "more" if index % 2 else folder
        Image.fromarray(levels).save(place / f"{index:02d}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def run(pictures: Path, out: Path, url: str, *more: str) -> None:
    main(["caption", str(pictures), "--out", str(out), "--model", "m", "--engine-url", url, *more])


def test_an_engine_that_fails_now_and_then_costs_nothing(
    serve, pictures: Path, tmp_path: Path
) -> None:
    server = serve({0: "503", 3: "break", 7: "429", 8: "500", 20: "break"}, seconds=0.02)
    out = tmp_path / "captions.json"
    run(pictures, out, server.url, "--in-flight", "6", "--prompt", "What?")
    rows = json.loads(out.read_text())
    names = sorted(str(p.relative_to(pictures)) for p in pictures.rglob("*.png"))
    assert [row["image"] for row in rows] == names
    assert set(server.asked.values()) == {1} and len(server.asked) == PICTURES
    assert 2 <= server.most_open <= 6
    first, second = rows[0]["conversations"]
    assert first == {"from": "human", "value": "<image>\nWhat?"}
    assert second["from"] == "gpt" and second["value"].startswith("m: ")
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "captions.json"}


def test_what_an_engine_refuses_is_listed_and_tried_again(
    serve, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    server = serve({4: "400", 9: "404"})
    out = tmp_path / "captions.jsonl"
    with pytest.raises(SystemExit):
        run(pictures, out, server.url, "--in-flight", "1")
    said = capsys.readouterr().err
    assert f"2 of {PICTURES} inputs have no caption" in said
    assert "says 400" in said and "says 404" in said and not out.exists()
    run(pictures, out, server.url)
    assert len(out.read_text().splitlines()) == PICTURES
    assert set(server.asked.values()) == {1} and len(server.asked) == PICTURES


def test_shards_make_up_the_whole(serve, pictures: Path, tmp_path: Path, capsys) -> None:
    server = serve()
    for index in range(3):
        run(pictures, tmp_path / f"{index}.jsonl", server.url, "--shard", f"{index}/3")
    parts = [(tmp_path / f"{index}.jsonl").read_text().splitlines() for index in range(3)]
    assert [len(part) for part in parts] == [10, 10, 10]
    ids = {json.loads(line)["id"] for part in parts for line in part}
    assert len(ids) == PICTURES
    said = capsys.readouterr().out
    assert said.count(f"{server.url}: 10 captions in ") == 3 and "a second; 10 replies do" in said
    with pytest.raises(SystemExit):
        run(pictures, tmp_path / "x.jsonl", server.url, "--shard", "3/3")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(pictures, tmp_path / "x.jsonl", server.url, "--shard", f"{PICTURES}/{PICTURES + 1}")
    assert "no input is left for it" in capsys.readouterr().err


def test_an_engine_is_told_where_answers_stop_and_has_its_own_frames(
    serve, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    server = serve()
    run(pictures, tmp_path / "a.json", server.url)
    assert server.stops == {"null"}
    run(pictures, tmp_path / "b.json", server.url, "--stop", "###")
    assert server.stops == {"null", '["###"]'}
    with pytest.raises(SystemExit):
        run(pictures, tmp_path / "c.json", server.url, "--frames", "8")
    assert "--frames changes nothing here: it is the local model's" in capsys.readouterr().err


@pytest.mark.timeout(120)
def test_killed_three_times_every_input_has_one_row(serve, pictures: Path, tmp_path: Path) -> None:
    server = serve(seconds=0.15)
    out = tmp_path / "captions.jsonl"
    command = [sys.executable, "-m", "llava_lab", "caption", str(pictures), "--out", str(out)]
    command += ["--model", "m", "--engine-url", server.url, "--in-flight", "2"]
    journal = tmp_path / "captions.jsonl.journal"
    for lines in (4, 9, 15):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with journal.open("ab") as file:
        file.write(b'["cut sho')  # as a kill in the middle of a write leaves it
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert Counter(row["id"] for row in rows) == Counter(
        item.id for item in read_inputs(pictures, None)
    )
    # Only what was in flight when a kill came, two requests each time, was asked again.
    assert server.asked.total() <= PICTURES + 3 * 2
    assert not journal.exists()


def test_a_journal_of_another_question_is_refused(tmp_path: Path, pictures: Path) -> None:
    items = read_inputs(pictures, None)
    out = tmp_path / "out.json"

    def broken(items: list[CaptionInput]) -> Iterator:
        yield items[0], "a picture"
        yield items[1], ValueError("damaged")

    with pytest.raises(ValueError, match="1 of 2 inputs have no caption"):
        caption(items[:2], broken, "What?", out, "one")
    with pytest.raises(ValueError, match="begun with another model"):
        caption(items[:2], broken, "What?", out, "two")

    def mended(items: list[CaptionInput]) -> Iterator:
        assert [item.id for item in items] == ["02.png"]
        yield items[0], "another"

    caption(items[:2], mended, "What?", out, "one")
    assert [row["conversations"][1]["value"] for row in json.loads(out.read_text())] == [
        "a picture",
        "another",
    ]


def test_a_caption_of_another_picture_of_the_same_id_is_not_taken(
    serve, pictures: Path, tmp_path: Path
) -> None:
    """It was: a mended file, or another --images, got the captions of the pictures before."""
    server = serve({2: "400"})
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.json"
    others = '{"id": "b", "image": "02.png"}\n{"id": "c", "image": "04.png"}\n'
    rows.write_text('{"id": "a", "image": "00.png"}\n' + others)
    command = ["--images", str(pictures), "--in-flight", "1"]
    with pytest.raises(SystemExit):
        run(rows, out, server.url, *command)
    rows.write_text('{"id": "a", "image": "28.png"}\n' + others)
    run(rows, out, server.url, *command)
    run(rows, tmp_path / "fresh.json", server.url, *command)
    assert out.read_bytes() == (tmp_path / "fresh.json").read_bytes()


def test_another_shard_or_folder_takes_nothing_from_the_output_of_the_first(
    serve, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """It removed what the first had paid for, and wrote over what that one had finished."""
    server, out = serve({4: "400"}), tmp_path / "captions.json"
    journal = tmp_path / "captions.json.journal"
    with pytest.raises(SystemExit):
        run(pictures, out, server.url, "--in-flight", "1", "--shard", "0/2")
    paid = journal.read_bytes()
    for more in (["--shard", "1/2"], ["--shard", "3/4"]):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            run(pictures, out, server.url, *more)
        said = capsys.readouterr().err
        assert "14 results, and none of this command" in said and "its own --out" in said
        assert journal.read_bytes() == paid and not out.exists()
    run(pictures, out, server.url, "--shard", "0/2")
    assert server.asked.total() == 15 and not journal.exists()
    finished = out.read_bytes()
    with pytest.raises(SystemExit):
        run(pictures / "more", out, server.url)
    assert f"--out {out}: exists already" in capsys.readouterr().err
    assert out.read_bytes() == finished and server.asked.total() == 15


def test_rows_of_a_file_keep_their_ids(pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a", "image": "00.png"}\n{"id": 7, "image": "more/01.png"}\n')
    assert [item.id for item in read_inputs(path, pictures)] == ["a", "7"]
    path.write_text('{"id": "a", "image": "00.png"}\n{"id": "a", "image": "more/01.png"}\n')
    with pytest.raises(ValueError, match=r"1 ids are repeated, the first 'a'"):
        read_inputs(path, pictures)
    path.write_text('{"id": "a", "image": "09.png"}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 1: image '09.png' is not in"):
        read_inputs(path, pictures)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is no image"):
        read_inputs(tmp_path / "empty", None)


def test_one_bad_image_does_not_cost_its_batch(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = read_inputs(pictures, None)
    bad = items[3]

    def say(model, views, questions, **_: object) -> list[tuple[str, bool]]:
        if any(question.id == bad.id for question in questions):
            raise ValueError("damaged or truncated image")
        return [(f"saw {question.id}", True) for question in questions]

    monkeypatch.setattr(models, "open_model", lambda *_: (OURS, None))
    monkeypatch.setattr(answer, "whole_or_not", say)
    found = list(LocalEngine("m", "What?", 8, 8)(items))
    assert [item for item, _ in found] == items
    failed = [item for item, said in found if isinstance(said, Exception)]
    assert failed == [bad]
    assert dict(found)[items[4]] == f"saw {items[4].id}"


def test_a_caption_of_our_own_model_that_is_cut_off_is_no_row(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    """It was one, ready to train on; more tokens caption it, and what was whole is kept."""
    asked: list[tuple[int, int]] = []

    def say(model, views, questions, *, max_new_tokens: int, **_) -> list[tuple[str, bool]]:
        asked.append((max_new_tokens, len(questions)))
        return [("A star.", max_new_tokens > 8 or each.id != "02.png") for each in questions]

    monkeypatch.setattr(models, "open_model", lambda *_: (OURS, None))
    monkeypatch.setattr(answer, "whole_or_not", say)
    command = ["caption", str(pictures), "--out", str(tmp_path / "out.json"), "--model", "m"]
    command += ["--images-per-batch", "30", "--max-new-tokens"]
    with pytest.raises(SystemExit):
        main([*command, "8"])
    said = capsys.readouterr().err
    assert "1 of 30 inputs have no caption" in said and not (tmp_path / "out.json").exists()
    assert "02.png: the answer is cut off at 8 tokens; raise --max-new-tokens" in said
    main([*command, "16"])
    assert asked == [(8, 30), (16, 1)]
    assert len(json.loads((tmp_path / "out.json").read_text())) == PICTURES


def test_videos_are_captioned_like_pictures(
    serve, pictures: Path, small_videos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (pictures / "clip.mp4").write_bytes((small_videos / "videos/eval/000000.mp4").read_bytes())
    server = serve()
    run(pictures, tmp_path / "out.json", server.url)
    rows = json.loads((tmp_path / "out.json").read_text())
    (row,) = [row for row in rows if "video" in row]
    assert row["video"] == "clip.mp4" and len(rows) == PICTURES + 1
    assert row["conversations"][0]["value"] == "<image>\nDescribe this video in detail."
    assert rows[0]["conversations"][0]["value"] == "<image>\nDescribe this image in detail."
    assert sum(url.startswith("data:video/mp4;base64,") for url in server.asked) == 1
    # A folder of frames goes as pictures.
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "video": "more"}\n')
    items = read_inputs(tmp_path / "rows.jsonl", pictures)
    assert [item.kind for item in items] == ["video"]
    shown = []
    monkeypatch.setattr(models, "open_model", lambda *_: (OURS, "views"))
    monkeypatch.setattr(models, "show_videos", lambda *each: shown.append(each) or "frames")
    monkeypatch.setattr(answer, "whole_or_not", lambda model, views, asked, **_: [(views, True)])
    assert dict(LocalEngine("m", None, 8, 8, frames=5)(items)) == {items[0]: "frames"}
    assert shown == [(OURS, "views", 5, None)]
    found = sorted((pictures / "more").glob("*.png"))
    run(
        tmp_path / "rows.jsonl",
        tmp_path / "folder.json",
        server.url,
        "--images",
        str(pictures),
    )
    assert len(found) > 1 and server.requests == PICTURES + 2
