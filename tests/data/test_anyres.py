import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaNextConfig
from transformers.models.llava_next import image_processing_pil_llava_next as theirs_pil
from transformers.models.llava_next.modeling_llava_next import (
    LlavaNextModel,
    get_anyres_image_grid_shape,
    unpad_image,
)

from llava_lab.data.geometry import Block, Layout, ViewSpec
from llava_lab.data.grids import parse_grids
from llava_lab.data.views.anyres import AnyRes, best_canvas, unpadded
from llava_lab.model.arrange import Newline, arrange
from llava_lab.model.pool import connect


def put(features: torch.Tensor, layouts: list[Layout], newline: torch.Tensor | None = None):
    """Views [n, h, w, d] put together, with a connector that changes nothing."""
    return arrange(connect(features, layouts, torch.nn.Identity()), layouts, newline)


MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIP = ViewSpec(336, (24, 24), False, MEAN, STD)
SIGLIP = ViewSpec(384, (27, 27), False, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SMALL = ViewSpec(56, (4, 4), False, MEAN, STD)
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
FIVE = "1x2, 2x1, 2x2, 3x1, 1x3"
# Image; tiles across and down; rows and columns without padding; all tokens (CLIP at 336).
GOLDEN = [
    *(((side, side), (1, 2), (24, 24), 1176) for side in (336, 224, 100)),
    ((300, 200), (1, 2), (16, 24), 976),
    ((333, 500), (1, 2), (36, 24), 1476),
    ((500, 375), (2, 2), (36, 48), 2340),
    ((640, 480), (2, 2), (36, 48), 2340),
    ((480, 640), (2, 2), (48, 36), 2352),
    ((1024, 683), (2, 2), (32, 48), 2144),
    ((1920, 1080), (2, 2), (28, 48), 1948),
    ((1080, 1920), (2, 2), (48, 28), 1968),
    *(((side, side), (2, 2), (48, 48), 2928) for side in (672, 1000)),
    *(((width, width // 4), (3, 1), (18, 72), 1890) for width in (2000, 1344)),
    ((500, 2000), (1, 3), (72, 18), 1944),
]
# The same for SigLIP at 384, grids up to 6x6, scaled down above nine tiles.
GOLDEN_MAX = [
    ((384, 384), (1, 1), (27, 27), 1485),
    ((640, 480), (2, 2), (40, 54), 2929),
    ((1000, 1000), (3, 3), (81, 81), 7371),
    ((1920, 1080), (5, 3), (60, 108), 7269),
    ((4000, 3000), (6, 5), (70, 93), 7309),
    ((2304, 2304), (6, 6), (81, 81), 7371),
]
SIZES = [
    *[(56, 56), (20, 31), (640, 480), (480, 640), (333, 500), (500, 375), (57, 113), (112, 112)],
    *[(1000, 40), (40, 1000), (300, 200), (200, 300), (55, 57), (168, 56), (56, 168), (7, 5)],
    *[(113, 111), (400, 399), (399, 400), (123, 77), (77, 123), (1024, 683), (90, 30), (30, 90)],
    *[(61, 59), (250, 100), (100, 250), (224, 168), (168, 224), (333, 334), (2, 2), (600, 150)],
]


def picture(size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3))
    return Image.fromarray(noise.astype(np.uint8))


@pytest.mark.parametrize(("size", "tiles", "seen", "tokens"), GOLDEN)
@pytest.mark.parametrize("grids", [PINPOINTS, FIVE])
def test_golden(size, tiles, seen, tokens, grids) -> None:
    layout = AnyRes(grids).layout(size, CLIP)
    base, grid = layout.blocks
    assert base == Block((24, 24)) and grid.tiles == tiles[::-1]
    assert grid.seen == seen and layout.tokens == tokens
    assert layout.views == 1 + tiles[0] * tiles[1] and layout.newlines == seen[0]


@pytest.mark.parametrize(("size", "tiles", "seen", "tokens"), GOLDEN_MAX)
def test_golden_with_most_tiles(size, tiles, seen, tokens) -> None:
    layout = AnyRes("(1x1),...,(6x6)", max_tiles=9).layout(size, SIGLIP)
    assert layout.blocks[1].tiles == tiles[::-1]
    assert layout.blocks[1].seen == seen and layout.tokens == tokens


def test_transformers_takes_the_transposed_of_equals() -> None:
    tokens = {ties: AnyRes(FIVE, ties=ties).layout((300, 200), CLIP).tokens for ties in TIES}
    assert tokens == {"released": 976, "transformers": 1464}


TIES = ("released", "transformers")


@pytest.mark.parametrize("size", SIZES)
def test_pixels_and_grid_equal_transformers(size: tuple[int, int]) -> None:
    pinpoints = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
    processor = theirs_pil.LlavaNextImageProcessorPil(
        size={"shortest_edge": 56},
        crop_size={"height": 56, "width": 56},
        image_grid_pinpoints=pinpoints,
        do_pad=False,
    )
    theirs = processor(picture(size), return_tensors="pt")["pixel_values"][0]
    views = AnyRes(pinpoints, ties="transformers")
    ours = views.pixels(picture(size), SMALL)
    assert ours.shape == theirs.shape == (views.layout(size, SMALL).views, 3, 56, 56)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    grid = get_anyres_image_grid_shape(size[::-1], pinpoints, 56)
    assert views.layout(size, SMALL).blocks[1].tiles == tuple(grid)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("newline", [True, False])
def test_sequence_equals_transformers(size: tuple[int, int], newline: bool) -> None:
    pinpoints = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
    config = LlavaNextConfig(
        vision_config={"image_size": 56, "patch_size": 14}, image_grid_pinpoints=pinpoints
    )
    merge = "spatial_unpad" if newline else "spatial"
    views = AnyRes(pinpoints, merge=merge, ties="transformers")
    layout = views.layout(size, SMALL)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(layout.views, 4, 4, 5, generator=generator)
    ours = put(features, [layout], torch.arange(5.0))
    assert len(ours) == layout.tokens
    if newline:
        stand_in = LlavaNextModel.__new__(LlavaNextModel)
        torch.nn.Module.__init__(stand_in)
        stand_in.config = config
        ((theirs,), _) = stand_in.pack_image_features(
            [features.flatten(1, 2)], torch.tensor([size[::-1]]), "default", torch.arange(5.0)
        )
    else:
        down, across = layout.blocks[1].tiles
        rows = [
            torch.cat([features[1 + y * across + x] for x in range(across)], 1) for y in range(down)
        ]
        theirs = torch.cat([features[0].flatten(0, 1), torch.cat(rows).flatten(0, 1)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@given(
    st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.sampled_from(["flat", "spatial", "spatial_unpad"]),
    st.booleans(),
    st.sampled_from([None, 1, 4, 9]),
)
def test_count_is_that_of_the_features(size, most, merge, base, max_tiles) -> None:
    grids = f"(1x1)...({most[0]}x{most[1]})"
    layout = AnyRes(grids, merge, base, max_tiles if merge != "flat" else None).layout(size, SMALL)
    features = torch.zeros(layout.views, 4, 4, 2)
    assert len(put(features, [layout], torch.ones(2))) == layout.tokens
    assert layout.newlines == (layout.blocks[-1].seen[0] if merge == "spatial_unpad" else 0)


@given(
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_unpad_equals_transformers(size, whole) -> None:
    theirs = unpad_image(torch.zeros(1, *whole), size[::-1])
    wider = size[0] * whole[0] > size[1] * whole[1]
    width, height = size if wider else size[::-1]
    kept = Fraction(height * whole[wider], width)
    assert unpadded(size, whole, "transformers") == tuple(theirs.shape[1:])
    # It rounds at the seventh digit before it truncates; the released code does not.
    assert unpadded(size, whole) == tuple(theirs.shape[1:]) or abs(kept - round(kept)) < 1e-6


def test_several_images_of_several_policies_in_one_batch() -> None:
    layouts = [
        Layout((Block((2, 2)),)),
        AnyRes("2x1").layout((40, 20), ViewSpec(20, (2, 2), False, MEAN, STD)),
        Layout((Block((2, 2), newline="end"), Block((2, 2), size=(1, 1)))),
    ]
    views = torch.arange(1 + 3 + 2).float()[:, None, None, None].expand(-1, 2, 2, 1)
    said = put(views, layouts, torch.tensor([-1.0]))[:, 0].tolist()
    assert said == [0] * 4 + [1] * 4 + [2, 2, 3, 3, -1] * 2 + [4] * 4 + [-1] + [5]


@pytest.mark.parametrize(
    ("written", "grids"),
    [
        ("1x2, 2x1", [(1, 2), (2, 1)]),
        (["1x2", "2x1"], [(1, 2), (2, 1)]),
        ("{2x2, 1x{2,3,4}, {2,3,4}x1}", [(2, 2), (1, 2), (1, 3), (1, 4), (2, 1), (3, 1), (4, 1)]),
        ("(1x1),...,(2x3)", [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]),
        ("(2x2)…(2x3)", [(2, 2), (2, 3)]),
        ("1x1...1x2", [(1, 1), (1, 2)]),
        ("1x1, 1x1, 1x{1,2}", [(1, 1), (1, 2)]),
        ([[336, 672], [672, 336]], [(336, 672), (672, 336)]),
    ],
)
def test_grids_are_read_as_people_write_them(written, grids) -> None:
    assert parse_grids(written) == grids


@pytest.mark.parametrize("written", ["", "2by2", "2x2; 3x3", "0x1", "1x{}", "2x2, x3", [[336]]])
def test_what_is_no_grid_is_refused(written) -> None:
    with pytest.raises(ValueError, match="grid"):
        AnyRes(written)


def test_pinpoints_must_fit_the_encoder() -> None:
    assert AnyRes(FIVE).canvases(96)[0] == (96, 192)
    with pytest.raises(ValueError, match=r"\(336, 672\) is no multiple of the encoder's 96 px"):
        AnyRes(PINPOINTS).canvases(96)


def test_first_of_equals_wins_whatever_stands_between() -> None:
    rng = random.Random(0)
    for _ in range(200):
        size = (rng.randint(1, 2000), rng.randint(1, 2000))
        candidates = [(56 * rng.randint(1, 6), 56 * rng.randint(1, 6)) for _ in range(12)]
        assert best_canvas(size, candidates) == _released(size, candidates)


def _released(size: tuple[int, int], candidates: list[tuple[int, int]]) -> tuple[int, int]:
    """The published algorithm, step by step."""
    best, most, least = candidates[0], 0, float("inf")
    for width, height in candidates:
        factor = min(width / size[0], height / size[1])
        kept = min(int(size[0] * factor) * int(size[1] * factor), size[0] * size[1])
        wasted = width * height - kept
        if kept > most or (kept == most and wasted < least):
            best, most, least = (width, height), kept, wasted
    return best


def test_what_does_not_fit_is_refused() -> None:
    layout = AnyRes("2x1").layout((40, 20), SMALL)
    with pytest.raises(ValueError, match=r"set model\.newline to true"):
        put(torch.zeros(3, 4, 4, 2), [layout])
    with pytest.raises(ValueError, match="3 views, the encoder saw 2"):
        put(torch.zeros(2, 4, 4, 2), [layout], torch.zeros(2))
    with pytest.raises(ValueError, match=r"count 4 x 4 features of a view.* gives \[3, 1, 17, 2\]"):
        put(torch.zeros(3, 1, 17, 2), [layout], torch.zeros(2))
    with pytest.raises(ValueError, match="set cls=false"):
        AnyRes("2x1").layout((40, 20), ViewSpec(56, (4, 4), True, MEAN, STD))
    assert Newline(4, False).weight is None
    with pytest.raises(ValueError, match="max_tiles=4 scales a map down, and merge=flat puts none"):
        AnyRes("2x2", "flat", max_tiles=4)
