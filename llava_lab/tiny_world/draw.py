"""Draw: a Scene -> its image, at native size."""

import math
import random
from functools import cache

from PIL import Image, ImageDraw

from llava_lab.tiny_world.scene import Scene, SceneObject, Sign

RGB = {
    "red": (212, 30, 38),
    "green": (24, 128, 52),
    "blue": (36, 70, 216),
    "yellow": (246, 220, 36),
    "orange": (248, 124, 16),
    "purple": (136, 36, 168),
    "white": (252, 252, 252),
    "black": (14, 14, 16),
}
PLATE, PLATE_EDGE, INK = (240, 234, 214), (92, 80, 64), (28, 26, 34)
# Shapes are drawn this many times too large and averaged down: smooth edges at any size.
OVERSAMPLE = 4

# Seven rows of five dots each.
_GLYPH_ROWS = {
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "F": "11111 10000 10000 11110 10000 10000 10000",
    "J": "00111 00010 00010 00010 00010 10010 01100",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "N": "10001 11001 11001 10101 10011 10011 10001",
    "U": "10001 10001 10001 10001 10001 10001 01110",
    "X": "10001 10001 01010 00100 01010 10001 10001",
    "Y": "10001 10001 01010 00100 00100 00100 00100",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
}


def render(scene: Scene) -> Image.Image:
    """Draw the scene as an RGB image of its native size."""
    picture = _background(scene)
    for item in scene.items:
        _draw_item(picture, item)
    if scene.sign:
        _draw_sign(picture, scene.sign)
    return picture


def _background(scene: Scene) -> Image.Image:
    """Draw a background with a gradient and slight noise."""
    rng = random.Random(scene.grain)
    across, down = rng.uniform(-10, 10), rng.uniform(-10, 10)
    tones = bytearray()
    for index in range(64):
        y, x = divmod(index, 8)
        shift = across * (x / 3.5 - 1) + down * (y / 3.5 - 1) + rng.uniform(-7, 7)
        tones.extend(round(channel + shift) for channel in scene.background)
    coarse = Image.frombytes("RGB", (8, 8), bytes(tones))
    return coarse.resize((scene.width, scene.height), Image.Resampling.BICUBIC)


def _draw_item(picture: Image.Image, item: SceneObject) -> None:
    mask = _shape_mask(item.shape, item.pixels)
    corner = (item.center[0] - item.pixels // 2, item.center[1] - item.pixels // 2)
    picture.paste(RGB[item.color], corner, mask)


def _draw_sign(picture: Image.Image, sign: Sign) -> None:
    mask = _glyph_mask(sign.glyph, sign.pixels)
    width, height = mask.width + 2 * sign.margin, mask.height + 2 * sign.margin
    left, top = sign.center[0] - width // 2, sign.center[1] - height // 2
    plate = (left, top, left + width - 1, top + height - 1)
    ImageDraw.Draw(picture).rectangle(plate, fill=PLATE, outline=PLATE_EDGE)
    picture.paste(INK, (left + sign.margin, top + sign.margin), mask)


@cache
def _shape_mask(shape: str, pixels: int) -> Image.Image:
    side = pixels * OVERSAMPLE
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    whole = (0, 0, side - 1, side - 1)
    if shape == "circle":
        pen.ellipse(whole, fill=255)
    elif shape == "ring":
        pen.ellipse(whole, fill=255)
        hole = round(side * 0.26)
        pen.ellipse((hole, hole, side - 1 - hole, side - 1 - hole), fill=0)
    else:
        corners = [(x * (side - 1), y * (side - 1)) for x, y in _outline(shape)]
        pen.polygon(corners, fill=255)
    return mask.reduce(OVERSAMPLE)


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners of a shape in the unit square, y downwards."""
    if shape == "star":
        spokes = [(0.54 if corner % 2 == 0 else 0.23, corner * math.pi / 5) for corner in range(10)]
        return [(0.5 + r * math.sin(turn), 0.54 - r * math.cos(turn)) for r, turn in spokes]
    if shape == "heart":
        return [_heart(step * math.pi / 40) for step in range(80)]
    return {
        "square": [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)],
        "triangle": [(0.5, 0.02), (1.0, 0.96), (0.0, 0.96)],
        "diamond": [(0.5, 0.0), (0.86, 0.5), (0.5, 1.0), (0.14, 0.5)],
        "cross": [
            *((0.34, 0.0), (0.66, 0.0), (0.66, 0.34), (1.0, 0.34), (1.0, 0.66), (0.66, 0.66)),
            *((0.66, 1.0), (0.34, 1.0), (0.34, 0.66), (0.0, 0.66), (0.0, 0.34), (0.34, 0.34)),
        ],
    }[shape]


def _heart(turn: float) -> tuple[float, float]:
    x = 16 * math.sin(turn) ** 3
    y = 13 * math.cos(turn) - 5 * math.cos(2 * turn) - 2 * math.cos(3 * turn) - math.cos(4 * turn)
    return 0.5 + x / 33, 0.45 - y / 32


@cache
def _glyph_mask(glyph: str, pixels: int) -> Image.Image:
    rows = _GLYPH_ROWS[glyph].split()
    dots = Image.frombytes("L", (5, 7), bytes(255 * int(dot) for row in rows for dot in row))
    # 35 is a multiple of 5 and 7, so the dots stay sharp until the one averaging step.
    enlarged = dots.resize((5 * 35, 7 * 35), Image.Resampling.NEAREST)
    return enlarged.resize((round(pixels * 5 / 7), pixels), Image.Resampling.BOX)
