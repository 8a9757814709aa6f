"""What reading whole pictures found is kept from start to start, until a file changes."""

import os
import threading
from pathlib import Path

import pytest
from PIL import Image

from llava_lab.data.image_folder import VideoPath
from llava_lab.data.known_files import KnownFiles
from llava_lab.data.media import clip
from llava_lab.data.verified import verified
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.video import Frames


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes were read."""
    real, names = clip.file_sha256, []
    monkeypatch.setattr(clip, "_digests", KnownFiles("sha256"))
    monkeypatch.setattr(clip, "file_sha256", lambda path: names.append(path.name) or real(path))
    return names


def files(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return [folder / name for name in names]


def test_a_digest_is_taken_once_and_again_where_the_bytes_have_changed(
    cache: Path, read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = files(tmp_path, "a/1.png", "a/2.png", "b/1.png")
    before = clip.image_digests([*paths, *paths])
    assert sorted(read) == ["1.png", "1.png", "2.png"] and len(set(before.values())) == 3
    for _ in range(2):  # this process, and another one
        assert clip.image_digests(paths) == before and len(read) == 3
        monkeypatch.setattr(clip, "_digests", KnownFiles("sha256"))
    times = paths[1].stat()
    paths[1].write_bytes(b"A/2.png")
    os.utime(paths[1], ns=(times.st_atime_ns, times.st_mtime_ns))
    after = clip.image_digests(paths)
    assert read[3:] == ["2.png"] and after[paths[1]] != before[paths[1]], "of the same size, time"
    assert clip.image_digest(paths[0]) == before[paths[0]] and len(read) == 4


def test_a_folder_of_frames_changes_with_any_of_them(
    cache: Path, read: list[str], tmp_path: Path
) -> None:
    frames = files(tmp_path, "clip/1.png", "clip/2.png")
    video = VideoPath(tmp_path / "clip")
    before = clip.image_digest(video)
    assert clip.image_digest(video) == before and len(read) == 2
    frames[1].write_bytes(b"another")
    assert clip.image_digest(video) != before and len(read) == 4


def test_files_that_cannot_be_read_are_named_together(
    cache: Path, read: list[str], tmp_path: Path
) -> None:
    (there,) = files(tmp_path, "a.png")
    with pytest.raises(ValueError, match=r"2 pictures or videos cannot be read:(\n.*gone.*){2}"):
        clip.image_digests([there, tmp_path / "gone1.png", tmp_path / "gone2.png"])


def test_of_two_processes_one_reads(cache: Path, read: list[str], tmp_path: Path) -> None:
    paths = files(tmp_path, *(f"a/{number}.png" for number in range(40)))
    looked: list[Path] = []

    def ask() -> None:
        KnownFiles("rule").find(paths, lambda path: looked.append(path) or 1, "files")

    together = [threading.Thread(target=ask) for _ in range(3)]
    for each in together:
        each.start()
    for each in together:
        each.join()
    assert sorted(looked) == sorted(paths)


def test_without_a_place_for_the_cache_all_is_read_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LLAVA_LAB_CACHE", str(tmp_path / "file"))
    paths = files(tmp_path, "a.png", "b.png")
    with pytest.warns(UserWarning, match="nothing is kept there .* set LLAVA_LAB_CACHE"):
        assert len(clip.image_digests(paths)) == 2


def test_photographs_that_are_turned_and_not_turned_have_sizes_of_their_own(
    cache: Path, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    for upright, size in ((False, (40, 30)), (True, (30, 40)), (False, (40, 30))):
        assert verified([tmp_path / "a.jpg"], Pad(upright), "rows")[0] == {tmp_path / "a.jpg": size}


class Left(Pad):
    """Views of the left half of pictures."""

    def load(self, path: Path) -> Image.Image:
        return super().load(path).crop((0, 0, 2, 9))


def test_pictures_of_frames_are_known_by_how_its_views_of_pictures_load_them(
    cache: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (4, 9)).save(tmp_path / "a.png")
    for image, size in ((Pad(), (4, 9)), (Left(), (2, 9)), (Pad(), (4, 9))):
        found, _ = verified([tmp_path / "a.png"], Frames(image=image), "rows")
        assert found == {tmp_path / "a.png": size}
