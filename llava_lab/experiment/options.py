"""Options: what an experiment may say, with types; checked by jsonargparse."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer

from llava_lab.evaluate.benchmark import Benchmark, BenchmarkDataModule
from llava_lab.experiment.compose import CLASS, Tree
from llava_lab.experiment.parser import LabParser
from llava_lab.model.llava import Llava
from llava_lab.tiny_world.generate import TinyWorld
from llava_lab.tiny_world.videos import TinyVideos
from llava_lab.train.precision import CHOICES, Precisions
from llava_lab.train.stage import Stage


@dataclass
class Paths:
    """Files that experiments read; stages and benchmarks refer to them as `${paths...}`.

    Args:
        root: Folder of the published files, or of the tiny world that stands in for them.
        align: LLaVA-format file of the alignment stage.
        align_images: Folder of its images.
        instruct: LLaVA-format file of the instruction stage.
        instruct_images: Folder of its images.
        video_root: Folder of the published videos, or of the tiny ones that stand in for them.
        videos: LLaVA-format file of rows with videos.
        videos_folder: Folder of its videos.
        preferences: File of rows with a chosen and a rejected answer.
        preferences_folder: Folder of its videos or images.
        questions: Question file of the benchmark.
        questions_images: Folder of its images or videos.
    """

    root: str = "data"
    align: str | None = None
    align_images: str | None = None
    instruct: str | None = None
    instruct_images: str | None = None
    video_root: str = "data"
    videos: str | None = None
    videos_folder: str | None = None
    preferences: str | None = None
    preferences_folder: str | None = None
    questions: str | None = None
    questions_images: str | None = None


RESOLUTION = (
    "Side of a view as published, in pixels, which the encoder of the tiny scale is chosen by. At "
    "other scales an encoder has a size of its own: set model.encoder."
)

# Classes that an experiment need not name, by where they stand.
DEFAULT_CLASSES = {"model": Llava, "stages": Stage, "data": BenchmarkDataModule}


def parser(stages: Iterable[str]) -> LabParser:
    """The parser of an experiment's options.

    Args:
        stages: Names of the stages that the experiment has.
    """
    made = LabParser()
    made.add_argument("--experiment", type=str, default="own", help="Name of the experiment.")
    made.add_argument("--scale", type=str, default="", help="Name of the scale.")
    made.add_argument(
        "--seed_everything", type=int, default=0, help="Seed of all random numbers, from 0."
    )
    made.add_argument("--resolution", type=int, default=336, help=RESOLUTION)
    made.add_class_arguments(Paths, "paths")
    made.add_argument(
        "--tiny_world", type=TinyWorld | None, default=None, help="Tiny world to make, or null."
    )
    made.add_argument(
        "--tiny_videos", type=TinyVideos | None, default=None, help="Tiny videos, or null."
    )
    made.add_argument("--model", type=Llava, required=True, help="The model and its parts.")
    for name in stages:
        made.add_argument(f"--stages.{name}", type=Stage, required=True, help=f"Stage {name}.")
    made.add_argument(
        "--data", type=BenchmarkDataModule, required=True, help="What the model is asked."
    )
    made.add_class_arguments(Trainer, "trainer", instantiate=False, skip={"precision"})
    made.add_argument("--trainer.precision", type=Precisions | None, default=None, help=CHOICES)
    return made


def with_default_classes(tree: Tree) -> Tree:
    """The tree with the classes that an experiment need not name; what is null is left out.

    That is stages and benchmarks.

    Raises:
        ValueError: If stages are no mapping, or one's name is no plain word.
    """
    stages = tree.get("stages") or {}
    if not isinstance(stages, dict):
        raise ValueError(f"stages: is {stages!r:.80}, not names with options")
    if odd := [name for name in stages if not re.fullmatch(r"[A-Za-z][\w-]*", str(name))]:
        raise ValueError(f"stages: {odd[0]!r} is no name; it is letters, digits, - and _")
    data = class_of(BenchmarkDataModule, tree.get("data") or {})
    if isinstance(data, dict) and isinstance(benchmarks := data.get("benchmarks", []), list):
        named = [each for each in benchmarks if each is not None]
        data["benchmarks"] = [class_of(Benchmark, each) for each in named]
    return {
        **tree,
        "model": class_of(Llava, tree.get("model") or {}),
        "stages": {k: class_of(Stage, v) for k, v in stages.items() if v is not None},
        "data": data,
    }


def class_of(kind: type, options: Any) -> Any:
    """Options of a class, with its name where they have none."""
    if not isinstance(options, dict):
        return options
    return {CLASS: f"{kind.__module__}.{kind.__qualname__}", **options}
