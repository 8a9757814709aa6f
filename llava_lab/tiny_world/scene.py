"""Scene: a random generator -> the content of an image, as plain data."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "heart")
# The popular shapes are twice as frequent, so that POPE's "popular" negatives mean something.
POPULAR_SHAPES = ("circle", "square", "star")
COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
# The twelve glyphs whose drawings differ most.
GLYPHS = "AFJLNUXY2469"
POSITIONS = (
    *("top-left", "top", "top-right"),
    *("left", "middle", "right"),
    *("bottom-left", "bottom", "bottom-right"),
)
# Width and height. A third of the shortest side holds the largest object.
PICTURE_SIZES = ((160, 128), (128, 160), (168, 168), (192, 128), (128, 192), (224, 128))
# How many times as many pixels a side a picture may have, all that it shows included.
SCALES = (1, 1, 2)
BACKGROUNDS = (
    (150, 150, 150),
    (172, 160, 140),
    (122, 136, 150),
    (140, 154, 136),
    (160, 142, 152),
    (132, 132, 120),
)
LARGE_PIXELS = (34, 42)
SMALL_PIXELS = (14, 20)
LARGE_GLYPH_PIXELS = (26, 32)
SMALL_GLYPH_PIXELS = (7, 9)

SIGN_SHARE = 0.75
LARGE_SIGN_SHARE = 0.7
# How often an object repeats the shape or the color of another, so that counts above one occur.
REPEAT_SHARE = 0.35


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        shape: One of SHAPES.
        color: One of COLORS.
        large: Whether it is large; small otherwise.
        cell: Cell of the 3x3 grid, row by row from the top left.
        center: Middle of the object in pixels, x and y.
        pixels: Side of its bounding box.
    """

    shape: str
    color: str
    large: bool
    cell: int
    center: tuple[int, int]
    pixels: int

    @property
    def size(self) -> str:
        """Size as a word: large or small."""
        return "large" if self.large else "small"

    @property
    def name(self) -> str:
        """Color and shape."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Sign:
    """A light plate with one dark glyph.

    Attributes:
        glyph: One of GLYPHS.
        large: Whether the glyph can be read in a single small view.
        cell: Cell of the 3x3 grid, row by row from the top left.
        center: Middle of the plate in pixels, x and y.
        pixels: Height of the glyph; the plate is `margin` larger on each side.
        scale: Pixels of the picture for one of a picture of the usual size.
    """

    glyph: str
    large: bool
    cell: int
    center: tuple[int, int]
    pixels: int
    scale: int = 1

    @property
    def size(self) -> str:
        """Size as a word: large or small."""
        return "large" if self.large else "small"

    @property
    def margin(self) -> int:
        """Pixels of plate between the glyph and the plate's edge."""
        return self.scale * (5 if self.large else 3)


@dataclass(frozen=True)
class Scene:
    """Everything that an image shows.

    Attributes:
        width: Picture's width in pixels.
        height: Picture's height in pixels.
        background: Mean background color.
        grain: Seed of the background's soft unevenness.
        items: Two to five objects in different cells.
        sign: At most one sign, in a cell of its own.
    """

    width: int
    height: int
    background: tuple[int, int, int]
    grain: int
    items: tuple[SceneObject, ...]
    sign: Sign | None

    @property
    def signature(self) -> str:
        """Objects, colors, cells and glyph, which two splits must not share.

        Sizes, jitter and background are left out on purpose: a training scene must differ from
        evaluation scenes in more than those.
        """
        parts = sorted(f"{item.cell} {item.name}" for item in self.items)
        if self.sign:
            parts.append(f"{self.sign.cell} sign {self.sign.glyph}")
        return ", ".join(parts)


def sample_scene(rng: random.Random) -> Scene:
    """Draw one scene; the same generator state gives the same scene."""
    scale = rng.choice(SCALES)
    width, height = (scale * side for side in rng.choice(PICTURE_SIZES))
    background = rng.choice(BACKGROUNDS)
    grain = rng.getrandbits(32)
    has_sign = rng.random() < SIGN_SHARE
    cells = rng.sample(range(len(POSITIONS)), rng.randint(2, 5) + has_sign)
    sign = _sample_sign(rng, cells.pop(), width, height, scale) if has_sign else None
    items: list[SceneObject] = []
    for cell in cells:
        shape = _repeat_or(rng, [item.shape for item in items], _sample_shape)
        color = _repeat_or(rng, [item.color for item in items], _sample_color)
        large = rng.random() < 0.5
        pixels = scale * rng.randint(*(LARGE_PIXELS if large else SMALL_PIXELS))
        center = _place(rng, cell, width, height, pixels)
        items.append(SceneObject(shape, color, large, cell, center, pixels))
    return Scene(width, height, background, grain, tuple(items), sign)


def simplified(scene: Scene, rng: random.Random) -> Scene:
    """Keep two of the scene's objects, and half of the time its sign."""
    sign = scene.sign if rng.random() < 0.5 else None
    return replace(scene, items=scene.items[:2], sign=sign)


def listable(scene: Scene) -> Scene | None:
    """Keep three objects of different shapes, and no sign; None if there are none."""
    items = scene.items[:3]
    distinct = len({item.shape for item in items}) == 3
    return replace(scene, items=items, sign=None) if distinct else None


def _sample_sign(rng: random.Random, cell: int, width: int, height: int, scale: int) -> Sign:
    large = rng.random() < LARGE_SIGN_SHARE
    pixels = scale * rng.randint(*(LARGE_GLYPH_PIXELS if large else SMALL_GLYPH_PIXELS))
    sign = Sign(rng.choice(GLYPHS), large, cell, (0, 0), pixels, scale)
    return replace(sign, center=_place(rng, cell, width, height, pixels + 2 * sign.margin))


def _repeat_or(rng: random.Random, seen: list[str], sample: Callable[[random.Random], str]) -> str:
    return rng.choice(seen) if seen and rng.random() < REPEAT_SHARE else sample(rng)


def _sample_shape(rng: random.Random) -> str:
    return rng.choice(SHAPES + POPULAR_SHAPES)


def _sample_color(rng: random.Random) -> str:
    return rng.choice(COLORS)


def _place(rng: random.Random, cell: int, width: int, height: int, pixels: int) -> tuple[int, int]:
    """Choose a center that keeps a box of `pixels` inside its cell."""
    row, column = divmod(cell, 3)
    center = []
    for index, side in ((column, width), (row, height)):
        low = -(-index * side // 3) + -(-pixels // 2)
        high = (index + 1) * side // 3 - -(-pixels // 2)
        center.append(rng.randint(low, max(low, high)))
    return center[0], center[1]
