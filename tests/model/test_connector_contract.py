"""What every shipped connector keeps to; connectors are those that the package's modules have."""

import importlib
import inspect
import pkgutil
from itertools import product
from typing import Any

import pytest
import torch
import yaml
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import llava_lab.model.connector as package
from llava_lab.core.fingerprint import describe
from llava_lab.data.geometry import GridSize, Pool, ViewSpec
from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.base import Views
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.square import Square
from llava_lab.data.views.video import Frames
from llava_lab.model.arrange import arrange
from llava_lab.model.connector.base import Connector
from llava_lab.model.pool import connect
from llava_lab.model.weights import seeded

IN, OUT = 16, 24
GRIDS: list[GridSize] = [(24, 24), (12, 12), (6, 6), (5, 7), (3, 4), (1, 1), (1, 9), (14, 12)]


def shipped() -> list[type[Connector]]:
    modules = [
        importlib.import_module(f"{package.__name__}.{each.name}")
        for each in pkgutil.iter_modules(package.__path__)
    ]
    found = [
        each
        for module in modules
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, Connector) and each is not Connector
    ]
    return sorted(set(found), key=lambda each: each.__name__)


def options_of(kind: type[Connector]) -> dict[str, Any]:
    """Options and their defaults; the two widths come first and have none."""
    first, second, *options = inspect.signature(kind).parameters.values()
    assert (first.name, second.name) == ("in_width", "out_width")
    return {each.name: each.default for each in options}


def makers() -> list[Any]:
    """Each connector by default, and as sweeps have it."""
    made = [pytest.param(kind, {}, id=kind.__name__) for kind in shipped()]
    kinds = {kind.__name__: kind for kind in shipped()}
    points = yaml.safe_load((REPOSITORY / "sweeps" / "connector.yaml").read_text())
    for name, point in points["axes"]["connector"].items():
        part = point["model.connector"]
        options = {"class_path": part} if isinstance(part, str) else dict(part)
        made.append(pytest.param(kinds[options.pop("class_path")], options, id=name))
    return made


every = pytest.mark.parametrize(("kind", "options"), makers())


def build(kind: type[Connector], options: dict[str, Any], seed: int = 0) -> Connector:
    torch.manual_seed(seed)
    with seeded("connector"):
        return kind(IN, OUT, **options)  # pyrefly: ignore[bad-argument-count]


def maps(views: int, grid: GridSize) -> torch.Tensor:
    return torch.randn(views, *grid, IN, generator=torch.Generator().manual_seed(1))


def taken(connector: Connector) -> GridSize:
    """The smallest of some grids that it takes."""
    for grid in sorted(GRIDS, key=lambda grid: grid[0] * grid[1]):
        try:
            if connector.grid(grid) and min(grid) > 1:
                return grid
        except ValueError:
            pass
    raise AssertionError(f"{connector} takes none of {GRIDS}")


@every
def test_gives_the_grid_that_it_says_or_refuses_by_name(kind, options) -> None:
    connector, taken = build(kind, options), 0
    for grid in GRIDS:
        try:
            given_ = connector.grid(grid)
        except ValueError as refusal:
            assert str(refusal).startswith(f"{kind.__name__}: ")
            assert f"{grid[0]}x{grid[1]}" in str(refusal)
            with pytest.raises(ValueError, match=kind.__name__):
                connector(maps(1, grid))
            continue
        taken += 1
        assert all(type(side) is int and side > 0 for side in given_)
        features = connector(maps(2, grid))
        assert features.shape == (2, *given_, OUT) and features.dtype == torch.float32
        assert features.isfinite().all()
    assert taken > 1


@every
def test_trains_in_bf16_and_its_gradient_reaches_every_weight(kind, options) -> None:
    connector = build(kind, options)
    for precise in (True, False):
        connector.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            features = connector(maps(3, taken(connector)))
        assert features.dtype == (torch.float32 if precise else torch.bfloat16)
        features.float().square().sum().backward()
        for name, weight in connector.named_parameters():
            assert weight.grad is not None and weight.grad.isfinite().all(), name
            assert weight.grad.abs().max() > 1e-6, name


@every
def test_a_view_is_the_same_in_whatever_batch_it_stands(kind, options) -> None:
    connector = build(kind, options)
    views = maps(4, taken(connector))
    together = connector(views)
    torch.testing.assert_close(together[1:2], connector(views[1:2]), rtol=1e-4, atol=1e-5)
    views[0], views[3] = float("nan"), 1e6
    torch.testing.assert_close(together[1:3], connector(views)[1:3], rtol=1e-4, atol=1e-5)
    # Ranks share gradients and nothing else: no statistics, no drawing of random numbers.
    assert not list(connector.buffers())
    assert torch.equal(connector(views[1:3]), connector(views[1:3]))


@every
def test_weights_come_from_the_seed_and_go_to_a_file_and_back(kind, options) -> None:
    connector, same, other = (build(kind, options, seed) for seed in (0, 0, 1))
    views = maps(2, taken(connector))
    assert torch.equal(connector(views), same(views))
    assert not torch.equal(connector(views), other(views))
    other.load_state_dict(connector.state_dict())
    assert torch.equal(connector(views), other(views))
    saved = {id(each) for each in connector.state_dict(keep_vars=True).values()}
    assert saved == {id(each) for each in connector.parameters()}


@every
def test_one_row_with_a_cls_feature_is_taken_or_refused_by_name(kind, options) -> None:
    connector = build(kind, options)
    rows, columns = taken(connector)
    spec = view_spec(connector, (rows, columns), cls=True)
    if connector.needs_map:
        with pytest.raises(ValueError, match=f"{kind.__name__} needs a map .* set cls=false"):
            Square().layout((9, 9), spec)
        return
    layout = Square().layout((9, 9), spec)
    features = maps(1, (1, 1 + rows * columns))
    assert len(arrange(connect(features, [layout], connector), [layout], None)) == layout.tokens


def view_spec(connector: Connector, grid: GridSize, cls: bool = False) -> ViewSpec:
    half = (0.5, 0.5, 0.5)
    return ViewSpec(14 * grid[0], grid, cls, half, half, connector)


POOLS = [None, *(Pool(*each) for each in product((2, 3), ("average",), ("before", "after")))]
POLICIES = st.one_of(
    st.builds(Square, pool=st.sampled_from(POOLS)),
    st.builds(Pad, pool=st.sampled_from(POOLS)),
    st.builds(
        AnyRes,
        st.sampled_from(["1x1", "1x2, 2x1"]),
        merge=st.just("flat"),
        pool=st.sampled_from(POOLS),
    ),
    st.builds(
        AnyRes,
        st.sampled_from(["1x1", "1x2, 2x1"]),
        merge=st.sampled_from(["spatial", "spatial_unpad"]),
        max_tiles=st.sampled_from([None, 1]),
        pool=st.sampled_from(POOLS),
    ),
    st.builds(
        Frames,
        stride=st.sampled_from([1, 2, 3]),
        mode=st.sampled_from(["max", "bilinear"]),
        position=st.sampled_from(["before", "after"]),
        newline=st.sampled_from(["grid", "frame", "one_token", "no_token"]),
    ),
)


@every
def test_layouts_count_what_it_makes_of_all_views(kind, options) -> None:
    connector, counted = build(kind, options), 0

    @given(
        POLICIES,
        st.sampled_from([(12, 12), (6, 6)]),
        st.tuples(st.integers(1, 900), st.integers(1, 900)),
    )
    def count(views: Views, grid: GridSize, size: tuple[int, int]) -> None:
        nonlocal counted
        shown = (*size, 2) if isinstance(views, Frames) else size
        try:
            layout = views.layout(shown, view_spec(connector, grid))
        except ValueError as refusal:
            assert kind.__name__ in str(refusal) or "leaves nothing" in str(refusal)
            return
        pieces = connect(maps(layout.views, grid), [layout], connector)
        assert len(arrange(pieces, [layout], torch.zeros(OUT))) == layout.tokens
        counted += 1

    count()
    assert counted > 10


@pytest.mark.parametrize("kind", shipped(), ids=lambda kind: kind.__name__)
def test_has_a_file_under_configs_that_says_every_option(kind) -> None:
    name = f"{kind.__module__}.{kind.__name__}"
    files = sorted((REPOSITORY / "configs" / "connector").glob("*.yaml"))
    written = [yaml.safe_load(path.read_text()) for path in files]
    (found,) = (each for each in written if each["class_path"] == name)
    options = {key: value for key, value in found.items() if key != "class_path"}
    assert options == options_of(kind)
    assert describe({"class_path": name, "init_args": options})


@pytest.mark.parametrize("kind", shipped(), ids=lambda kind: kind.__name__)
def test_numbers_below_one_are_refused_by_name(kind) -> None:
    for option in options_of(kind):
        with pytest.raises(ValueError, match=f"{option} is -1"):
            kind(IN, OUT, **{option: -1})


def test_heads_must_divide_the_width() -> None:
    (kind,) = (kind for kind in shipped() if "heads" in options_of(kind))
    with pytest.raises(ValueError, match="5 heads do not divide the encoder's width of 16"):
        kind(IN, OUT, heads=5)


def test_pixel_shuffle_loses_nothing_and_squares_stay_together() -> None:
    (kind,) = (kind for kind in shipped() if "factor" in options_of(kind))
    connector = kind(IN, OUT, factor=2, depth=1)
    views = maps(2, (4, 6))
    (layer,) = connector.mlp
    for row, column in product(range(2), range(3)):
        square = views[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        wanted = layer(square.flatten(1))
        torch.testing.assert_close(connector(views)[:, row, column], wanted)


def test_a_resampler_does_not_see_the_order_of_features() -> None:
    (kind,) = (kind for kind in shipped() if not kind.gives_map)
    connector, views = build(kind, {}), maps(1, (3, 4))
    mixed = views.flatten(1, 2)[:, torch.randperm(12)].unflatten(1, (4, 3))
    torch.testing.assert_close(connector(views), connector(mixed), rtol=1e-4, atol=1e-5)
    assert isinstance(connector.latents, nn.Parameter)
