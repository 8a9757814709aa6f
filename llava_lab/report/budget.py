"""Budget: what a plan assumes of rows and devices."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llava_lab.core.numbers import above, shares

SIZES = (
    *((336, 336), (300, 200), (333, 500), (500, 375), (640, 480), (480, 640), (1024, 683)),
    *((1920, 1080), (1080, 1920), (672, 672), (2000, 500), (500, 2000)),
)
TEXT_TOKENS = 256
# Share of a device's peak that training reaches: that of LLaVA-1.5-7B's published first stage.
UTILIZATION = 0.3
DEVICES = 8  # of a node
MEMORY = 80  # GiB of an A100 or H100


def devices_of(config: Mapping[str, Any]) -> tuple[int, int]:
    """Devices on all nodes, and nodes, of an experiment's trainer.

    Where it takes what it finds, they are 8 a node, or as many as the smallest batch has rows.

    Args:
        config: Options of a composed experiment.
    """
    trainer = config["trainer"]
    devices, nodes = trainer.get("devices"), trainer.get("num_nodes")
    each = len(devices) if isinstance(devices, list) else devices
    if not isinstance(each, int) or each < 1:  # "auto", or -1
        data = [stage["data"] for stage in config["stages"].values() if stage]
        each = min([DEVICES, *(of["batch_size"] for of in data if "batch_size" in of)])
    nodes = nodes if isinstance(nodes, int) and nodes > 0 else 1
    return each * nodes, nodes


@dataclass(frozen=True)
class Budget:
    """What a plan assumes.

    Attributes:
        image_size: Width and height of the picture, or of the video's frames, in pixels.
        frames: Frames of a video; None plans a picture.
        text_tokens: Text tokens of a row by stage; "" is for all others.
        devices: Devices that share the work, on all nodes.
        nodes: Nodes that they stand in, as many in each.
        memory: GiB of a device.
        utilization: Share of a device's peak that training reaches.
    """

    image_size: tuple[int, int] = (640, 480)
    frames: int | None = None
    text_tokens: Mapping[str, int] = field(default_factory=dict)
    devices: int = DEVICES
    nodes: int = 1
    memory: int = MEMORY
    utilization: float = UTILIZATION

    def __post_init__(self) -> None:
        """Refuse a share that is none, and nodes that do not hold as many devices each."""
        above(0, utilization=self.utilization)
        shares(utilization=self.utilization)
        if self.devices % self.nodes:
            raise ValueError(
                f"--devices: {self.devices} devices do not stand in {self.nodes} nodes, as many in "
                "each; give the devices of all nodes together, and --nodes"
            )

    def text(self, stage: str) -> int:
        """Text tokens of a row of a stage."""
        return self.text_tokens.get(stage, self.text_tokens.get("", TEXT_TOKENS))

    def size(self, views: Any) -> tuple[int, ...]:
        """What a row shows: width and height, and of a video its frames."""
        shown = self.frames is not None and views.videos
        return (*self.image_size, self.frames) if shown and self.frames else self.image_size
