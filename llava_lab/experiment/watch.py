"""0. Watch: what a stage is asked, and which of its weights are kept, while it trains."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from llava_lab.core.atomic import link
from llava_lab.data.modules.image import ImageDataModule
from llava_lab.data.table import files_of
from llava_lab.evaluate.benchmark import BenchmarkDataModule
from llava_lab.evaluate.trajectory import Trajectory, covers
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
        """Ask benchmarks, where the stage's option says so.

        Args:
            data: The benchmarks.
            fingerprints: Gives their fingerprints, which want all pictures read.
        """
        if self.stage.evaluate_every is not None:
            self.trajectory = Trajectory(self.stage, data, fingerprints(), self.record)

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
    """Refuse a benchmark of what a stage holds out that shows what the stage is trained on.

    The two split the same file alike, unless their shares differ, or rows that only one of them
    reads have several of the file's pictures, which are then on one side.

    Args:
        stage: The stage, its data read.
        data: The benchmarks.

    Raises:
        ValueError: Names the benchmark, the stage and the first such picture.
    """
    rows = stage.data
    if not isinstance(rows, ImageDataModule) or not rows.held_share:
        return
    files = {Path(source.path).absolute() for source in rows.sources}
    for each in data.benchmarks:
        if not each.held_out or Path(each.path).absolute() not in files:
            continue
        trained = set(files_of(rows.samples))
        asked = dict.fromkeys(path for question in each.questions for path in question.images)
        if both := [path for path in asked if path in trained]:
            raise ValueError(
                f"benchmark {each.name}: {len(both)} of its {len(asked)} pictures are trained on "
                f"by stages.{stage.name}, the first {both[0]}: its held_out is {each.held_out}, "
                f"and the stage's hold_out {rows.held_share}. Set them alike; where they are, rows "
                "of another source show such a picture beside others: leave them out, or ask a "
                "file of questions"
            )


def check(stage: Stage, data: BenchmarkDataModule) -> None:
    """Refuse to ask nothing, before anything is spent.

    Args:
        stage: The stage.
        data: The benchmarks.

    Raises:
        ValueError: Names the option.
    """
    if stage.evaluate_every is not None and not data.benchmarks:
        raise ValueError(
            f"stages.{stage.name}.evaluate_every: data.benchmarks is empty, so that there is "
            "nothing to ask; name one, or leave it out"
        )


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
