"""Layouts count what the model makes, whatever pool and connector stand between."""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from llava_lab.data.geometry import Block, Layout, Pool, ViewSpec
from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.base import Views
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.square import Square
from llava_lab.data.views.video import Frames
from llava_lab.model.arrange import arrange
from llava_lab.model.connector.base import Connector
from llava_lab.model.pool import connect
from llava_lab.train.feature_store import FeatureStore

COLOURS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Thirds(Connector):
    """Three rows of features into one."""

    needs_map = True

    def grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        if grid[0] % 3:
            raise ValueError(f"Thirds: {grid[0]} rows")
        return grid[0] // 3, grid[1]

    def forward(self, features: Tensor) -> Tensor:
        return features[:, ::3]


class Same(Connector):
    """Every feature as it is."""

    def forward(self, features: Tensor) -> Tensor:
        return features


class Double(Connector):
    """Every feature twice, side by side."""

    def grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        return grid[0], 2 * grid[1]

    def forward(self, features: Tensor) -> Tensor:
        return features.repeat_interleave(2, dim=2)


class Few(Connector):
    """Five vectors for any number of features."""

    gives_map = False

    def grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        return 1, 5

    def forward(self, features: Tensor) -> Tensor:
        return features.mean((1, 2), keepdim=True).expand(-1, 1, 5, -1)


def spec(connector: Connector | None = None, side: int = 12, cls: bool = False) -> ViewSpec:
    return ViewSpec(14 * side, (side, side), cls, *COLOURS, connector)


def made(layout: Layout, connector: nn.Module, view_spec: ViewSpec) -> Tensor:
    shape = view_spec.encoded
    features = torch.arange(float(layout.views))[:, None, None, None].expand(-1, *shape, 2)
    return arrange(connect(features, [layout], connector), [layout], torch.full((2,), -1.0))


POOLS = [None] + [
    Pool(*options)
    for options in itertools.product((2, 5), ("average", "bilinear"), ("before", "after"))
]
GRIDS = ["1x1", "1x2, 2x1, 2x2", "(1x1)...(3x3)"]
CHOICES = st.one_of(
    st.builds(Square, pool=st.sampled_from(POOLS)),
    st.builds(Pad, pool=st.sampled_from(POOLS)),
    st.builds(
        AnyRes,
        st.sampled_from(GRIDS),
        merge=st.just("flat"),
        base=st.booleans(),
        pool=st.sampled_from(POOLS),
    ),
    st.builds(
        AnyRes,
        st.sampled_from(GRIDS),
        merge=st.sampled_from(["spatial", "spatial_unpad"]),
        base=st.booleans(),
        max_tiles=st.sampled_from([None, 1, 3]),
        pool=st.sampled_from(POOLS),
    ),
    st.builds(
        Frames,
        stride=st.sampled_from([1, 2, 5]),
        mode=st.sampled_from(["average", "max", "bilinear"]),
        position=st.sampled_from(["before", "after"]),
        newline=st.sampled_from(["grid", "frame", "one_token", "no_token"]),
    ),
)


@given(
    CHOICES,
    st.sampled_from([Same(), Thirds(), Double(), Few()]),
    st.sampled_from([12, 7]),
    st.tuples(st.integers(1, 900), st.integers(1, 900)),
    st.integers(1, 3),
)
def test_layouts_count_what_the_model_makes(
    views: Views, connector: Connector, side: int, size: tuple[int, int], frames: int
) -> None:
    view_spec = spec(connector, side)
    shown = (*size, frames) if isinstance(views, Frames) else size
    try:
        layout = views.layout(shown, view_spec)
    except ValueError as refusal:
        assert any(word in str(refusal) for word in ("Thirds", "Few", "leaves nothing"))
        return
    tokens = made(layout, connector, view_spec)
    assert len(tokens) == layout.tokens
    assert int((tokens[:, 0] == -1).sum()) == layout.newlines
    assert layout.encoded == layout.views * side**2


def test_tiles_are_reduced_one_by_one_and_then_put_together() -> None:
    views = AnyRes("2x1", "spatial_unpad", base=True)
    layout = views.layout((400, 100), spec(Thirds(), 6))
    base, tiles = layout.blocks
    assert base.cell == (2, 6) and tiles.whole == (2, 12) and tiles.seen == (2, 12)
    assert layout.tokens == 12 + 2 * 12 + 2
    features = torch.arange(3 * 36.0).reshape(3, 6, 6, 1)
    row = arrange(connect(features, [layout], Thirds()), [layout], torch.tensor([-1.0]))[:, 0]
    first, second = features[1, ::3, :, 0], features[2, ::3, :, 0]
    for number in range(2):
        line = [*first[number].tolist(), *second[number].tolist(), -1]
        assert row[12 + 13 * number : 25 + 13 * number].tolist() == line


def test_most_tiles_are_counted_in_reduced_features() -> None:
    views = AnyRes("(1x1)...(4x4)", "spatial", base=False, max_tiles=4)
    whole, reduced = (views.layout((600, 600), spec(each)) for each in (None, Thirds()))
    assert whole.blocks[0].size == (24, 24) and reduced.blocks[0].size == (8, 24)


@pytest.mark.parametrize("views", [Square, Pad, partial(AnyRes, "2x2", "spatial")])
@pytest.mark.parametrize("position", ["before", "after"])
def test_pictures_are_pooled_before_or_after_the_connector(views, position: str) -> None:
    class Squared(Connector):
        def forward(self, features: Tensor) -> Tensor:
            return features**2

    layout = views(pool=Pool(2, "average", position)).layout((90, 90), spec(Squared(), 4))
    features = torch.rand(layout.views, 4, 4, 3)
    found = torch.cat([piece.flatten(0, 2) for piece in connect(features, [layout], Squared())])
    squares = features.unflatten(2, (2, 2)).unflatten(1, (2, 2))
    mean = squares.mean((2, 4)) ** 2 if position == "before" else (squares**2).mean((2, 4))
    torch.testing.assert_close(found, mean.flatten(0, 2))
    assert layout.tokens == 4 * layout.views


def test_a_cls_feature_goes_through_in_one_row_with_the_patches() -> None:
    layout = Square().layout((9, 9), spec(Double(), 3, cls=True))
    (block,) = layout.blocks
    assert block.encoded == (1, 10) and block.cell == (1, 20) and layout.tokens == 20
    assert len(made(layout, Double(), spec(Double(), 3, cls=True))) == 20
    assert Pad().layout((9, 9), spec(Few(), 3, cls=True)).tokens == 5


@pytest.mark.parametrize(
    ("views", "connector", "cls", "message"),
    [
        (Square(), Thirds(), True, "Thirds needs a map .* set cls=false"),
        (Pad(pool=Pool(2)), None, True, "CLS feature is not part of: set cls=false"),
        (Pad(pool=Pool(2)), Thirds(), False, "Thirds: 2 rows"),
        (Pad(pool=Pool(5)), None, False, "stride 5 leaves nothing of 4x4 features"),
        (Pad(pool=Pool(2, position="after")), Few(), False, "Few gives .* set position=before"),
        (AnyRes("2x2"), Few(), False, r"merge=spatial_unpad .*\(Few\) .* set merge=flat"),
        (AnyRes("2x2", "spatial"), Few(), False, r"merge=spatial .*\(Few\) .* set merge=flat"),
    ],
)
def test_what_does_not_go_together_is_refused(views, connector, cls, message) -> None:
    with pytest.raises(ValueError, match=message):
        views.check(spec(connector, 4, cls), 2048)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride is 0; it is 1 or more"),
        ({"stride": 2, "mode": "mean"}, "mode is 'mean'; it is one of average, max, bilinear"),
        ({"stride": 2, "position": "behind"}, "position is 'behind'; it is one of before, after"),
    ],
)
def test_a_wrong_pool_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pad(pool=Pool(**options)).check(spec(), 2048)
    with pytest.raises(ValueError, match=message):
        Frames(**options)


def test_pictures_pooled_differently_share_a_feature_store(tmp_path: Path) -> None:
    class Encoder(nn.Module):
        view_spec = spec(None, 4)

    kinds: list[Callable[[Pool | None], Views]] = [
        lambda pool: Pad(pool=pool),
        lambda pool: Square(pool=pool),
        lambda pool: AnyRes("2x2", pool=pool),
        lambda pool: Frames(image=Pad(pool=pool)),
    ]
    image = tmp_path / "a.png"
    Image.new("RGB", (9, 9)).save(image)
    keys = {
        tuple(FeatureStore(tmp_path, Encoder(), make(pool), [image]).key for pool in POOLS)
        for make in kinds
    }
    assert len(keys) == 4 and all(len(set(of_a_kind)) == 1 for of_a_kind in keys)


def test_a_pool_that_frames_would_not_use_is_refused() -> None:
    with pytest.raises(ValueError, match="frame has a pool"):
        Frames(frame=Square(pool=Pool(2)))
    layout = Frames(image=Square(pool=Pool(2))).layout((9, 9), spec(None, 4))
    assert layout == Layout((Block((4, 4), pool=Pool(2)),)) and layout.tokens == 4


def test_a_connector_that_gives_another_grid_than_it_says_is_named() -> None:
    class Lies(Thirds):
        def forward(self, features: Tensor) -> Tensor:
            return features

    layout = Square().layout((9, 9), spec(Lies(), 6))
    with pytest.raises(ValueError, match=r"count 2 x 6 .*Lies gives \[1, 6, 6, 2\]: its `grid`"):
        made(layout, Lies(), spec(Lies(), 6))
