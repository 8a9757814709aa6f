import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from llava_lab.core.fingerprint import fingerprint
from llava_lab.data.geometry import Block, Layout, ViewSpec
from llava_lab.data.image_folder import VideoPath
from llava_lab.data.media import resample
from llava_lab.data.media.picture import load_image
from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.base import Views, normalise, verify_media
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.reduced import Reduced
from llava_lab.data.views.square import Square
from llava_lab.data.views.video import Frames
from llava_lab.evaluate.sheet import SheetItem, sheet

CLIP = ViewSpec(
    56, (4, 4), False, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
)
SIGLIP = ViewSpec(54, (3, 3), False, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SIZES = [
    (56, 56),
    (640, 480),
    (480, 640),
    (333, 500),
    (57, 56),
    (20, 31),
    (1, 1),
    (2, 300),
    (900, 7),
    (1001, 334),
    (55, 1500),
]


def picture(size: tuple[int, int]) -> Image.Image:
    """Noise over a slope, so that neither position nor sharpness can be wrong unseen."""
    noise = np.random.default_rng(sum(size)).integers(0, 156, (size[1], size[0], 3))
    slope = np.linspace(0, 99, size[0])[None, :, None] * np.array([1.0, 0.5, 0.2])
    return Image.fromarray((noise + slope).astype(np.uint8))


@pytest.mark.parametrize("size", SIZES)
def test_crop_equals_clips_processor(size: tuple[int, int]) -> None:
    side = CLIP.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side)
    theirs = processor(picture(size), return_tensors="pt")["pixel_values"]
    ours = Square().pixels(picture(size), CLIP)
    assert ours.dtype == torch.float32 and ours.shape == (1, 3, side, side)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_squash_equals_siglips_processor(size: tuple[int, int]) -> None:
    side = SIGLIP.image_size
    processor = SiglipImageProcessorPil(size={"height": side, "width": side})
    theirs = processor(picture(size), return_tensors="pt")["pixel_values"]
    ours = Square("squash").pixels(picture(size), SIGLIP)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("strip", [10_000, resample.STRIP_PIXELS])
def test_pad_equals_a_canvas_in_full(
    size: tuple[int, int], strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resample, "STRIP_PIXELS", strip)
    side, (width, height) = max(size), size
    canvas = Image.new("RGB", (side, side), (122, 116, 104))
    canvas.paste(picture(size), ((side - width) // 2, (side - height) // 2))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=56)
    theirs = processor(canvas, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(Pad().pixels(picture(size), CLIP), theirs, rtol=0, atol=1e-6)


THIN = [(1, 900), (900, 1), (3, 1201), (700, 2), (2, 1999), (40, 1000), (997, 100), (150, 601)]


@pytest.mark.parametrize("size", [*THIN, *SIZES])
def test_a_thin_picture_is_padded_as_in_full(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the shape, both ways give the same pixels."""
    for side in (56, 33):
        slow = resample.pad(picture(size), side, (122, 116, 104))
        monkeypatch.setattr(resample, "STRIP_PIXELS", 100)
        monkeypatch.setattr(resample, "THIN", 0)
        fast = resample.pad(picture(size), side, (122, 116, 104))
        monkeypatch.undo()
        assert np.array_equal(np.asarray(slow), np.asarray(fast))


@pytest.mark.parametrize("size", [(1, 400_000), (400_000, 1), (33, 50_000)])
def test_a_picture_of_any_shape_needs_no_more_than_its_pixels(size: tuple[int, int]) -> None:
    """The canvas of the first would have 160,000 million pixels: it is never built."""
    image = Image.new("RGB", size, (255, 0, 0))
    for views in (Pad(), Square(), Square("squash"), AnyRes("1x2, 2x1, 2x2")):
        pixels = views.pixels(image, CLIP)
        assert len(pixels) == views.layout(size, CLIP).views and pixels.isfinite().all()
    red = normalise(Image.new("RGB", (56, 56), (255, 0, 0)), CLIP)
    assert torch.equal(Square("squash").pixels(image, CLIP), red)


def test_a_line_is_squashed_as_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in [(1, 900), (3, 777)]:
        slow = resample.scale(picture(size), (56, 56))
        monkeypatch.setattr(resample, "MAX_PIXELS", 100)
        fast = resample.scale(picture(size), (56, 56))
        monkeypatch.undo()
        # Pillow before 13 rounds an intermediate picture otherwise.
        assert np.abs(np.asarray(slow, int) - np.asarray(fast, int)).max() <= 4


def test_a_hair_is_cropped_without_being_built(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in [(3, 900), (900, 3), (5, 777), (777, 5), (1, 999)]:
        slow = resample.centre(picture(size), 56)
        monkeypatch.setattr(resample, "MAX_PIXELS", 56 * 56)
        fast = resample.centre(picture(size), 56)
        monkeypatch.undo()
        levels = np.abs(np.asarray(slow, int) - np.asarray(fast, int))
        assert levels.max() <= 1 and levels.mean() < 0.001
    assert Square().pixels(picture((1, 5000)), CLIP).shape == (1, 3, 56, 56)


@pytest.mark.parametrize("views", [Square(), Square("squash"), Pad()])
@pytest.mark.parametrize("cls", [False, True])
def test_one_view_of_every_size(views: Views, cls: bool) -> None:
    view_spec = ViewSpec(54, (3, 5), cls, SIGLIP.mean, SIGLIP.std)
    for size in SIZES:
        layout = views.layout(size, view_spec)
        assert layout == Layout((Block((3, 5), cls=cls),)) and layout.tokens == 15 + cls
        assert views.pixels(picture(size), view_spec).shape == (layout.views, 3, 54, 54)


def test_an_unknown_resize_is_refused() -> None:
    with pytest.raises(ValueError, match="'stretch'; it is crop or squash"):
        Square("stretch")  # type: ignore[arg-type]


def test_modes_become_rgb_as_released(tmp_path: Path) -> None:
    red = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    for picture_, pixel in [
        (red, (255, 0, 0)),
        (Image.new("L", (2, 2), 77), (77, 77, 77)),
        (palette, (9, 8, 7)),
    ]:
        picture_.save(tmp_path / "a.png")
        loaded = load_image(tmp_path / "a.png")
        assert loaded.mode == "RGB" and loaded.getpixel((1, 1)) == pixel


@pytest.mark.parametrize("orientation", range(1, 9))
def test_one_value_decides_whether_exif_orientation_is_applied(
    orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture((30, 20)).save(tmp_path / "1.png", exif=exif)
    lying, turned = picture((30, 20)), ImageOps.exif_transpose(Image.open(tmp_path / "1.png"))
    (tmp_path / "f").mkdir()
    shutil.copy(tmp_path / "1.png", tmp_path / "f")
    grids = "1x2, 2x1, 2x2"
    for choices, expected in [
        ((Square(), Pad(), AnyRes(grids), Frames()), lying),
        (
            (
                Square(upright=True),
                Pad(upright=True),
                AnyRes(grids, upright=True),
                Frames(image=Pad(upright=True)),
            ),
            turned,
        ),
    ]:
        for views in choices:
            loaded = views.load(tmp_path / "1.png")
            assert np.array_equal(np.asarray(loaded), np.asarray(expected))
            assert verify_media(tmp_path / "1.png", views) == expected.size
        frame = choices[-1].load(VideoPath(tmp_path / "f")).frames[0]
        assert np.array_equal(np.asarray(frame), np.asarray(expected))
    leave_out = ("idle", "layout_only")  # what the feature store's key is made of
    assert fingerprint(Pad(), leave_out=leave_out) != fingerprint(
        Pad(upright=True), leave_out=leave_out
    )
    cards = [
        sheet([SheetItem(tmp_path / "1.png", "?", "a", "b", True, upright=upright)])
        for upright in (False, True)
    ]
    same = np.array_equal(np.asarray(cards[0]), np.asarray(cards[1]))
    assert same == (orientation == 1)


def test_frames_and_pictures_are_not_turned_differently() -> None:
    with pytest.raises(ValueError, match="upright is False for frames and True for pictures"):
        Frames(frame=Square(), image=Pad(upright=True))


def damaged(folder: Path) -> dict[str, tuple[type[Exception], str]]:
    picture((200, 100)).save(folder / "whole.jpg")
    picture((200, 100)).save(folder / "whole.png")
    for kind in ("jpg", "png"):
        whole = (folder / f"whole.{kind}").read_bytes()
        (folder / f"cut.{kind}").write_bytes(whole[: len(whole) // 2])
    whole = bytearray((folder / "whole.png").read_bytes())
    whole[60:90] = bytes(30)
    (folder / "flipped.png").write_bytes(whole)
    (folder / "text.jpg").write_text("<html>404</html>")
    (folder / "empty.jpg").touch()
    (folder / "folder.jpg").mkdir()
    return {
        "none.jpg": (FileNotFoundError, "there is no such image"),
        "cut.jpg": (ValueError, "damaged or truncated"),
        "cut.png": (ValueError, "damaged or truncated"),
        "flipped.png": (ValueError, "damaged or truncated"),
        "text.jpg": (ValueError, "not an image"),
        "empty.jpg": (ValueError, "not an image"),
        "folder.jpg": (ValueError, "a folder"),
    }


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for name, (kind, words) in damaged(tmp_path).items():
        with pytest.raises(kind, match=words) as caught:
            load_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_001, 13_400])
def test_bombs_are_refused_unread(side: int, tmp_path: Path) -> None:
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match=r"bomb\.png: .*at most 100000000 are read"):
        load_image(tmp_path / "bomb.png")


def test_a_check_returns_what_the_layout_takes_and_refuses_what_loading_refuses(
    tmp_path: Path,
) -> None:
    picture((20, 10)).save(tmp_path / "a.png")
    assert verify_media(tmp_path / "a.png", Square()) == (20, 10)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"b\.png: damaged or truncated"):
        verify_media(tmp_path / "b.png", Square())


@pytest.mark.parametrize("views", [Pad(), Square(), AnyRes("2x2")])
def test_reduced_views_have_the_layout_of_the_picture_and_no_more_detail_than_a_view(
    views: Views,
) -> None:
    image = picture((168, 120))
    reduced = Reduced(28, views)
    assert reduced.layout(image.size, CLIP) == views.layout(image.size, CLIP)
    assert reduced.newline == views.newline and reduced.pool == views.pool
    once = reduced.pixels(image, CLIP)
    assert once.shape == views.pixels(image, CLIP).shape
    # What is lost beyond 28 pixels a side is lost at once, and nothing of what is below.
    coarse = resample.scale(resample.scale(image, (28, 28)), image.size)
    assert torch.equal(once, views.pixels(coarse, CLIP))
    blocks = np.asarray(picture((28, 28)).resize((168, 168), Image.Resampling.NEAREST))
    same = Reduced(168, views).pixels(Image.fromarray(blocks), CLIP)
    assert torch.equal(same, views.pixels(Image.fromarray(blocks), CLIP))


def test_reduced_views_refuse_videos_and_no_pixels() -> None:
    with pytest.raises(ValueError, match="side is 0; it is 1 or more"):
        Reduced(0, Pad())
    with pytest.raises(ValueError, match="Frames shows videos, which are not reduced"):
        Reduced(28, Frames())
