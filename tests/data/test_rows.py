"""Rows of every format: what JSON they are, which keys they may have, and TRL's preferences."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_lab.data.fields import read_media
from llava_lab.data.modules.phrases import PhraseDataModule
from llava_lab.data.modules.preference import read_preferences
from llava_lab.data.questions import read_questions
from llava_lab.data.rows import BadRows, read_rows
from llava_lab.data.sample import read_samples
from llava_lab.data.source import Source
from llava_lab.data.views.pad import Pad
from llava_lab.serve.caption_inputs import read_inputs

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
SAMPLE = {"id": "x", "image": "a.png", "conversations": TURNS}
QUESTION = {"question_id": 1, "image": "a.png", "text": "What?"}
PAIR = {"id": "x", "image": "a.png", "prompt": "<image>\nWhat?", "chosen": "A.", "rejected": "B."}
PHRASES = {"id": "x", "image": "a.png", "phrases": ["a dog"]}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def read(kind: str, folder: Path, *rows: Any) -> list[Any]:
    """What the reader of a format makes of rows."""
    path, images = folder / "rows.jsonl", folder / "images"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    match kind:
        case "sample":
            return read_samples(Source(path, images), 0, videos=True)
        case "question":
            return read_questions(path, images)
        case "preference":
            return read_preferences(Source(path, images), 0)
        case "caption":
            return read_inputs(path, images)
    data = PhraseDataModule(path, images, Pad(), 1)
    data.read()
    return data.rows


ROWS = {
    "sample": SAMPLE,
    "question": QUESTION,
    "preference": PAIR,
    "caption": {"id": "x", "image": "a.png"},
    "phrases": PHRASES,
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("img", "b.png"),
        ("image_path", "b.png"),
        ("videos", ["c.mp4"]),
        ("video_path", "c.mp4"),
        ("media", {"type": "image"}),
        ("imgae", "b.png"),
        ("Image", "b.png"),
        ("left_image", "b.png"),
        ("audio", "a.wav"),
        ("path", "b.png"),
        ("files", ["a.png", "more/c.JPG"]),
    ],
)
def test_a_key_that_is_not_read_and_shows_something_is_refused(
    kind: str, key: str, value: Any, images: Path
) -> None:
    with pytest.raises(ValueError, match=rf"rows.jsonl, line 2.*{key!r} is not read"):
        read(kind, images.parent, ROWS[kind], {**ROWS[kind], "id": "y", key: value})


@pytest.mark.parametrize(
    ("kind", "key", "value", "meant"),
    [
        ("sample", "images", ["a.png"], "image"),
        ("question", "images", ["a.png"], "image"),
        ("caption", "images", ["a.png"], "image"),
        ("sample", "messages", [{"role": "user", "content": "?"}], "conversations"),
        ("preference", "messages", [{"role": "user", "content": "?"}], "prompt"),
        ("question", "messages", TURNS, "text"),
        ("sample", "conversation", TURNS[:1], "conversations"),
        ("preference", "rejectd", "C.", "rejected"),
        ("question", "captoin", "A dog.", "caption"),
    ],
)
def test_the_key_that_is_meant_is_named(
    kind: str, key: str, value: Any, meant: str, images: Path
) -> None:
    with pytest.raises(ValueError, match=f"key {key!r} is not read; did you mean {meant!r}"):
        read(kind, images.parent, {**ROWS[kind], key: value})


def test_a_request_under_another_name_is_refused_where_it_stands_in_for_one(images: Path) -> None:
    for kind, key, meant in (
        ("question", "question", "text"),
        ("preference", "question", "prompt"),
        ("sample", "prompt", "conversations"),
    ):
        rest = {name: value for name, value in ROWS[kind].items() if name != meant}
        with pytest.raises(ValueError, match=f"key '{key}' is not read; did you mean '{meant}'"):
            read(kind, images.parent, {**rest, key: "What?"})
        assert read(kind, images.parent, {**ROWS[kind], key: "What?"})


def test_the_extra_keys_of_published_files_are_left_alone(images: Path) -> None:
    more = {
        **{"model": "gpt-4", "source": "coco", "data_source": "ai2d", "width": 640, "height": 480},
        **{"image_id": "000123", "video_id": "v_1", "image_size": [640, 480], "frames": 12},
        **{
            "metadata": {"dataset": "x"},
            "chosen_score": 5,
            "coco_url": "http://x",
            "answer_id": "q",
        },
        **{"url": "http://x", "image_url": "http://x/a.png", "task_name": "vqa", "lang": "en"},
        **{"images": None, "videos": [], "video": None, "image_path": "a.png", "label": "yes"},
        **{"image_source": "x.jpg", "file": "coco/train/a.png", "flickr_url": "http://x/b.jpg"},
    }
    for kind, row in ROWS.items():
        assert read(kind, images.parent, {**row, **more}), kind


def test_ids_are_text_that_can_be_written_in_every_format(images: Path) -> None:
    for kind, row in ROWS.items():
        key = "question_id" if kind == "question" else "id"
        for name in ([1], {"a": 1}, True, "\ud83d", 1.5):
            if kind == "phrases":
                continue  # their ids are not read
            with pytest.raises(ValueError, match=r"line 1.*" + key):
                read(kind, images.parent, {**row, key: name})


BROKEN = {
    "deep": ("[" * 200_000, "nested too deeply"),
    "deep object": ('{"a":' * 200_000, "nested too deeply"),
    "nan": ('{"id": NaN}', "NaN is no JSON number"),
    "infinity": ('{"id": -Infinity}', "-Infinity is no JSON number"),
    "overflow": ('{"id": 1e999}', "1e999 is too large"),
    "digits": ('{"id": ' + "9" * 5000 + "}", "a number of 5000 digits"),
    "twice": ('{"id": 1, "id": 2}', "key 'id' is repeated"),
    "trailing comma": ('{"id": 1,}', "not JSON"),
    "nul": ('{"id": "a\0"}', "not JSON"),
    "single quotes": ("{'id': 1}", "not JSON"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_json_is_refused_with_its_row(case: str, tmp_path: Path) -> None:
    text, reason = BROKEN[case]
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 0}\n' + text + "\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2.*") as caught:
        read_rows(path)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    path = tmp_path / "rows.json"
    path.write_text('[{"id": 0},\n' + text + "]")
    with pytest.raises(ValueError, match=r"rows\.json, .*row 2") as caught:
        read_rows(path)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_files_of_other_encodings_and_kinds(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_bytes('{"id": "ä"}\r\n\r\n{"id": 2}\r\n'.encode(encoding))
        assert [row.value["id"] for row in read_rows(path)] == ["ä", 2]
    path.write_bytes('{"id": 1}'.encode("utf-16"))
    with pytest.raises(ValueError, match=r"rows\.jsonl: not UTF-8 text"):
        read_rows(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"rows\.jsonl: holds no rows"):
        read_rows(path)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(OSError, match=r"folder\.json: a folder, not a file of rows"):
        read_rows(tmp_path / "folder.json")


def test_trls_preferences_have_their_pictures(images: Path) -> None:
    message = [{"role": "user", "content": "<image>What?"}]
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    asked = {"role": "user", "content": parts}
    rows = [
        {"images": ["a.png"], "prompt": "<image>What?", "chosen": "A.", "rejected": "B."},
        {"images": ["a.png"], "prompt": "What?", "chosen": "A.", "rejected": "B."},
        {
            "images": ["a.png"],
            "prompt": message,
            "chosen": [{"role": "assistant", "content": "A."}],
            "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "B."}]}],
        },
        {
            "images": ["a.png"],
            "chosen": [asked, {"role": "assistant", "content": "A."}],
            "rejected": [
                {"role": "user", "content": parts},
                {"role": "assistant", "content": "B."},
            ],
        },
    ]
    for found in read("preference", images.parent, *rows):
        assert found.images == (images / "a.png",)
        assert [turn.text for turn in found.turns] == ["<image>\nWhat?", "A."]
        assert found.rejected == "B."
    two = {**rows[0], "images": ["a.png", "b.png"], "prompt": "Is <image> or <image> red?"}
    text = {**rows[0], "images": [], "prompt": "What?"}
    first, second = read("preference", images.parent, two, text)
    assert len(first.images) == 2 and first.turns[0].text == "Is <image> or <image> red?"
    assert not second.images and second.turns[0].text == "What?"


ASSISTANT = [{"role": "assistant", "content": "A."}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "no 'image', but a literal <image>"),
        ({"prompt": "Is <video> red?"}, "no 'video', but a literal <video> in the text"),
        ({"prompt": "<image><image>\nWhat?"}, r"2 <image> placeholders for 1 image\(s\)"),
        ({"image": ["a.png", "b.png"]}, r"1 <image> placeholders for 2 image\(s\)"),
        ({"images": ["b.png"]}, "has both 'image' and 'images'"),
        ({"prompt": [{"role": "system", "content": "S"}]}, "must be from 'user', not 'system'"),
        ({"prompt": [{"role": "user", "content": "?"}] * 3}, "text or one message from 'user'"),
        ({"chosen": [{"role": "user", "content": "?"}]}, "'chosen' must be from 'assistant'"),
        ({"prompt": None, "chosen": ASSISTANT, "rejected": ASSISTANT}, "'prompt' must be text or"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]},
            "list its file under 'images'",
        ),
        ({"prompt": [{"role": "user", "content": [{"type": "audio"}]}]}, "parts are of type"),
        ({"system": "Be brief."}, "'system' is not read: a chat template brings its own"),
    ],
)
def test_a_preference_that_would_be_read_otherwise_is_refused(
    changes: dict, message: str, images: Path
) -> None:
    with pytest.raises(BadRows, match=f"line 2.*{message}"):
        read("preference", images.parent, PAIR, {**PAIR, **changes})


def test_a_list_of_images_is_read_where_a_format_has_one() -> None:
    assert read_media({"image": ["a.png", "b.png"]}) == (["a.png", "b.png"], None)
