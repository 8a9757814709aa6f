"""Film: what a video shows over time, and its frames."""

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

# Side in pixels, which no picture of the tiny world has: the two never share a scene.
SIDE = 176
FPS = 4
# Cells that something moves along, by where it moves.
LINES = {
    "right": ((0, 1, 2), (3, 4, 5), (6, 7, 8)),
    "left": ((2, 1, 0), (5, 4, 3), (8, 7, 6)),
    "down": ((0, 3, 6), (1, 4, 7), (2, 5, 8)),
    "up": ((6, 3, 0), (7, 4, 1), (8, 5, 2)),
}


@dataclass(frozen=True)
class Shown:
    """An object or a sign, and when it is there.

    Attributes:
        what: What it is, and where, unless it moves.
        start: Share of the film after which it comes.
        end: Share of the film after which it is gone.
        goal: Where it moves in that time, or None.
    """

    what: SceneObject | Sign
    start: float
    end: float
    goal: tuple[int, int] | None = None

    def at(self, time: float) -> SceneObject | Sign:
        """What it is at a time while it is there."""
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
        empty: The scene with nothing in it.
        shown: What comes and goes.
        questions: What can be asked, one question an act, each with its sentence.
    """

    frames: int
    empty: Scene
    shown: tuple[Shown, ...]
    questions: tuple[QA, ...]

    @property
    def items(self) -> tuple[SceneObject, ...]:
        """Its objects, each once, in the order of `shown`."""
        return tuple(dict.fromkeys(e.what for e in self.shown if isinstance(e.what, SceneObject)))

    def pictures(self) -> Iterator[Image.Image]:
        """The frames in order; a frame like the one before it is drawn once."""
        before: Scene | None = None
        picture = None
        for number in range(self.frames):
            scene = self.scene(number / self.frames)
            if picture is None or scene != before:
                before, picture = scene, render(scene)
            yield picture

    def scene(self, time: float) -> Scene:
        """What is there after a share of the film."""
        there = [each.at(time) for each in self.shown if each.start <= time < each.end]
        items = tuple(each for each in there if isinstance(each, SceneObject))
        signs = [each for each in there if isinstance(each, Sign)]
        return replace(self.empty, items=items, sign=signs[0] if signs else None)
