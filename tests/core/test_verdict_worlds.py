"""Verdict worlds: made and read by `report --run` alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava_lab.core.verdict_worlds import check_file, check_seed, opened
from llava_lab.data.image_folder import ImageFolder
from llava_lab.data.rows import read_rows
from llava_lab.serve.caption_inputs import read_inputs
from llava_lab.tiny_world.generate import TinyWorld
from llava_lab.tiny_world.videos import TinyVideos

REFUSED = "seed is 1000; worlds with seeds from 1000 on are kept for verdicts.*`report` alone"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest world of a verdict."""
    root = tmp_path_factory.mktemp("verdict") / "tiny"
    with opened():
        TinyWorld(root, seed=1000, train_images=1, eval_images=1, text_rows=1).generate()
    return root


@pytest.mark.parametrize("kind", [TinyWorld, TinyVideos])
def test_such_a_world_is_not_made(kind: type, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__}: {REFUSED}"):
        kind(tmp_path / "world", seed=1000)
    kind(tmp_path / "world", seed=999)


def test_its_files_are_not_read_wherever_it_lies(world: Path) -> None:
    readers = [
        lambda: read_rows(world / "questions.jsonl"),
        lambda: ImageFolder(world / "images"),
        lambda: read_inputs(world / "images", None),
    ]
    for read in readers:
        with pytest.raises(ValueError, match=REFUSED):
            read()
        with opened():
            assert read()


def test_a_process_that_is_started_meanwhile_may_read_them(world: Path) -> None:
    code = f"""
from pathlib import Path
from llava_lab.data.rows import read_rows
assert read_rows(Path({str(world / "questions.jsonl")!r}))
"""
    with opened():
        environment = dict(os.environ)
    done = [
        subprocess.run([sys.executable, "-c", code], env=each, capture_output=True, text=True)
        for each in (environment, dict(os.environ))
    ]
    assert [each.returncode for each in done] == [0, 1]
    assert "kept for verdicts" in done[1].stderr


def test_one_that_has_ended_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for value in (str(ended.pid), "0", "1.5", "yes"):
        monkeypatch.setenv("LLAVA_LAB_VERDICT_WORLDS_OPENED_BY", value)
        with pytest.raises(ValueError, match="kept for verdicts"):
            check_seed(1000, "it")


@pytest.mark.parametrize("content", ["[1]", "no JSON", '{"settings": {"seed": 2000}}', "{}"])
def test_a_manifest_of_other_data_is_no_matter(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    check_file(tmp_path / "rows.json")
