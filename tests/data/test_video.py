import itertools
import json
import random
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llava_lab.data.forest import Forest
from llava_lab.data.geometry import Pool, ViewSpec
from llava_lab.data.image_folder import ImageFolder, VideoPath
from llava_lab.data.media.clip import index_clip, load_clip, shown_digests
from llava_lab.data.modules.image import VideoDataModule
from llava_lab.data.rows import BadRows, Refused
from llava_lab.data.sample import Sample, Turn, read_samples
from llava_lab.data.source import Source
from llava_lab.data.verified import verified
from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.repeated import Repeated
from llava_lab.data.views.square import Square
from llava_lab.data.views.video import Frames
from llava_lab.evaluate.benchmark import Benchmark
from llava_lab.evaluate.metrics.question import VQAAccuracy
from llava_lab.model.arrange import arrange
from llava_lab.model.connector.linear import Linear
from llava_lab.model.connector.mlp import MLP
from llava_lab.model.llm import CausalLM, scale_positions
from llava_lab.model.pool import connect, pooled
from llava_lab.tiny_world.acts import ACTS, ACTS_A_FILM, LENGTHS, sample_film
from llava_lab.tiny_world.film_text import (
    TIMES,
    all_true,
    ask_all,
    ask_presence,
    hallucinated,
    story,
)
from llava_lab.tiny_world.scene import COLORS, Scene, Sign
from llava_lab.tiny_world.videos import (
    CHOSEN,
    DEALT_VIDEO,
    INSTRUCT_VIDEO,
    PREFERENCES,
    SWAPPED,
    TinyVideos,
)
from llava_lab.train.feature_store import FeatureStore

CLIP = ViewSpec(336, (24, 24), False, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SMALL = ViewSpec(56, (4, 4), False, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
KINDS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4", "gif": "gif"}


def shade(number: int) -> int:
    """Brightness by which a frame of `video` is told from all others near it."""
    return 16 + number * 8 % 224


def video(
    path: Path,
    frames: int = 40,
    stamps: list[int] | None = None,
    codec: str | None = None,
    rotation: int = 0,
    size: tuple[int, int] = (64, 48),
) -> VideoPath:
    """A video of plain frames, 10 a second or shown at `stamps` tenths; a key frame in 12."""
    codec = codec or KINDS[path.suffix[1:]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.gop_size = 12
        stream.time_base = stream.codec_context.time_base = Fraction(1, 10)
        if rotation:
            stream.metadata["rotate"] = str(rotation)
        for number in range(frames):
            level = np.full((size[1], size[0], 3), shade(number), np.uint8)
            level[:, : size[0] // 4] = 255 - level[:, : size[0] // 4]
            frame = av.VideoFrame.from_ndarray(level, "rgb24")
            frame.pts = number if stamps is None else stamps[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return VideoPath(path)


def shown(picture: Image.Image) -> int:
    """Brightness in the middle."""
    return int(np.asarray(picture)[picture.height // 2, picture.width // 2].mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wanted", [(0,), (39,), (3, 17, 18, 39), (5, 5, 20), tuple(range(40))])
def test_frames_are_those_of_the_whole_file(
    kind: str, wanted: tuple[int, ...], tmp_path: Path
) -> None:
    path = video(tmp_path / f"clip.{kind}")
    clip = load_clip(path, lambda count, fps: wanted)
    with av.open(str(path)) as container:
        whole = [frame.to_image() for frame in container.decode(video=0)]
    assert len(whole) == 40
    for number, frame in zip(wanted, clip.frames, strict=True):
        assert np.array_equal(np.asarray(frame), np.asarray(whole[number]))
        # A GIF has few colors, and dots of two for one in between.
        assert kind == "gif" or abs(shown(frame) - shade(number)) <= 8
    assert clip.times == pytest.approx([number / 10 for number in wanted])
    assert clip.duration == pytest.approx(4.0, abs=0.11)


def test_times_of_a_varying_frame_rate_are_those_of_the_frames(tmp_path: Path) -> None:
    stamps = [0, 1, 2, 3, 20, 21, 22, 50, 51, 90]
    path = video(tmp_path / "clip.mkv", 10, stamps)
    assert index_clip(path).times == pytest.approx([stamp / 10 for stamp in stamps])
    clip = load_clip(path, lambda count, fps: [4, 7, 9])
    assert clip.times == pytest.approx([2.0, 5.0, 9.0])
    for number, frame in zip((4, 7, 9), clip.frames, strict=True):
        assert abs(shown(frame) - shade(number)) <= 8


def test_a_tag_that_is_not_utf_8_changes_nothing(tmp_path: Path) -> None:
    with av.open(str(path := tmp_path / "clip.mkv"), "w") as container:
        container.metadata["title"] = "TITEL"
        stream = container.add_stream("mpeg4", rate=10)
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 200, np.uint8), "rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    written = path.read_bytes()
    assert b"TITEL" in written
    path.write_bytes(written.replace(b"TITEL", b"\xd6\xffTEL"))
    (frame,) = load_clip(VideoPath(path), lambda count, fps: (0,)).frames
    assert abs(shown(frame) - 200) < 4


def test_only_what_is_near_a_wanted_frame_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = video(tmp_path / "clip.mp4", 120)
    seen = []
    real = av.VideoFrame.to_image
    with av.open(str(path)) as container:
        keys = [p.pts for p in container.demux(video=0) if p.pts is not None and p.is_keyframe]
    assert len(keys) >= 9
    monkeypatch.setattr(
        "llava_lab.data.media.decode._upright", lambda frame: seen.append(frame.pts) or real(frame)
    )
    counted = []
    choose = Frames(frames=4).choose
    load_clip(path, lambda count, fps: counted.append(count) or choose(count, fps))
    assert counted == [120] and len(seen) == 4


def test_a_turned_video_stands_upright(tmp_path: Path) -> None:
    path = video(tmp_path / "clip.mp4", 3)
    turned = tmp_path / "turned.mp4"
    # The display matrix of a phone held upright, written over the plain one in the track header.
    data = path.read_bytes()
    one = (1 << 16).to_bytes(4, "big")
    plain = one + bytes(12) + one + bytes(12) + (1 << 30).to_bytes(4, "big")
    minus = (-(1 << 16)).to_bytes(4, "big", signed=True)
    place = data.index(plain, data.index(b"tkhd"))
    matrix = bytes(4) + one + bytes(4) + minus + bytes(16) + (1 << 30).to_bytes(4, "big")
    turned.write_bytes(data[:place] + matrix + data[place + len(matrix) :])
    upright = load_clip(turned, lambda count, fps: [0]).frames[0]
    flat = load_clip(path, lambda count, fps: [0]).frames[0]
    # The file says: turn a quarter clockwise.
    expected = flat.transpose(Image.Transpose.ROTATE_270)
    assert upright.size == (48, 64) and np.array_equal(np.asarray(upright), np.asarray(expected))


def test_a_folder_of_frames_is_a_video(tmp_path: Path) -> None:
    for number in range(5):
        Image.new("RGB", (20, 10), (number * 40,) * 3).save(tmp_path / f"{number:03d}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    clip = load_clip(tmp_path, lambda count, fps: range(0, count, 2))
    assert [shown(frame) for frame in clip.frames] == [0, 80, 160]
    assert clip.times == [0.0, 1.0, 2.0] and clip.duration == 2.5 and clip.size == (20, 10, 3)


def frames_named(folder: Path, *names: str) -> Path:
    """A folder of frames whose brightness is their place in `names`."""
    folder.mkdir()
    for place, name in enumerate(names):
        Image.new("RGB", (4, 4), (place * 10,) * 3).save(folder / name)
    return folder


@pytest.mark.parametrize(
    "names",
    [
        [f"{number}.png" for number in range(1, 13)],
        [f"clip2_f{number}.png" for number in range(8, 12)],
        [f"{number:03d}.png" for number in (0, 14, 28, 43, 57)],
        ["frame_9.png", "frame_10.png", "last.png"],
        ["a.png", "b.png"],
    ],
)
def test_frames_of_a_folder_come_in_the_order_of_their_numbers(
    names: list[str], tmp_path: Path
) -> None:
    folder = frames_named(tmp_path / "f", *names)
    clip = load_clip(folder, lambda count, fps: range(count))
    assert [shown(frame) for frame in clip.frames] == [place * 10 for place in range(len(names))]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["1.png", "2.png", "4.png"], r"2\.png and 4\.png are 2 apart, others 1"),
        (["f10.png", "f20.png", "f40.png"], r"f20\.png and f40\.png are 20 apart, others 10"),
        (["1.png", "01.png", "2.png"], r"01\.png and 1\.png have one number"),
        (["1.png", "1.bmp", "2.png"], r"1\.bmp and 1\.png have one number"),
    ],
)
def test_a_frame_that_is_missing_or_twice_is_named(
    names: list[str], words: str, tmp_path: Path
) -> None:
    folder = frames_named(tmp_path / "f", *names)
    with pytest.raises(ValueError, match=rf"f: frames {words}"):
        index_clip(folder)


def test_a_link_in_a_folder_of_frames_must_not_lead_out(tmp_path: Path) -> None:
    folder = frames_named(tmp_path / "f", "1.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    root = tmp_path / "root"
    root.mkdir()
    folder.rename(root / "f")
    (root / "f" / "2.png").symlink_to(root / "f" / "1.png")
    assert ImageFolder(root).find("f", "video") == root / "f"
    (root / "f" / "3.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(Refused, match=r"path 'f/3\.png' is a link out of"):
        ImageFolder(root).find("f", "video")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm", "avi", "faststart"])
def test_a_file_that_is_cut_short_is_named(kind: str, share: float, tmp_path: Path) -> None:
    if kind == "faststart":
        source = video(tmp_path / "plain.mp4", 60)
        path = tmp_path / "clip.mp4"
        with (
            av.open(str(source)) as given,
            av.open(str(path), "w", options={"movflags": "faststart"}) as out,
        ):
            stream = out.add_stream_from_template(given.streams.video[0])
            for packet in given.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
    else:
        path = video(tmp_path / f"clip.{kind}", 60)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    whole = video(tmp_path / f"whole.{path.suffix[1:]}", 60)
    try:
        times = index_clip(path).times
    except ValueError as error:
        assert re.search(r"clip\.\w+: .*(damaged|cut short)", str(error))
    else:
        # Only its list of key frames is gone: at the end of an AVI.
        assert kind == "avi" and share == 0.9 and times == index_clip(whole).times


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    choose = Frames().choose
    with pytest.raises(FileNotFoundError, match="no such video"):
        load_clip(tmp_path / "none.mp4", choose)
    text = tmp_path / "text.mp4"
    text.write_text("words")
    with pytest.raises(ValueError, match=r"text\.mp4: not a video"):
        load_clip(text, choose)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no frames"):
        load_clip(tmp_path / "empty", choose)
    sound = tmp_path / "sound.mkv"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="only sound"):
        load_clip(sound, choose)


@pytest.mark.parametrize(
    ("count", "fps", "options", "expected"),
    [
        (100, 25.0, {"frames": 4}, [0, 33, 66, 99]),
        (3, 25.0, {"frames": 4}, [0, 0, 1, 2]),
        (1, 25.0, {"frames": 3}, [0, 0, 0]),
        (100, 25.0, {"frames": 8, "fps": 1}, [0, 25, 50, 75]),
        (100, 25.0, {"frames": 3, "fps": 1}, [0, 49, 99]),
        (3, 25.0, {"frames": 8, "fps": 1}, [0]),
        (5, 0.4, {"frames": 8, "fps": 1}, [0, 1, 2, 3, 4]),
    ],
)
def test_frames_are_chosen_by_the_released_rules(
    count: int, fps: float, options: dict, expected: list[int]
) -> None:
    assert Frames(**options).choose(count, fps) == expected


@pytest.mark.parametrize(
    ("newline", "tokens"),
    [("grid", 4992), ("frame", 4640), ("one_token", 4609), ("no_token", 4608)],
)
def test_tokens_are_the_published_ones(newline: str, tokens: int) -> None:
    views = Frames(frames=32, newline=newline)
    assert views.layout((640, 480, 32), CLIP).tokens == tokens
    assert views.newline == (newline != "no_token")


def test_every_stride_counts_what_it_makes() -> None:
    for stride, mode, newline, side, frames in itertools.product(
        range(1, 7),
        ("average", "max", "bilinear"),
        ("grid", "frame", "one_token", "no_token"),
        (24, 27, 16),
        (1, 3),
    ):
        view_spec = ViewSpec(side * 14, (side, side), False, (0, 0, 0), (1, 1, 1))
        layout = Frames(stride=stride, mode=mode, newline=newline).layout((9, 9, frames), view_spec)
        left = -(-side // stride) if mode == "bilinear" else side // stride
        assert layout.blocks[0].cell == (left, left) and layout.views == frames
        features = torch.randn(frames, side, side, 2)
        made = arrange(connect(features, [layout], torch.nn.Identity()), [layout], torch.zeros(2))
        assert len(made) == layout.tokens


def test_pooling_is_that_of_plain_loops() -> None:
    maps = torch.randn(2, 5, 5, 3)
    squares = maps[:, :4, :4].reshape(2, 2, 2, 2, 2, 3)
    average = pooled(maps, Pool(2, "average"))
    torch.testing.assert_close(average, squares.mean((2, 4)))
    largest = pooled(maps, Pool(2, "max"))
    torch.testing.assert_close(largest, squares.amax((2, 4)))
    assert pooled(maps, Pool(2, "bilinear")).shape == (2, 3, 3, 3)


def test_before_and_after_differ_through_an_mlp_and_not_through_a_linear_layer() -> None:
    features = torch.randn(3, 4, 4, 6)
    layouts = {
        position: [Frames(position=position).layout((9, 9, 3), SMALL)]
        for position in ("before", "after")
    }

    def both(connector: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        before, after = (
            arrange(connect(features, layout, connector), layout, None)
            for layout in layouts.values()
        )
        return before, after

    torch.testing.assert_close(*both(Linear(6, 8)))
    before, after = both(MLP(6, 8))
    assert before.shape == after.shape == (12, 8) and not torch.allclose(before, after)


def test_newlines_stand_where_they_are_said_to() -> None:
    features = torch.arange(2 * 16, dtype=torch.float).reshape(2, 4, 4, 1)
    places = {}
    for newline in ("grid", "frame", "one_token", "no_token"):
        layouts = [Frames(newline=newline).layout((9, 9, 2), SMALL)]
        pieces = connect(features, layouts, torch.nn.Identity())
        row = arrange(pieces, layouts, torch.tensor([-1.0]))[:, 0].tolist()
        places[newline] = [place for place, value in enumerate(row) if value == -1]
    assert places == {
        "grid": [2, 5, 8, 11],
        "frame": [4, 9],
        "one_token": [8],
        "no_token": [],
    }


def test_pictures_and_videos_share_a_batch(tmp_path: Path) -> None:
    views = Frames(frames=3, image=AnyRes("1x2, 2x1"), frame=Square("squash"), newline="frame")
    path = video(tmp_path / "clip.mp4", 9)
    picture = tmp_path / "picture.png"
    Image.new("RGB", (80, 40)).save(picture)
    pixels, layouts = [], []
    for media in (path, picture, path):
        loaded = views.load(media)
        pixels.append(views.pixels(loaded, SMALL))
        layouts.append(views.layout(loaded.size, SMALL))
    assert [len(view) for view in pixels] == [3, 3, 3]
    features = torch.randn(9, 4, 4, 6)
    newline = torch.zeros(8)
    connector = MLP(6, 8)
    together = arrange(connect(features, layouts, connector), layouts, newline)
    alone = [
        arrange(connect(part, [layout], connector), [layout], newline)
        for part, layout in zip(features.split(3), layouts, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone))
    assert len(together) == sum(layout.tokens for layout in layouts)


def test_the_time_instruction_is_that_of_the_released_code(tmp_path: Path) -> None:
    path = video(tmp_path / "clip.mp4", 40)
    said = Frames(frames=3, time_instruction=True).words(path)
    assert said == (
        "The video lasts for 4.00 seconds, and 3 frames are uniformly sampled from it. These "
        "frames are located at 0.00s,1.90s,3.90s.Please answer the following questions related to "
        "this video."
    )
    assert Frames(frames=3).words(path) == ""


def test_more_frames_than_fit_are_refused_with_the_arithmetic() -> None:
    Frames(frames=16).check(CLIP, 4096)
    Frames(frames=56).check(CLIP, 8192)
    message = (
        r"56 frames x 12x12 features.* are 8,064 visual tokens; with 64 of text 8,128, and a row "
        r"has 4,096\. At most 28 frames fit"
    )
    with pytest.raises(ValueError, match=message):
        Frames(frames=56).check(CLIP, 4096)
    views = Frames(frames=1, newline="one_token")
    most = views.most_frames(CLIP, 4096)
    assert views.tokens(most, CLIP) + 64 <= 4096 < views.tokens(most + 1, CLIP) + 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "frames is 0"),
        ({"stride": 0}, "stride is 0"),
        ({"fps": 0}, "fps is 0"),
        ({"mode": "mean"}, "mode is 'mean'; it is one of average, max, bilinear"),
        ({"newline": "row"}, "newline is 'row'; it is one of grid, frame"),
    ],
)
def test_a_wrong_value_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Frames(**options)


def test_what_cannot_be_pooled_is_refused() -> None:
    with pytest.raises(ValueError, match="stride 6 leaves nothing of 4x4"):
        Frames(stride=6).layout((9, 9, 2), SMALL)
    with pytest.raises(ValueError, match="cls=false"):
        Frames().layout((9, 9, 2), ViewSpec(56, (4, 4), True, (0, 0, 0), (1, 1, 1)))


def test_the_rope_factor_divides_positions() -> None:
    def angles(factor: float, positions: torch.Tensor) -> torch.Tensor:
        config = AutoConfig.for_model("llama", hidden_size=32, num_attention_heads=4)
        scale_positions(config, factor)
        return torch.stack(LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None]))

    places = torch.arange(50)
    plain = angles(1, places)
    torch.testing.assert_close(angles(2, 2 * places), plain)
    torch.testing.assert_close(angles(2.5, 5 * places), angles(1, 2 * places))
    assert not torch.allclose(angles(2, places), plain)
    untouched = AutoConfig.for_model("llama", hidden_size=32, num_attention_heads=4)
    before = untouched.to_dict()
    scale_positions(untouched, 1)
    assert untouched.to_dict() == before


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gpt2", {}, "a gpt2 has no rotary embedding"),
        ("gemma3_text", {}, "several rotary embeddings"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4}},
            r"scales its positions already \(linear\)",
        ),
    ],
)
def test_where_positions_cannot_be_scaled_it_is_said(
    kind: str, changes: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        scale_positions(AutoConfig.for_model(kind, **changes), 2)
    with pytest.raises(ValueError, match=r"0\.5; it is 1 or more"):
        scale_positions(AutoConfig.for_model(kind, **changes), 0.5)


def test_a_layout_finds_the_features_of_another(tmp_path: Path) -> None:
    """A sweep over strides encodes each video once."""
    path = video(tmp_path / "clip.mp4", 9)
    picture = tmp_path / "picture.png"
    Image.new("RGB", (40, 80), (9, 99, 199)).save(picture)
    encoder = Plain()
    choices = [Frames(frames=3, stride=stride, newline="grid") for stride in (1, 2, 4)]
    stores = [FeatureStore(tmp_path / "store", encoder, each, [path, picture]) for each in choices]
    assert len({store.folder for store in stores}) == 1
    other = FeatureStore(tmp_path / "store", encoder, Frames(frames=4), [path, picture])
    assert other.folder != stores[0].folder
    stores[0].fill()
    features, size = stores[1][path]
    assert size == (64, 48, 3) and features.shape == (3, 16, 3)
    assert choices[1].layout(size, SMALL).views == 3
    features, size = stores[2][picture]
    assert size == (40, 80) and features.shape == (1, 16, 3)


class Plain(torch.nn.Module):
    """An encoder that gives the mean color of each patch."""

    view_spec = SMALL

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(pixels, 14).permute(0, 2, 3, 1)


def test_an_lm_is_scaled_after_it_was_built() -> None:
    def lm(**options: float) -> CausalLM:
        torch.manual_seed(0)
        config = {
            "model_type": "llama",
            "vocab_size": 1024,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 100,
        }
        return CausalLM(
            None, "v1", 80, pretrained=False, config=config, tokenizer="asset:tokenizer", **options
        ).eval()

    plain, scaled, built = lm(), lm(), lm(rope_factor=2.0)
    scaled.scale(2.0)
    scaled.scale(2.0)  # again changes nothing
    hidden, forest = torch.randn(9, 32), Forest((9,), (None,))
    with torch.no_grad():
        torch.testing.assert_close(scaled(hidden, forest), built(hidden, forest))
        assert not torch.allclose(plain(hidden, forest), built(hidden, forest))
    assert (plain.context, scaled.context, built.context) == (100, 200, 200)
    assert (plain.length(None), built.length(None), built.length(50)) == (80, 160, 100)
    with pytest.raises(ValueError, match="divided by 2 already"):
        scaled.scale(3.0)


def test_video_rows_are_read_and_refused_where_they_cannot_be_shown(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4", 4)
    (tmp_path / "b").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "b" / "0.jpg")
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A."}]
    rows = [{"id": name, "video": name, "conversations": turns} for name in ("a.mp4", "b")]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    found = read_samples(Source(path, tmp_path), 0, videos=True)
    assert [sample.turns[0].text for sample in found] == ["<image>\nWhat?"] * 2
    assert all(isinstance(sample.images[0], VideoPath) for sample in found)
    with pytest.raises(BadRows, match="video rows need VideoDataModule"):
        read_samples(Source(path, tmp_path), 0)
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question_id": 1, "video": "a.mp4", "text": "What?", "answer": "A"}\n')
    benchmark = Benchmark("videos", str(questions), str(tmp_path), VQAAccuracy())
    benchmark.check(Frames())
    with pytest.raises(ValueError, match=r"a video, which data\.views Pad cannot show"):
        benchmark.check(Pad())
    data = VideoDataModule([Source(path, tmp_path)], Pad(), batch_size=2)
    with pytest.raises(ValueError, match="views is Pad; VideoDataModule takes"):
        data.check(None)


def test_videos_are_grouped_with_images_or_apart(tmp_path: Path) -> None:
    picture, film = tmp_path / "a.png", tmp_path / "a.mp4"
    Image.new("RGB", (8, 8)).save(picture)
    video(film, 4)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This"}]
    words = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "This"}]
    rows = [{"image": "a.png"}, {"video": "a.mp4"}, {}]
    path = tmp_path / "rows.json"
    told = [
        {"id": str(i), **row, "conversations": turns if row else words}
        for i, row in enumerate(rows)
    ]
    path.write_text(json.dumps(told))
    for grouped, kinds in ((True, [1, 1, 0]), ("video", [1, 2, 0])):
        data = VideoDataModule(
            [Source(path, tmp_path)],
            Frames(2, image=Pad()),
            batch_size=2,
            group_by_modality=grouped,
        )
        data.read()
        assert data.lengths()[1] == kinds


def test_repeated_frames_are_as_many_and_fewer_different_ones() -> None:
    assert Repeated(4, frames=16).choose(100, 4.0) == sorted([0, 33, 66, 99] * 4)
    assert Repeated(3, frames=7).choose(9, 4.0) == [0, 0, 0, 4, 4, 8, 8]
    assert Repeated(8, frames=8).choose(9, 4.0) == Frames(frames=8).choose(9, 4.0)
    assert Repeated(4, frames=16).tokens(16, CLIP) == Frames(frames=16).tokens(16, CLIP)
    for distinct in (0, 17):
        with pytest.raises(
            ValueError, match=rf"distinct is {distinct}; it is from 1 to frames \(16"
        ):
            Repeated(distinct, frames=16)
    with pytest.raises(ValueError, match=r"fps is 1\.0; leave it out"):
        Repeated(4, frames=16, fps=1.0)


def test_what_is_shown_for_a_moment_lasts_from_a_frame_to_half_a_film() -> None:
    shares = []
    for number in range(400):
        film = sample_film(random.Random(number))
        for shown in film.shown:
            if isinstance(shown.what, Sign):
                shares.append(shown.end - shown.start)
                seen = [film.scene(n / film.frames).sign is not None for n in range(film.frames)]
                assert any(seen) and shown.start >= 0 and shown.end <= 1
    assert 0.01 <= min(shares) < 0.015 and 0.45 < max(shares) <= 0.5
    assert 0.055 < sorted(shares)[len(shares) // 2] < 0.095


def test_a_world_of_films_is_the_same_for_a_seed(tmp_path: Path, small_videos: Path) -> None:
    TinyVideos(tmp_path / "again", train_videos=6, eval_videos=4).generate()
    for file in sorted(small_videos.rglob("*")):
        if file.is_file():
            again = tmp_path / "again" / file.relative_to(small_videos)
            assert file.read_bytes() == again.read_bytes(), file.name


def test_controls_of_films_differ_in_one_thing(small_videos: Path) -> None:
    rows, dealt, chosen = (
        json.loads((small_videos / name).read_text())
        for name in (INSTRUCT_VIDEO, DEALT_VIDEO, CHOSEN)
    )
    assert [row["conversations"] for row in rows] == [row["conversations"] for row in dealt]
    assert not any(a["video"] == b["video"] for a, b in zip(rows, dealt, strict=True))
    assert {row["video"] for row in rows} == {row["video"] for row in dealt}
    assert chosen == [row for row in rows if row["id"].endswith("story")]
    pairs, swapped = (
        [json.loads(line) for line in (small_videos / name).read_text().splitlines()]
        for name in (PREFERENCES, SWAPPED)
    )
    for pair, other in zip(pairs, swapped, strict=True):
        assert (pair["chosen"], pair["rejected"]) == (other["rejected"], other["chosen"])
        assert pair["prompt"] == other["prompt"] and pair["video"] == other["video"]


def test_every_true_sentence_is_true_and_no_pair_has_another() -> None:
    for number in range(200):
        film = sample_film(random.Random(number))
        true = set(all_true(film))
        told = re.findall(r"[A-Z][^.]*\.", story(film))
        assert set(told) <= true
        lied = re.findall(r"[A-Z][^.]*\.", hallucinated(film, random.Random(number)))
        assert len(set(lied) - true) == 1
        # Not to be known by its form alone.
        assert len(lied) == len(told) and ["moment" in each for each in lied] == [
            "moment" in each for each in told
        ]
        colors = {i.shape: i.color for n in range(400) for i in film.scene(n / 400).items}
        when = {
            shape: [shape in shapes_of(film.scene(n / 400)) for n in range(400)] for shape in colors
        }
        comes = {
            shape: sum(b and not a for a, b in itertools.pairwise([False, *there]))
            for shape, there in when.items()
        }
        for sentence in true:
            named = re.findall(rf"({'|'.join(COLORS)}) (\w+)", sentence)
            assert all(colors[shape] == color for color, shape in named)
            if "first" in sentence:
                assert when[named[0][1]].index(True) < when[named[1][1]].index(True)
            elif found := re.search(r"(once|twice|(?:three|four) times)\.", sentence):
                assert TIMES[comes[named[0][1]]] == found[1]
            elif "moment" in sentence:
                assert not all(when[named[0][1]])
        presence = ask_presence(film, random.Random(number))
        *color, shape = presence.key.split()
        there = shape in colors and color in ([], [colors[shape]])
        assert presence.answer == ("yes" if there else "no")


def test_films_show_what_is_said_of_them() -> None:
    kinds, first_kinds = set(), set()
    for number in range(60):
        film = sample_film(random.Random(number))
        assert len(film.questions) == ACTS_A_FILM and LENGTHS[0] <= film.frames <= LENGTHS[1]
        scenes = [film.scene(n / film.frames) for n in range(film.frames)]
        untrue = hallucinated(film, random.Random(number))
        assert untrue != story(film)
        asked = ask_all(film, random.Random(number))
        assert {each.text for each in film.questions} <= {each.text for each in asked}
        first_kinds.add(asked[0].type)
        for question in (*film.questions, *asked):
            kinds.add(question.type)
            words = question.text.rstrip("?").split()
            if question.type == "motion":
                shape = words[2]
                first, last = (
                    next(item.center for item in scene.items if item.shape == shape)
                    for scene in (scenes[0], scenes[-1])
                )
                step = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
                moved = tuple((b > a) - (b < a) for a, b in zip(first, last, strict=True))
                assert moved == step[question.answer]
            elif question.type == "order":
                named = [words[5], words[8]]
                when = {
                    shape: next(n for n, s in enumerate(scenes) if shape in shapes_of(s))
                    for shape in (each.rstrip(",") for each in named)
                }
                assert question.answer == min(when, key=when.__getitem__)
            elif question.type == "count":
                there = [words[-1] in shapes_of(scene) for scene in scenes]
                comes = sum(b and not a for a, b in itertools.pairwise([False, *there]))
                assert str(comes) == question.answer
            elif question.type == "detail":
                colors = {i.color for s in scenes for i in s.items if i.shape == words[-1]}
                assert colors == {question.answer}
            else:
                assert {s.sign.glyph for s in scenes if s.sign} == {question.answer}
    assert kinds == first_kinds == set(ACTS)


def shapes_of(scene: Scene) -> set[str]:
    return {item.shape for item in scene.items}


def test_a_gif_is_a_picture_in_one_row_and_a_film_in_another(tmp_path: Path) -> None:
    film = video(tmp_path / "t.gif", frames=8)
    picture, views = Path(film), Frames(frames=4)
    assert picture != film and len({picture, film, VideoPath(picture)}) == 2
    sizes, faults = verified([picture, film], views, "t")
    assert (len(sizes[picture]), len(sizes[film]), faults) == (2, 3, {})
    rows = [Sample("1", (Turn("user", "<image>"),), (path,), "a.json, row 1") for path in sizes]
    assert len({VideoDataModule.content_of([row]) for row in rows}) == 2
    assert len(set(shown_digests([picture, film]).values())) == 2
