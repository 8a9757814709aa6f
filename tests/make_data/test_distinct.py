"""Rows with pictures of benchmarks are left out, by pixels and by how pictures look."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_lab.__main__ import main

pytest.importorskip("imagehash")

from llava_lab.make_data.distinct import Pictures


def picture(seed: int, side: int = 64) -> Image.Image:
    """A picture of soft blobs, so that it looks the same when it is scaled or compressed."""
    levels = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Pictures to train on, and a benchmark's: 1 is the same file, 2 scaled, 3 compressed."""
    train, test = tmp_path / "train", tmp_path / "test"
    train.mkdir()
    (test / "more").mkdir(parents=True)
    for number in range(6):
        picture(number).save(train / f"{number}.png")
    picture(1).save(test / "same.bmp")  # other bytes, the same pixels
    picture(2).resize((200, 150)).save(test / "more" / "scaled.png")
    picture(3).save(test / "compressed.jpg", quality=60)
    picture(9).save(test / "other.png")
    return train, test


def write(tmp_path: Path) -> Path:
    rows = [
        {
            "id": number,
            **({"image": f"{number}.png"} if number < 6 else {}),
            "conversations": [
                {"from": "human", "value": ("<image>\n" if number < 6 else "") + "What?"},
                {"from": "gpt", "value": "It."},
            ],
        }
        for number in range(7)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path / "rows.json"


@pytest.mark.parametrize(("bits", "kept"), [(4, [0, 4, 5, 6]), (-1, [0, 2, 3, 4, 5, 6])])
def test_rows_with_the_same_pictures_are_left_out(
    folders: tuple[Path, Path], tmp_path: Path, bits: int, kept: list[int], capsys
) -> None:
    train, test = folders
    out = tmp_path / "out.json"
    command = ["make", "distinct", str(write(tmp_path)), "--images", str(train)]
    main([*command, "--against", str(test), f"--bits={bits}", "--out", str(out)])
    assert [row["id"] for row in json.loads(out.read_text())] == kept
    left = json.loads((tmp_path / "out.json.made.json").read_text())["left_out"]
    assert left[0]["other"] == str(test / "same.bmp") and left[0]["bits"] is None
    assert "1 pictures with the same pixels" in capsys.readouterr().out


def test_pictures_are_known_by_their_content_and_other_files_are_named(
    folders: tuple[Path, Path], tmp_path: Path, capsys
) -> None:
    """SEED-Bench's pictures have no endings; labels and archives lie beside pictures."""
    train, test = folders
    picture(4).save(test / "1454426_2591111986", "PNG")
    picture(5).save(test / "more" / "5.image", "BMP")
    others = [test / name for name in ("README", "labels.json", "more/more.zip", "empty")]
    for other in others:
        other.write_bytes(b"" if other.name == "empty" else b"PK [] no picture")
    out = tmp_path / "out.json"
    command = ["make", "distinct", str(write(tmp_path)), "--images", str(train)]
    main([*command, "--against", str(test), "--out", str(out)])
    assert [row["id"] for row in json.loads(out.read_text())] == [0, 6]
    record = json.loads((tmp_path / "out.json.made.json").read_text())
    assert record["pictures_compared"] == 6
    assert record["not_compared"] == sorted(map(str, others))
    said = capsys.readouterr().out
    assert "compared with 6 pictures\n" in said
    assert "4 files are no pictures, and not compared: 2 without an ending, 1 .json, 1 .zip" in said


def test_pictures_under_another_key_are_compared_or_refused(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train, test = folders
    rows = [{"id": 0, "images": ["1.png"], "prompt": "?"}, {"id": 1, "image": "4.png"}]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    command = ["make", "distinct", str(path), "--images", str(train), "--against", str(test)]
    main([*command, "--out", str(tmp_path / "out.json")])
    assert [row["id"] for row in json.loads((tmp_path / "out.json").read_text())] == [1]
    for row, message in (
        ({"image_path": "1.png"}, "key 'image_path' is not read"),
        ("a", "object"),
    ):
        path.write_text(json.dumps([row]))
        with pytest.raises(SystemExit):
            main([*command, "--out", str(tmp_path / "more.json")])
        assert message in capsys.readouterr().err


def test_hashes_that_differ_in_few_bits_are_found_and_no_others(folders) -> None:
    """Against every pair one by one; hashes are made, not of pictures."""
    pictures = Pictures([folders[1]], bits=4)
    draw = np.random.default_rng(0)
    base = [int(each) for each in draw.integers(0, 2**63, 40)]
    pictures.hashes, pictures.near = {}, {}
    for value in base:
        pictures.hashes[value] = str(value)
        for key in pictures._bands(value):
            pictures.near.setdefault(key, []).append(value)
    for value in base[:20]:
        for number in range(8):
            flipped = value
            for bit in draw.choice(64, number, replace=False):
                flipped ^= 1 << int(bit)
            nearest = min(bin(flipped ^ other).count("1") for other in base)
            found = pictures.match("", f"{flipped:016x}")
            assert (found is not None) == (nearest <= 4)
            assert found is None or found[1] == nearest


def test_what_cannot_be_compared_is_said(folders, tmp_path: Path, monkeypatch) -> None:
    train, _ = folders
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="there is no picture among its 0 files"):
        Pictures([tmp_path / "none"])
    (tmp_path / "packed.zip").write_bytes(b"PK")
    with pytest.raises(FileNotFoundError, match=r"packed\.zip.* it is a file: unpack it"):
        Pictures([tmp_path / "packed.zip"])
    with pytest.raises(ValueError, match="a hash has 64"):
        Pictures([train], bits=64)
    (tmp_path / "none" / "bad.png").write_bytes(b"no picture")
    (tmp_path / "none" / "cut").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    with pytest.raises(ValueError, match=r"2 pictures cannot be read:\n.*bad.*\n.*cut"):
        Pictures([tmp_path / "none"])
    monkeypatch.setitem(__import__("sys").modules, "imagehash", None)
    with pytest.raises(ValueError, match=r"need imagehash: pip install 'llava-lab\[make\]'"):
        Pictures([train])
