"""0. Watch: what a stage is asked, and which of its weights are kept, while it trains."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from llava_lab.core.atomic import link
from llava_lab.core.progress import say
from llava_lab.data.media.clip import image_digests
from llava_lab.data.modules.image import ImageDataModule
from llava_lab.data.modules.stage import limited
from llava_lab.data.source import Source
from llava_lab.data.table import files_of
from llava_lab.evaluate.benchmark import Benchmark, BenchmarkDataModule
from llava_lab.evaluate.trajectory import Trajectory, covers
from llava_lab.experiment.build import Parts
from llava_lab.train.kept import Kept, kept_file, steps_between
from llava_lab.train.record import Record
from llava_lab.train.stage import Stage


class Watch:
    """A running stage's `keep_every` and `evaluate_every`.

    Args:
        stage: The stage.
        folder: Its folder.
        fingerprint: Its fingerprint.
        record: What it has done so far.
    """

    def __init__(self, stage: Stage, folder: Path, fingerprint: str, record: Record):
        self.stage, self.record = stage, record
        self.kept = Kept(folder, fingerprint, stage)
        self.trajectory: Trajectory | None = None

    def ask(self, data: BenchmarkDataModule, fingerprints: Callable[[], Mapping[str, str]]) -> None:
        """Ask benchmarks, where the stage's option says so; say which pictures it trains on.

        Args:
            data: The benchmarks.
            fingerprints: Gives their fingerprints, which want all pictures read.
        """
        for each, both, asked in _trained_on(self.stage, data, False):
            what = f"benchmark {each.name}: {len(both)} of its {asked} pictures"
            say(f"{what} are in other files that stages.{self.stage.name} trains on")
        if self.stage.evaluate_every is not None:
            self.trajectory = Trajectory(self.stage, data, fingerprints(), self.record)

    def begin(self, newest: Path | None, trainer: Mapping[str, Any]) -> None:
        """Say that the stage begins or goes on, and what will end it where that may surprise.

        Args:
            newest: The checkpoint that it goes on from, or None.
            trainer: Options of the trainer that all stages share.
        """
        if newest is None:
            self.kept.clear()
        name = f"stage {self.stage.name}"
        say(f"{name}: " + (f"going on from {newest.name}" if newest else "training"))
        if line := ending(self.stage, trainer):
            say(f"{name}: {line}")

    @property
    def callbacks(self) -> list[Callback]:
        """What watches the stage's trainer."""
        return [self.kept, *([self.trajectory] if self.trajectory else [])]

    def end(self, trainer: Trainer, model: Any) -> None:
        """Ask once more when the stage has ended.

        Args:
            trainer: The stage's.
            model: The model, whole.
        """
        if self.trajectory is not None:
            self.trajectory.end(trainer, model)

    def summary(self, model: Any) -> dict[str, Any]:
        """What the stage's record has of it.

        Args:
            model: The model, without adapters.
        """
        return {"trajectory": self.trajectory.summary(model)} if self.trajectory else {}


def check_held_out(stage: Stage, data: BenchmarkDataModule) -> None:
    """Refuse a benchmark of what is held out of a file that shows what a stage of it trains on.

    The two split the file alike, unless their shares differ, or the folders of their pictures do,
    or rows that only one of them reads have several of the pictures, which are then on one side.

    Args:
        stage: The stage, its data read.
        data: The benchmarks.

    Raises:
        ValueError: Names the benchmark, the stage and the first such picture.
    """
    rows: Any = stage.data
    for each, both, asked in _trained_on(stage, data, True):
        first, there = next(iter(both.items()))
        where = f"{first}" if there == first else f"{first} ({there} there)"
        raise ValueError(
            f"benchmark {each.name}: {len(both)} of its {asked} pictures are trained on by "
            f"stages.{stage.name}, the first {where}: its held_out is {each.held_out}, and the "
            f"stage's hold_out {rows.held_share}. Set them alike, with the same images; "
            "where they are, rows of another source, or under another name, show such a picture: "
            "leave them out, or ask a file of questions"
        )


def _trained_on(
    stage: Stage, data: BenchmarkDataModule, its_file: bool
) -> Iterator[tuple[Benchmark, dict[Path, Path], int]]:
    """Of benchmarks of what is held out the pictures that a stage trains on, by their bytes.

    The split goes by names, which are others in another folder or archive.

    Args:
        stage: The stage, its data read.
        data: The benchmarks.
        its_file: Whether to look at benchmarks of a file that the stage reads, or at the others.

    Yields:
        The benchmark; its pictures, with their paths in the stage; of how many.
    """
    rows = stage.data
    if not isinstance(rows, ImageDataModule):
        return
    for each in data.benchmarks:
        if not each.held_out or _reads(rows, Source(Path(each.path))) != its_file:
            continue
        trained = {digest: at for at, digest in image_digests(files_of(rows.samples)).items()}
        asked = image_digests(path for question in each.questions for path in question.images)
        both = {at: trained[digest] for at, digest in asked.items() if digest in trained}
        if both:
            yield each, both, len(asked)


def _reads(rows: ImageDataModule, asked: Source) -> bool:
    """Whether a stage reads a file, or some of its shards, by their bytes."""
    ours, theirs = (
        {*image_digests(file for each in some for file in each.files()).values()}
        for some in (rows.sources, [asked])
    )
    return bool(ours & theirs)


def check(stage: Stage, data: BenchmarkDataModule) -> None:
    """Refuse to ask nothing, before anything is spent.

    Args:
        stage: The stage.
        data: The benchmarks.

    Raises:
        ValueError: Names the option.
    """
    scored = [each for each in data.benchmarks if each.metric.scored]
    if stage.evaluate_every is not None and not scored:
        raise ValueError(
            f"stages.{stage.name}.evaluate_every: data.benchmarks has none that is scored here, so "
            "that there is nothing to ask; name one, or leave it out"
        )


def check_read(stage: Stage, parts: Parts) -> None:
    """Refuse, now that a stage's data are read, what would ask or keep nothing new.

    Args:
        stage: The stage, its data read.
        parts: What the experiment is made of.

    Raises:
        ValueError: Names the option.
    """
    check_held_out(stage, parts.benchmarks)
    given = {"keep_every": stage.keep_every}
    if stage.name == list(parts.stages)[-1]:  # benchmarks are asked at the end of all others, too
        given["evaluate_every"] = stage.evaluate_every
    for name, every in given.items():
        if every is None:
            continue
        steps = limited(stage.data.steps(), _limit(stage, parts.trainer))
        if not steps_between(every, steps):
            what = "kept" if name == "keep_every" else "asked"
            raise ValueError(
                f"stages.{stage.name}.{name} is {every}, and the stage has {steps:,} steps: "
                f"nothing is {what} before its end, which needs no option; set it lower, or leave "
                "it out"
            )


def ending(stage: Stage, trainer: Mapping[str, Any]) -> str:
    """How many steps a stage has and what ends it, where one of two options for that is idle.

    Args:
        stage: The stage, its data read.
        trainer: Options of the trainer that all stages share.
    """
    limit = _limit(stage, trainer)
    return stage.data.ending() if isinstance(limit, float) and limit == 1 else ""


def _limit(stage: Stage, trainer: Mapping[str, Any]) -> float:
    """The trainer's own limit of a stage's steps; 1.0 leaves all of them."""
    limit = {**trainer, **stage.trainer_options}.get("limit_train_batches")
    return 1.0 if limit is None else limit


def suits(
    stage: Stage, fingerprints: Mapping[str, str], record: Mapping[str, Any], folder: Path
) -> bool:
    """Whether a finished stage has the scores and weights that are asked for now.

    Args:
        stage: The stage, as it is asked for.
        fingerprints: Fingerprints of the benchmarks.
        record: Record of the finished one.
        folder: Its folder.
    """
    kept = steps_between(stage.keep_every, record["steps"])
    return covers(record, stage, fingerprints) and all(
        kept_file(folder, step).is_file() for step in kept
    )


def link_kept(stage: Stage, record: Mapping[str, Any], found: Path, folder: Path) -> None:
    """Keep a finished stage's kept weights beside a run that reuses it.

    Args:
        stage: The stage, as it is asked for.
        record: Record of the finished one.
        found: Its folder.
        folder: That of the run that reuses it.
    """
    for step in steps_between(stage.keep_every, record["steps"]):
        link(kept_file(found, step), kept_file(folder, step))
