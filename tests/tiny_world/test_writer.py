"""At the tiny scale the three kinds are made of scenes, by a server that writes what is true."""

import json
import re
import runpy
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llava_lab.__main__ import main
from llava_lab.data.sample import Sample, read_samples
from llava_lab.data.source import Source
from llava_lab.make_data.coco import read_coco
from llava_lab.tiny_world import annotations
from llava_lab.tiny_world.annotations import Described
from llava_lab.tiny_world.scene import COLORS, SHAPES, Scene
from llava_lab.tiny_world.writer import Writer

PICTURES = 12
NAMED = re.compile(rf"\b({'|'.join(COLORS)}) ({'|'.join(SHAPES)})\b")


@pytest.fixture(scope="module")
def described(small_world: Path) -> Described:
    return Described(small_world)


@pytest.fixture(scope="module")
def writer(described: Described) -> Iterator[Writer]:
    server = Writer(described)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def coco(small_world: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    annotations.main(small_world, folder)
    return folder


def made(kind: str, coco: Path, writer: Writer, out: Path) -> None:
    files = [str(coco / "captions.json"), "--boxes", str(coco / "instances.json")]
    engine = ["--engine-url", writer.url, "--model", "truth"]
    engine += ["--first", str(PICTURES)]
    main(["make", "instruct", *files, "--kind", kind, *engine, "--out", str(out)])


def test_boxes_are_where_things_are_drawn(coco: Path, described: Described) -> None:
    pictures = read_coco(coco / "captions.json", coco / "instances.json")
    assert len(pictures) == len(described.scenes) == 48
    for picture, scene in zip(pictures, described.scenes, strict=True):
        assert len(picture.captions) == 5
        names = sorted(name for name, _ in picture.boxes)
        assert names == sorted([item.shape for item in scene.items] + ["sign"] * bool(scene.sign))
        for (name, box), item in zip(picture.boxes, scene.items, strict=False):
            middle = (box[0] + box[2]) / 2 * scene.width, (box[1] + box[3]) / 2 * scene.height
            assert name == item.shape
            assert abs(middle[0] - item.center[0]) <= 1 and abs(middle[1] - item.center[1]) <= 1


@pytest.mark.parametrize("kind", ["conversation", "detailed_description", "complex_reasoning"])
def test_each_kind_is_made_and_says_what_is_true(
    kind: str, coco: Path, writer: Writer, described: Described, small_world: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"{kind}.json"
    made(kind, coco, writer, out)
    record = json.loads(out.with_name(f"{out.name}.made.json").read_text())
    assert record["failures"] == {} and record["rows"] == PICTURES
    samples = read_samples(Source(out, small_world / "images"), 0)
    assert len(samples) == PICTURES
    for sample, scene in zip(samples, described.scenes, strict=False):
        check = {"conversation": _answers, "detailed_description": _describes}.get(kind, _reasons)
        check(sample, scene)


def _answers(sample: Sample, scene: Scene) -> None:
    assert 2 <= len(sample.turns) // 2 <= 4
    for question, answer in zip(sample.turns[::2], sample.turns[1::2], strict=True):
        present = {item.name for item in scene.items}
        if answer.text.startswith("No, there is no"):
            assert NAMED.search(answer.text) is None or NAMED.search(answer.text)[0] not in present
        else:
            assert {found[0] for found in NAMED.finditer(answer.text)} <= present
        if "sign say" in question.text:
            assert scene.sign is not None and answer.text == f"The sign says {scene.sign.glyph}."


def _describes(sample: Sample, scene: Scene) -> None:
    said = sample.turns[1].text
    assert {found[0] for found in NAMED.finditer(said)} == {item.name for item in scene.items}
    assert scene.sign is None or f"reads {scene.sign.glyph}." in said


def _reasons(sample: Sample, scene: Scene) -> None:
    assert len(sample.turns) == 2
    question, answer = sample.turns[0].text, sample.turns[1].text
    assert answer.count(".") >= 2  # steps
    counted = {
        f"{shape}es" if shape.endswith("s") else f"{shape}s": sum(
            item.shape == shape for item in scene.items
        )
        for shape in SHAPES
    }
    if found := re.search(r"Are there more (\w+) than (\w+)\?", question):
        more = counted[found[1]] > counted[found[2]]
        assert answer.endswith("So the answer is yes." if more else "So the answer is no.")


def test_a_picture_of_another_world_is_refused(
    coco: Path, writer: Writer, tmp_path: Path, capsys
) -> None:
    found = json.loads((coco / "captions.json").read_text())
    found["annotations"][0]["caption"] = "A cat."
    (tmp_path / "captions.json").write_text(json.dumps(found))
    (tmp_path / "instances.json").write_text((coco / "instances.json").read_text())
    with pytest.raises(SystemExit):
        made("conversation", tmp_path, writer, tmp_path / "out.json")
    assert "no scene of this world" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["annotations", "writer"])
def test_a_folder_that_is_no_world_is_one_message(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    name = f"llava_lab.tiny_world.{module}"
    arguments = [str(tmp_path), str(tmp_path / "out")][: 2 if module == "annotations" else 1]
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(name, run_name="__main__")
    said = capsys.readouterr().err
    assert (
        stop.value.code == 2 and f"error: {tmp_path} is no world: it has no manifest.json" in said
    )
