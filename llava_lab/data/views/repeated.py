"""3. Repeated: few frames of a video, each shown several times; a control."""

from typing import Any

import numpy as np

from llava_lab.data.views.video import Frames


class Repeated(Frames):
    """As many frames as `Frames` shows, of which only some are different.

    A control: as many visual tokens, with no more to be seen in them than in fewer frames.

    Args:
        distinct: Number of different frames, spread over the whole video.
        options: Options of `Frames`; fps stays null.
    """

    def __init__(self, distinct: int, **options: Any):
        super().__init__(**options)
        if not 1 <= distinct <= self.frames:
            raise ValueError(
                f"Repeated: distinct is {distinct}; it is from 1 to frames ({self.frames})"
            )
        if self.fps is not None:
            raise ValueError(f"Repeated: fps is {self.fps}; leave it out")
        self.distinct = distinct

    def choose(self, count: int, fps: float) -> list[int]:
        """Indices of the frames that are taken: each of the different ones in succession."""
        different = np.linspace(0, count - 1, self.distinct, dtype=int)
        return different[np.arange(self.frames) * self.distinct // self.frames].tolist()
