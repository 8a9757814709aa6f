"""11. Benchmark: a question file and its metric -> the questions of `test` and `predict`."""

from collections.abc import Callable, Collection, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from llava_lab.core.atomic import plain_name
from llava_lab.core.numbers import at_least, shares
from llava_lab.core.records import json_sha256
from llava_lab.data.image_folder import VideoPath
from llava_lab.data.media.clip import shown_digests
from llava_lab.data.modules.encoded import Position
from llava_lab.data.modules.stage import run_seed
from llava_lab.data.questions import Question, read_held_out, read_questions
from llava_lab.data.source import Source
from llava_lab.data.views.base import Views
from llava_lab.evaluate.groups import (
    QuestionGroup,
    blind_groups,
    by_images,
    of_passes,
    without_images,
)
from llava_lab.evaluate.metrics.base import BenchmarkMetric
from llava_lab.evaluate.points import BLIND, TEXT_ONLY
from llava_lab.evaluate.prompts import Sizes, check_questions, question_loader, trees_of
from llava_lab.model.generate import Sampling
from llava_lab.model.llm import scale_positions


class Benchmark:
    """A question file with its images and its metric.

    Args:
        name: Name in tables and of the prediction file.
        questions: Question file (.jsonl), or a LLaVA-format file whose answers are expected.
        images: Folder of the images.
        metric: How answers are scored.
        prompt: Line that is added to every question, such as a response-format prompt.
        blind: Ask all questions a second time beside wrong images, those of another question: what
            the answers gain from the right ones is the margin. If a question could only be given
            its own images, there is no blind score, and results say so.
        limit: Number of questions to ask, from the first on; null asks all.
        held_out: Ask only about images that a stage with this `hold_out` keeps from training; 0
            asks about all. `fit` refuses to ask about one that a stage of that file trains on, and
            says how many of them a stage of another file trains on. With it, shards are read, too.
        text_only: Ask all questions once more without any image: what the text alone allows, which
            a wrong image may hide. Off by default, since it is a pass more.
    """

    idle: tuple[str, ...] = ("questions", "images")  # files are hashed by content
    # Longest answer and temperature, where the benchmark's own rule says so.
    max_new_tokens: int | None = None
    temperature: float | None = None
    # Places of rows that stages of its file leave out, where one does.
    left_out: Callable[[], Collection[str]] | None = None

    def __init__(
        self,
        name: str,
        questions: str,
        images: str | None,
        metric: BenchmarkMetric,
        prompt: str | None = None,
        blind: bool = True,
        limit: int | None = None,
        held_out: float = 0.0,
        text_only: bool = False,
    ):
        self.text_only = text_only
        self.name, self.path, self.images, self.metric = name, questions, images, metric
        self.prompt, self.blind, self.limit, self.held_out = prompt, blind, limit, held_out
        at_least(1, f"benchmark {name}: ", limit=limit)
        shares(f"benchmark {name}: ", below=1, held_out=held_out)

    def decode_by(self, max_new_tokens: int | None, temperature: float | None) -> None:
        """Set how answers are decoded, where the benchmark's own rule says so."""
        at_least(1, f"benchmark {self.name}: ", max_new_tokens=max_new_tokens)
        at_least(0, f"benchmark {self.name}: ", temperature=temperature)
        self.max_new_tokens, self.temperature = max_new_tokens, temperature

    @cached_property
    def questions(self) -> list[Question]:
        """The questions, read and validated on first access."""
        every = self.read()
        return self.metric.first(every, self.limit) if self.limit else every

    def read(self) -> list[Question]:
        """Read all questions of the file."""
        images = None if self.images is None else Path(self.images)
        if not self.held_out:
            return read_questions(Path(self.path), images)
        return read_held_out(Source(Path(self.path), images), self.held_out, self.left_out)

    @cached_property
    def _rows(self) -> list[Any]:
        """What questions ask, with hashes of the bytes of their images and videos."""
        digests = shown_digests(path for q in self.questions for path in q.images)
        rows: list[list[Any]] = []
        for q in self.questions:
            shown = [digests[image] for image in q.images]
            scored_by = [q.choices, q.kind] if q.choices or q.kind else []
            rows.append([q.id, q.text, q.category, q.answers, q.caption, shown, *scored_by])
        return rows

    def asked(self) -> str:
        """Hash of questions and of the bytes of their images and videos."""
        return json_sha256(self._rows)

    def content(self) -> str:
        """Hash of questions, bytes of their images and videos, and settings of the judge."""
        return json_sha256([*self._rows, self.metric.settings()])

    def check(self, views: Views) -> None:
        """Refuse questions that cannot be asked or scored, before anything is computed."""
        for question in self.questions:
            if any(isinstance(path, VideoPath) for path in question.images) and not views.videos:
                raise ValueError(
                    f"{question.source}: a video, which data.views {type(views).__name__} cannot "
                    "show; set data.views to llava_lab.data.views.video.Frames"
                )
            if self.metric.needs_answers and not question.answers:
                raise ValueError(
                    f"{question.source}: no answer to score against. Files that keep their answers "
                    "secret are for `predict`."
                )
        if self.text_only and not any(question.images for question in self.questions):
            raise ValueError(
                f"benchmark {self.name}: text_only is true, but no question has an image, so that "
                "every pass is; set it to false"
            )
        self.metric.check(self.questions)

    def submit(self, folder: Path, predictions: Sequence[str]) -> None:
        """Write what a server scores; nothing by default.

        Args:
            folder: Folder of the run's files for servers.
            predictions: Answers to all questions, in their order.
        """


@dataclass(frozen=True)
class BenchmarkPass:
    """One pass over all questions of a benchmark.

    Attributes:
        benchmark: The benchmark.
        prefix: What its scores' names begin with: nothing, "blind_" where each question is given
            images of another question, or "text_only_" where it is given none.
        groups: The questions with their images.
    """

    benchmark: Benchmark
    prefix: str
    groups: list[QuestionGroup]


class BenchmarkDataModule(LightningDataModule):
    """Questions of `test` and `predict`.

    Args:
        benchmarks: Question files and their metrics.
        views: How an image becomes views; experiments of the package take those of stage instruct.
        image_position: Where the image goes in the question.
        max_new_tokens: Longest answer, where a benchmark does not say otherwise.
        temperature: Answers are sampled at this temperature, each by the run's seed and its
            question's id; 0 takes the likeliest token. A benchmark may say otherwise.
        images_per_batch: Images whose questions are answered at once.
        template: Chat template; null takes the LM's.
        num_workers: Processes that load images beside the main one.
        rope_factor: Factor of linear RoPE scaling while questions are answered: the LM reads so
            many times the length that it was trained on.
    """

    idle = ("num_workers",)

    def __init__(
        self,
        benchmarks: list[Benchmark],
        views: Views,
        image_position: Position = "first",
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        images_per_batch: int = 1,
        template: str | None = None,
        num_workers: int = 0,
        rope_factor: float = 1.0,
    ):
        super().__init__()
        names = [plain_name(each.name, "data.benchmarks: name").casefold() for each in benchmarks]
        if len(set(names)) < len(names):
            raise ValueError(f"data.benchmarks: two benchmarks have one name among {names}")
        at_least(1, "data.", max_new_tokens=max_new_tokens, images_per_batch=images_per_batch)
        at_least(1, "data.", rope_factor=rope_factor)
        at_least(0, "data.", temperature=temperature, num_workers=num_workers)
        self.benchmarks, self.views, self.temperature = benchmarks, views, temperature
        self.image_position, self.max_new_tokens = image_position, max_new_tokens
        self.images_per_batch, self.template = images_per_batch, template
        self.num_workers, self.rope_factor = num_workers, rope_factor
        self.sizes = Sizes(views)
        # Read by Lightning: where there are fewer batches than ranks, some ranks have none.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def check(self, model: Any) -> None:
        """Refuse questions that cannot be asked, before anything is computed."""
        for benchmark in self.benchmarks:
            benchmark.check(self.views)
        self.check_views(model)
        if self.rope_factor != 1:
            scale_positions(copy(model.llm.model.config), self.rope_factor)
        context = int(model.llm.context * self.rope_factor / model.llm.scaled)
        for each in self.passes:
            trees = trees_of(model, each.groups, **self._asked_as(each.benchmark))
            check_questions(trees, context, self.longest(each), self.sizes)

    def check_views(self, model: Any) -> None:
        """Refuse views that the model cannot use, or that are longer than the LM can read."""
        model.check_views(self.views, int(model.llm.context * self.rope_factor))

    def setup(self, stage: str) -> None:
        """Scale the LM's positions."""
        assert self.trainer is not None
        model: Any = self.trainer.lightning_module
        model.llm.scale(self.rope_factor)

    @cached_property
    def passes(self) -> list[BenchmarkPass]:
        """Passes of all benchmarks, each followed by its blind and text-only passes, if any."""
        found = []
        for benchmark in self.benchmarks:
            groups = by_images(benchmark.questions, self.image_position)
            found.append(BenchmarkPass(benchmark, "", groups))
            if benchmark.blind and (others := blind_groups(groups)) is not None:
                found.append(BenchmarkPass(benchmark, BLIND, others))
            if benchmark.text_only:
                found.append(BenchmarkPass(benchmark, TEXT_ONLY, without_images(groups)))
        return found

    def _asked_as(self, benchmark: Benchmark) -> dict[str, Any]:
        """How questions become prompts."""
        how = {"views": self.views, "position": self.image_position, "template": self.template}
        return {**how, "prompt": benchmark.prompt}

    def longest(self, one_pass: BenchmarkPass) -> int:
        """Longest answer of a pass: the benchmark's own, or that of all."""
        return one_pass.benchmark.max_new_tokens or self.max_new_tokens

    def sampling(self, one_pass: BenchmarkPass) -> Sampling | None:
        """How answers of a pass are drawn; None for the likeliest tokens."""
        own = one_pass.benchmark.temperature
        temperature = self.temperature if own is None else own
        return Sampling(temperature, run_seed()) if temperature else None

    def loaded(self, stage: str) -> list[list[BenchmarkPass]]:
        """Passes of each loader: those beside pictures are one, so that these are encoded once.

        Where a trainer limits batches each pass has its own, for limited passes to ask alike.

        Args:
            stage: `test` or `predict`, which asks beside the questions' own images alone.
        """
        assert self.trainer is not None
        limit, found = self.trainer.limit_test_batches, list[list[BenchmarkPass]]()
        for each in (each for each in self.passes if stage == "test" or not each.prefix):
            together = each.prefix == BLIND and isinstance(limit, float) and limit == 1.0
            found[-1].append(each) if together else found.append([each])
        return found

    def loader(self, first: BenchmarkPass, *others: BenchmarkPass) -> DataLoader:
        """Questions of passes over a benchmark, placed as by `of_passes`: a device's share."""
        assert self.trainer is not None
        benchmark, every = first.benchmark, [each.groups for each in (first, *others)]
        return question_loader(
            self.trainer.lightning_module,
            of_passes(every, len(benchmark.questions), self.image_position),
            **self._asked_as(benchmark),
            max_new_tokens=self.longest(first),
            images_per_batch=self.images_per_batch,
            num_workers=self.num_workers,
            sampling=self.sampling(first),
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            sizes=self.sizes,
        )

    def test_dataloader(self) -> list[DataLoader]:
        """All passes."""
        return [self.loader(*each) for each in self.loaded("test")]

    def predict_dataloader(self) -> list[DataLoader]:
        """All passes with the questions' own images."""
        return [self.loader(*each) for each in self.loaded("predict")]
