"""Film: the objects that a video shows over time -> its frames."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image

from llava_lab.tiny_world.draw import render
from llava_lab.tiny_world.question import QA
from llava_lab.tiny_world.scene import (
    Scene,
    SceneObject,
    Sign,
)

# Side in pixels, which no image of the tiny world has: the two never share a scene.
SIDE = 176
FPS = 4
# Cells along which an object moves, by direction.
LINES = {
    "right": ((0, 1, 2), (3, 4, 5), (6, 7, 8)),
    "left": ((2, 1, 0), (5, 4, 3), (8, 7, 6)),
    "down": ((0, 3, 6), (1, 4, 7), (2, 5, 8)),
    "up": ((6, 3, 0), (7, 4, 1), (8, 5, 2)),
}


@dataclass(frozen=True)
class Shown:
    """An object or a sign, and when it is visible.

    Attributes:
        what: The object or sign, at its first position.
        start: Share of the film at which it appears.
        end: Share of the film at which it disappears.
        goal: Position that it moves to in that time; None if it stays.
    """

    what: SceneObject | Sign
    start: float
    end: float
    goal: tuple[int, int] | None = None

    def at(self, time: float) -> SceneObject | Sign:
        """The object or sign at its position at a time while it is visible."""
        if self.goal is None:
            return self.what
        share = (time - self.start) / (self.end - self.start)
        there = zip(self.what.center, self.goal, strict=True)
        x, y = (round(first + share * (last - first)) for first, last in there)
        return replace(self.what, center=(x, y))


@dataclass(frozen=True)
class Film:
    """Everything that a video shows.

    Attributes:
        frames: Number of frames, `FPS` a second.
        empty: The scene without objects.
        shown: Objects and signs, with their times.
        questions: One question about each act.
    """

    frames: int
    empty: Scene
    shown: tuple[Shown, ...]
    questions: tuple[QA, ...]

    @property
    def items(self) -> tuple[SceneObject, ...]:
        """Distinct objects, in the order of `shown`."""
        return tuple(dict.fromkeys(e.what for e in self.shown if isinstance(e.what, SceneObject)))

    def pictures(self) -> Iterator[Image.Image]:
        """Yield the frames in order; equal frames in succession are drawn once."""
        before: Scene | None = None
        picture = None
        for number in range(self.frames):
            scene = self.scene(number / self.frames)
            if picture is None or scene != before:
                before, picture = scene, render(scene)
            yield picture

    def scene(self, time: float) -> Scene:
        """The scene at a time, as a share of the film."""
        there = [each.at(time) for each in self.shown if each.start <= time < each.end]
        items = tuple(each for each in there if isinstance(each, SceneObject))
        signs = [each for each in there if isinstance(each, Sign)]
        return replace(self.empty, items=items, sign=signs[0] if signs else None)
