"""Captions stand for what a judge cannot see: every question gets the one of its picture."""

import json
from pathlib import Path

import pytest

from llava_lab.data.questions import Question
from llava_lab.serve.evidence import with_captions


def ask(images: Path, *names: str, caption: str | None = None) -> Question:
    paths = tuple(images.absolute() / name for name in names)
    return Question("q", paths, "What?", None, (), f"q.jsonl, {names}", caption)


def write(path: Path, *pairs: tuple[str, str]) -> Path:
    """Rows as `caption` writes them."""
    said = [{"from": "human", "value": "<image>\nDescribe this video in detail."}]
    rows = [
        {"id": n, "video": n, "conversations": [*said, {"from": "gpt", "value": f" {text} "}]}
        for n, text in pairs
    ]
    path.write_text(json.dumps(rows))
    return path


def test_every_question_has_the_caption_of_its_video(tmp_path: Path) -> None:
    files = [
        write(tmp_path / f"{at}.json", pair)
        for at, pair in enumerate((("a/1.mp4", "A star."), ("a/2.mp4", "A ring.")))
    ]
    asked = [ask(tmp_path, "a/2.mp4"), ask(tmp_path, "a/1.mp4"), ask(tmp_path, "a/2.mp4")]
    found = with_captions(asked, files, tmp_path)
    assert [each.caption for each in found] == ["A ring.", "A star.", "A ring."]


def test_what_has_none_or_two_is_listed(tmp_path: Path) -> None:
    file = write(tmp_path / "captions.json", ("1.mp4", "A star."))
    asked = [ask(tmp_path, "1.mp4"), ask(tmp_path, "2.mp4"), ask(tmp_path, "1.mp4", "1.mp4")]
    with pytest.raises(ValueError, match=r"2 of 3 questions cannot get their caption there"):
        with_captions(asked, [file], tmp_path)
    with pytest.raises(ValueError, match="has a `caption` of its own"):
        with_captions([ask(tmp_path, "1.mp4", caption="A ring.")], [file], tmp_path)
    write(file, ("1.mp4", "A star."), ("1.mp4", "A ring."))
    with pytest.raises(ValueError, match=r"1\.mp4 has several captions"):
        with_captions([ask(tmp_path, "1.mp4")], [file], tmp_path)
    other = write(tmp_path / "other.json", ("1.mp4", "A ring."))
    write(file, ("1.mp4", "A star."))
    with pytest.raises(ValueError, match=r"other\.json: 1\.mp4 has several captions"):
        with_captions([ask(tmp_path, "1.mp4")], [file, other], tmp_path)
    file.write_text('[{"id": 1, "conversations": []}]')
    with pytest.raises(ValueError, match="1 rows are no captions"):
        with_captions([ask(tmp_path, "1.mp4")], [file], tmp_path)
