"""Build: checked options -> the model, the stages and the benchmarks."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace
from lightning import seed_everything

from llava_lab.core.numbers import OutOfRange
from llava_lab.data.modules.image import ImageDataModule
from llava_lab.data.source import Source
from llava_lab.evaluate.benchmark import Benchmark, BenchmarkDataModule
from llava_lab.experiment.compose import leaves, short
from llava_lab.experiment.options import parser
from llava_lab.model.llava import Llava
from llava_lab.tiny_world.generate import TinyWorld
from llava_lab.tiny_world.videos import TinyVideos
from llava_lab.train.stage import Stage
from llava_lab.train.trainer import check_clipping, check_options, check_stage_options


class Parts(NamedTuple):
    """What an experiment is made of, built.

    Attributes:
        model: The model, before any stage has trained it.
        stages: Stages by name, in the order in which they run.
        benchmarks: What the trained model is asked.
        trainer: Options of Lightning's Trainer, with the objects that they name.
    """

    model: Llava
    stages: dict[str, Stage]
    benchmarks: BenchmarkDataModule
    trainer: dict[str, Any]


def stage_options(options: Namespace) -> dict[str, Namespace]:
    """Class and arguments of each stage, in the long form."""
    return dict(vars(options.get("stages") or Namespace()))


def make_worlds(options: Namespace) -> None:
    """Make the tiny worlds whose files an experiment reads, where they are not there."""
    for kind, key in ((TinyWorld, "tiny_world"), (TinyVideos, "tiny_videos")):
        if (given := options[key]) is not None:
            world = kind(**vars(given))
            if reads_below(options, world.root):
                world.generate()


def reads_below(options: Namespace, folder: str | Path) -> bool:
    """Whether stages or benchmarks read files below a folder.

    Args:
        options: The experiment's options, checked.
        folder: The folder.
    """
    return f"{folder}/" in f"{options.get('stages')} {options.data}"


def build(options: Namespace) -> Parts:
    """The parts of an experiment; weights are drawn from its seed.

    Raises:
        ValueError: If an option would not be honoured, or parts do not fit together.
    """
    check_options(options.trainer.as_dict(), "trainer")
    stages = stage_options(options)
    own = {name: stage.init_args.trainer or {} for name, stage in stages.items()}
    for name, given in own.items():
        check_stage_options(given, f"stages.{name}.trainer")
    check_clipping(options.trainer.as_dict(), own)
    seed_everything(options.seed_everything, workers=True, verbose=False)
    try:
        built: Any = parser(stages).instantiate(options)
    except OutOfRange as error:
        raise placed(error, options) from error
    found = {name: built.stages[name] for name in stages}
    for name, stage in found.items():
        stage.data.name = name
    for benchmark in built.data.benchmarks:
        if benchmark.held_out and (sources := list(_skipping(found, benchmark))):
            benchmark.left_out = partial(_left_out, built.model, sources)
    return Parts(built.model, found, built.data, vars(built.trainer))


def _skipping(
    stages: Mapping[str, Stage], benchmark: Benchmark
) -> Iterator[tuple[ImageDataModule, Source]]:
    """Sources of stages that leave out bad rows of the file that a benchmark asks."""
    for stage in stages.values():
        if isinstance(data := stage.data, ImageDataModule):
            for source in data.sources:
                if source.on_bad_row == "skip" and Path(source.path) == Path(benchmark.path):
                    yield data, source


def _left_out(model: Llava, sources: Iterable[tuple[ImageDataModule, Source]]) -> frozenset[str]:
    """Places of the rows of sources that are left out."""
    found = [data.usable(model, data.parsed(source)) for data, source in sources]
    return frozenset(row.source for each in found for row in each.bad)


def placed(error: OutOfRange, options: Namespace) -> ValueError:
    """The same error with the whole key of the option, as far as one has that name and value."""
    keys = [
        key
        for key, value in leaves(short(options.as_dict()))
        if key.rpartition(".")[2] == error.name and f"{value}" == f"{error.value}"
    ]
    if not keys:
        return error
    return ValueError(f"{' and '.join(keys)} is {error.value}; it is {error.may_be}")
