"""Tiles: a Scene -> one tile of its picture on a grid, and the phrases that are true of it.

An encoder trained on whole images only knows every object at one size. AnyRes shows the same
objects two and three times as large, cut at edges and beside black bands, which CLIP has seen in
training.
"""

import random
from collections.abc import Iterable

from PIL import Image

from llava_lab.data.views.anyres import fit
from llava_lab.tiny_world.draw import render
from llava_lab.tiny_world.scene import Scene, SceneObject, Sign

# Width and height in tiles; the encoder's view is 96 px.
GRIDS = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (2, 3), (3, 2), (3, 3))
SIDE = 96
# Objects of which a smaller share is visible are not mentioned.
SEEN_SHARE = 0.5


def tile(scene: Scene, rng: random.Random) -> tuple[Image.Image, list[str]]:
    """Draw a random tile of a random grid [SIDE x SIDE], and list its phrases, sorted."""
    columns, rows = rng.choice(GRIDS)
    left, top = SIDE * rng.randrange(columns), SIDE * rng.randrange(rows)
    canvas = (SIDE * columns, SIDE * rows)
    picture = fit(render(scene), canvas).crop((left, top, left + SIDE, top + SIDE))
    factor = min(canvas[0] / scene.width, canvas[1] / scene.height)
    offset = (
        left - (canvas[0] - factor * scene.width) / 2,
        top - (canvas[1] - factor * scene.height) / 2,
    )
    return picture, phrases(scene, factor, offset)


def phrases(scene: Scene, factor: float, offset: tuple[float, float]) -> list[str]:
    """List phrases that are true of the tile at `offset` of the scene, scaled by `factor`.

    Places, sizes, numbers and relations are left out, since they are those of the whole image: an
    encoder that names places in a tile misleads about them.
    """
    found: set[str] = set()
    for thing in _seen([*scene.items, *([scene.sign] if scene.sign else [])], factor, offset):
        if isinstance(thing, Sign):
            found |= {"sign", thing.glyph, f"sign reads {thing.glyph}"}
        else:
            found |= {thing.color, thing.shape, thing.name}
    return sorted(found)


def _seen(
    things: Iterable[SceneObject | Sign], factor: float, offset: tuple[float, float]
) -> Iterable[SceneObject | Sign]:
    """Objects and signs of whose box more than half is in the tile."""
    for thing in things:
        half = thing.pixels / 2 + (thing.margin if isinstance(thing, Sign) else 0)
        share = 1.0
        for middle, start in zip(thing.center, offset, strict=True):
            low, high = factor * (middle - half) - start, factor * (middle + half) - start
            share *= max(0.0, min(high, SIDE) - max(low, 0.0)) / (high - low)
        if share >= SEEN_SHARE:
            yield thing
