import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from llava_lab.data.media.picture import load_image, to_rgb

LEVELS = np.add.outer(np.arange(64), np.arange(64)) * 2  # 0 to 252


def save(path: Path, values: np.ndarray, **options: object) -> Path:
    Image.fromarray(values).save(path, **options)
    return path


def gray(path: Path) -> np.ndarray:
    pixels = np.asarray(load_image(path)).astype(int)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a.png", (LEVELS * 257).astype(np.uint16)),
        ("a.tiff", (LEVELS * 257).astype(np.uint16)),
        ("big.tiff", (LEVELS * 257).astype(">u2")),
        ("a.pgm", (LEVELS * 257).astype(np.uint16)),
        ("a.jp2", (LEVELS * 257).astype(np.uint16)),
        ("int.tiff", (LEVELS * 257).astype(np.int32)),
        ("levels.tiff", LEVELS.astype(np.int32)),
        ("float.tiff", (LEVELS / 255).astype(np.float32)),
        ("float.pfm", (LEVELS / 255).astype(np.float32)),
    ],
)
def test_levels_of_more_than_8_bits_are_scaled(
    name: str, values: np.ndarray, tmp_path: Path
) -> None:
    assert np.array_equal(gray(save(tmp_path / name, values)), LEVELS)


def tiff(path: Path, bits: int, photometric: int, data: bytes) -> Path:
    """A gray TIFF of 64x64 without compression."""
    entries = [
        (256, 3, 64),
        (257, 3, 64),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8 + 2 + 9 * 12 + 4),
        (277, 3, 1),
        (278, 3, 64),
        (279, 4, len(data)),
    ]
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + data)
    return path


def test_a_tiff_of_12_bits_and_one_whose_white_is_zero_are_read_as_they_say(tmp_path: Path) -> None:
    whites = tiff(tmp_path / "w.tiff", 16, 0, (65535 - LEVELS * 257).astype("<u2").tobytes())
    assert np.array_equal(gray(whites), LEVELS)
    fine = (LEVELS * 16).ravel()  # two levels of 12 bits in three bytes
    high, low = fine[::2], fine[1::2]
    packed = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], -1).astype(np.uint8)
    assert np.array_equal(gray(tiff(tmp_path / "t.tiff", 12, 1, packed.tobytes())), LEVELS)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("twelve.png", (LEVELS * 16).astype(np.uint16), "mode I;16, levels from 0 to 4032"),
        ("eight.png", LEVELS.astype(np.uint16), "mode I;16, levels from 0 to 252"),
        ("below.tiff", (LEVELS * 257 - 1).astype(np.int32), "mode I, levels from -1 to 64763"),
        ("above.tiff", (LEVELS * 300).astype(np.int32), "mode I, levels from 0 to 75600"),
        ("metres.tiff", (LEVELS / 10).astype(np.float32), "mode F, levels from 0.0 to 25.2"),
        ("faint.tiff", (LEVELS / 9999).astype(np.float32), "mode F, levels from 0.0 to 0.0252"),
        (
            "nan.tiff",
            np.where(LEVELS, LEVELS / 255, np.nan).astype(np.float32),
            "mode F, levels from nan to nan",
        ),
    ],
)
def test_levels_of_an_unknown_range_are_refused(
    name: str, values: np.ndarray, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"{name}: {words}.*scale it to 8 bits"):
        load_image(save(tmp_path / name, values))


def test_black_pictures_of_any_depth_are_black(tmp_path: Path) -> None:
    for kind in (np.uint16, np.int32, np.float32):
        assert not gray(save(tmp_path / "a.tiff", np.zeros((4, 4), kind))).any()


def test_a_line_beyond_what_can_be_scaled_is_refused(tmp_path: Path) -> None:
    Image.new("1", (1, 4_000_001)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: 1x4000001 pixels, a side has at most 4000000"):
        load_image(tmp_path / "a.png")


def test_lab_is_refused_and_animations_and_pages_give_their_first(tmp_path: Path) -> None:
    Image.new("LAB", (4, 4)).save(tmp_path / "lab.tiff")
    with pytest.raises(ValueError, match=r"lab\.tiff: its mode LAB is not read"):
        load_image(tmp_path / "lab.tiff")
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    for name in ("a.gif", "a.png", "a.webp", "a.tiff"):
        options = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert load_image(tmp_path / name).getpixel((3, 3)) == (255, 0, 0)


def test_eps_runs_no_other_program(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.eps").read_bytes())
    with pytest.raises(ValueError, match=r"a\.png: Pillow runs another program"):
        load_image(tmp_path / "a.png")


def chunk(kind: bytes, data: bytes, wrong: int = 0) -> bytes:
    checksum = zlib.crc32(kind + data) ^ wrong
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(rows: int, flip: int = 0, wrong: int = 0, cut: int = 0) -> bytes:
    """A PNG of 16x16 with so many rows of data; its data's own checksum flipped or cut off."""
    data = bytearray(zlib.compress((b"\0" + bytes(range(48))) * rows))
    data[-1] ^= flip
    header = struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
    body = bytes(data[: len(data) - cut])
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", body, wrong), chunk(b"IEND", b"")]
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": 16, "wrong": 1}, "the checksum of its chunk IDAT is wrong"),
        ({"rows": 16, "flip": 1}, "its compressed data are damaged"),
        ({"rows": 16, "cut": 4}, "784 of 784 bytes of pixel data are there"),
        ({"rows": 9}, "441 of 784 bytes of pixel data are there"),
    ],
)
def test_a_png_that_is_not_whole_is_refused(
    options: dict[str, int], words: str, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png(**options))
    with pytest.raises(ValueError, match=rf"a\.png: damaged or truncated image \(.*{words}"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (33, 17)])
def test_a_whole_png_of_any_kind_is_read(mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    Image.new(mode, size).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").size == size
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "more.png").write_bytes(data + b"behind its end")
    assert load_image(tmp_path / "more.png").size == size


def adam7(width: int, height: int) -> bytes:
    """An interlaced gray PNG whose rows have no filter."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    image = np.arange(width * height, dtype=np.uint8).reshape(height, width)
    raw = b""
    for left, top, across, down in [*passes, (0, 1, 1, 2)]:
        part = image[top::down, left::across]
        raw += b"".join(b"\0" + row.tobytes() for row in part if part.size)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    )


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (8, 8), (13, 7), (2, 11)])
def test_an_interlaced_png_is_read(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(adam7(*size))
    expected = np.arange(size[0] * size[1]).reshape(size[::-1])
    assert np.array_equal(gray(tmp_path / "a.png"), expected)


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM", "TGA"]
)
def test_a_cut_picture_is_refused_whatever_another_library_allows(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    whole = buffer.getvalue()
    for share in (0.4, 0.9):
        (tmp_path / "a.bin").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match=r"a\.bin: "):
            load_image(tmp_path / "a.bin")


def jpeg(values: np.ndarray, progressive: bool) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "JPEG", progressive=progressive)
    return buffer.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("shape", [(64, 64), (61, 50, 3)])
def test_a_jpeg_that_was_closed_before_its_end_is_refused(
    shape: tuple[int, ...], progressive: bool, tmp_path: Path
) -> None:
    whole = jpeg(np.random.default_rng(0).integers(0, 255, shape, np.uint8), progressive)
    path = tmp_path / "a.jpg"
    for share in (0.4, 0.6):
        for rest in (b"\xff\xd9", bytes(300) + b"\xff\xd9"):
            path.write_bytes(whole[: int(len(whole) * share)] + rest)
            with pytest.raises(ValueError, match=r"a\.jpg: damaged or truncated"):
                load_image(path)
    path.write_bytes(whole)
    assert load_image(path).size == shape[1::-1]
    path.write_bytes(jpeg(np.full(shape, 128, np.uint8), progressive))
    assert (np.asarray(load_image(path)) == 128).all()


def test_an_image_in_memory_is_read_as_a_file_is() -> None:
    wide = Image.fromarray((LEVELS * 257).astype(np.uint16))
    assert np.array_equal(np.asarray(to_rgb(wide))[..., 0], LEVELS)
    with pytest.raises(ValueError, match=r"mode F, levels from 0\.0 to 252\.0"):
        to_rgb(Image.fromarray(LEVELS.astype(np.float32)))


def test_pipes_and_devices_are_refused_unopened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("a.png", "zero.png"):
        with pytest.raises(ValueError, match=rf"{name}: a pipe, a device or a socket"):
            load_image(tmp_path / name)
