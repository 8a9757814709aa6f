"""Folders that are links are looked through: what lies behind one was left out in silence."""

from pathlib import Path

import pytest
from PIL import Image

from llava_lab.core.below import files_below
from llava_lab.core.fingerprint import content_or_text
from llava_lab.data.shards import shards_of
from llava_lab.make_data.distinct import Pictures
from llava_lab.report.runs import find
from llava_lab.serve.caption_inputs import read_inputs


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with files of its own, a link to a folder elsewhere, and links that lead up."""
    top, disk = tmp_path / "top", tmp_path / "disk" / "deep"
    disk.mkdir(parents=True)
    (top / "own").mkdir(parents=True)
    for folder, color in ((top / "own", "red"), (disk, "blue")):
        Image.new("RGB", (4, 4), color).save(folder / "a.png")
        (folder / "rows.parquet").write_bytes(b"")
        (folder / "results.json").write_text("{}")
    (top / "link").symlink_to(tmp_path / "disk")
    (top / "own" / "up").symlink_to(top)
    (disk / "self").symlink_to(disk)
    return top


def test_files_behind_links_are_found_once_and_loops_end(linked: Path) -> None:
    names = ("a.png", "results.json", "rows.parquet")
    wanted = [f"{folder}/{name}" for folder in ("link/deep", "own") for name in names]
    assert [str(path.relative_to(linked)) for path in files_below(linked)] == wanted
    (linked / "gone").symlink_to(linked / "nowhere")
    assert len(files_below(linked)) == len(wanted)
    with pytest.raises(FileNotFoundError):
        files_below(linked / "nowhere")


def test_data_with_a_link_whose_file_is_gone_are_refused(linked: Path) -> None:
    """As of a hub's snapshot that was fetched in part: the data set was smaller, in silence."""
    pytest.importorskip("imagehash")
    (linked / "gone.png").symlink_to(linked / "nowhere")
    readers = [shards_of, lambda each: read_inputs(each, None), lambda each: Pictures([each])]
    for read in readers:
        with pytest.raises(
            FileNotFoundError, match=r"gone\.png: a link to .*nowhere, which is not"
        ):
            read(linked)


def test_what_gets_no_caption_is_said(linked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(read_inputs(linked, None)) == 2
    said = capsys.readouterr().out
    assert "4 files are not called pictures or videos, and get no caption: 2" in said


def test_every_reader_of_folders_sees_what_is_behind_links(linked: Path) -> None:
    assert [each.name for each in read_inputs(linked, None)] == ["link/deep/a.png", "own/a.png"]
    assert len(shards_of(linked)) == 2 and len(find([linked])) == 2
    before = content_or_text(str(linked))
    (linked / "link" / "deep" / "rows.parquet").write_bytes(b"changed")
    assert content_or_text(str(linked)) != before


def test_a_benchmark_behind_a_link_is_compared_with(linked: Path) -> None:
    pytest.importorskip("imagehash")
    assert len(Pictures([linked], bits=-1).by_pixels) == 2
    with pytest.raises(FileNotFoundError, match="no such folder of pictures"):
        Pictures([linked / "nowhere"])
