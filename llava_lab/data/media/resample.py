"""3. Resample: Pillow's bicubic scaling, in bounded time and memory for any shape."""

import numpy as np
from PIL import Image

from llava_lab.data.media.picture import MAX_PIXELS

STRIP_PIXELS = 16_000_000
# Largest ratio of canvas to image pixels for which the canvas is built in strips.
THIN = 4
# Binary digits after the point of Pillow's weights.
_DIGITS = 22

Color = tuple[int, int, int]


def scale(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale the image to another width and height, bicubic."""
    if size[0] * image.height > MAX_PIXELS:
        # Pillow scales rows first, which makes gigabytes of a line of 1x3000000. In this order a
        # level of 255 may come out one or two off.
        image = image.resize((image.width, size[1]), Image.Resampling.BICUBIC)
    return image.resize(size, Image.Resampling.BICUBIC)


def centre(image: Image.Image, side: int) -> Image.Image:
    """Scale the image's shorter side to `side`, and crop its centre square."""
    short = min(image.size)
    width, height = (int(side * length / short) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    if width * height <= MAX_PIXELS:
        return scale(image, (width, height)).crop((left, top, left + side, top + side))
    # A line of 1x5000 would become 336x1680000, so only what the centre needs is scaled: bicubic
    # looks two pixels far. Pillow keeps the box in float32; a level of 255 may come out one off.
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + side) * across, (top + side) * down)
    near = (max(0, int(box[0]) - 3), max(0, int(box[1]) - 3))
    far = (min(image.width, int(box[2]) + 4), min(image.height, int(box[3]) + 4))
    box = (box[0] - near[0], box[1] - near[1], box[2] - near[0], box[3] - near[1])
    return image.crop(near + far).resize((side, side), Image.Resampling.BICUBIC, box)


def pad(image: Image.Image, side: int, background: Color) -> Image.Image:
    """Centre the image on a square canvas of its longer side, and scale that to `side`.

    Pillow scales the rows of the square and then its columns. This does the same strip by strip, so
    that the whole canvas never exists; the result is bit for bit the same. For a long thin image
    only pixels that the image reaches are computed, so that time is linear in its pixels.
    """
    canvas = max(image.size)
    if canvas**2 > THIN * image.width * image.height and canvas**2 > STRIP_PIXELS:
        return _pad_thin(image, side, background)
    left, top = (canvas - image.width) // 2, (canvas - image.height) // 2
    rows = Image.new("RGB", (side, canvas), background)
    step = max(1, STRIP_PIXELS // canvas)
    for start in range(0, image.height, step):
        stop = min(start + step, image.height)
        strip = Image.new("RGB", (canvas, stop - start), background)
        strip.paste(image.crop((0, start, image.width, stop)), (left, 0))
        rows.paste(scale(strip, (side, stop - start)), (0, top + start))
    return scale(rows, (side, side))


def _pad_thin(image: Image.Image, side: int, background: Color) -> Image.Image:
    """Compute `pad` for a long thin image, where the image's own pixels contribute only."""
    canvas = max(image.size)
    color = np.array(background)
    levels = np.asarray(image)
    columns, levels = _reached(np.ascontiguousarray(levels.transpose(1, 0, 2)), canvas, side, color)
    rows, levels = _reached(levels.transpose(1, 0, 2), canvas, side, color)
    whole = Image.new("RGB", (side, side), background)
    whole.paste(Image.fromarray(levels), (columns, rows))
    return whole


def _reached(
    levels: np.ndarray, canvas: int, side: int, background: np.ndarray
) -> tuple[int, np.ndarray]:
    """Scale the first axis of levels in the middle of a canvas, as Pillow does.

    Args:
        levels: Levels of 8 bits [n, m, 3], the only ones along the canvas that are not background.
        canvas: Length of the canvas.
        side: Length to which it is scaled.
        background: Levels of its colour [3].

    Returns:
        The first index along the new axis that the levels reach, and the new levels from there to
        the last such index [k, m, 3].
    """
    begin = (canvas - len(levels)) // 2
    reached = []
    for place in range(side):
        first, weights = _weights(canvas, side, place)
        low, high = max(first, begin), min(first + len(weights), begin + len(levels))
        if low >= high:
            continue
        inside = weights[low - first : high - first]
        rest = background * (weights.sum() - inside.sum())
        part = levels[low - begin : high - begin]
        # Whole numbers far below 2**53: exact in float64.
        total = np.full(levels.shape[1:], rest, np.float64)
        if len(part) < part.shape[1]:  # few long lines: without a copy of all of them in float64
            for weight, line in zip(inside, part, strict=True):
                total += weight * line
        else:
            total += np.tensordot(inside, part.astype(np.float64), 1)
        total = np.floor(total / (1 << _DIGITS) + 0.5)
        reached.append((place, total.clip(0, 255).astype(np.uint8)))
    return reached[0][0], np.stack([levels for _, levels in reached])


def _weights(length: int, side: int, place: int) -> tuple[int, np.ndarray]:
    """Pillow's bicubic weights of one pixel of `side` that `length` pixels are scaled to.

    Returns:
        The first pixel that counts, and the weights from there on as whole numbers, in float64.
    """
    step = length / side
    stretch = max(step, 1.0)
    centre, support = (place + 0.5) * step, 2.0 * stretch
    first = max(0, int(centre - support + 0.5))
    last = min(length, int(centre + support + 0.5))
    x = np.abs((np.arange(first, last) - centre + 0.5) * (1.0 / stretch))
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weights /= np.add.accumulate(weights)[-1]  # in Pillow's order, one after another
    return first, np.trunc(weights * (1 << _DIGITS) + np.copysign(0.5, weights))
