"""11b. Benchmark: a question file -> batches of questions, a tree an image; a blind twin beside."""

import hashlib
import json
import random
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from llava_lab.data.batch import Batch, Row, Segment
from llava_lab.data.chat import IGNORE, Template, get_template
from llava_lab.data.clip import VideoPath
from llava_lab.data.features import image_digest
from llava_lab.data.image import Policy
from llava_lab.data.modules import Position, Views, place_image, run_seed
from llava_lab.data.sample import Question, Turn, read_questions
from llava_lab.disk import plain_name
from llava_lab.evaluate.generate import Questions, Sampling
from llava_lab.evaluate.metric import BenchmarkMetric
from llava_lab.model.llm import scale_positions


class Benchmark:
    """A question file with its images and its metric.

    Args:
        name: Name in tables and of the prediction file.
        questions: Question file (.jsonl), or a LLaVA-format file whose answers are expected.
        images: Folder of the images.
        metric: How answers are scored.
        prompt: Line that is added to every question, such as a response-format prompt.
        blind: Ask everything a second time with the images dealt to other questions: what is
            left is what the text alone gives away.
        limit: Ask only the first so many questions, or null.
        held_out: Ask only about the pictures that a stage with this `hold_out` keeps from
            training; 0 asks about all.
    """

    idle = ("questions", "images")  # files count by their content

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
    ):
        self.name, self.path, self.images, self.metric = name, questions, images, metric
        self.prompt, self.blind, self.limit, self.held_out = prompt, blind, limit, held_out
        self._questions: list[Question] = []

    @property
    def questions(self) -> list[Question]:
        """The questions, read and validated when first asked for."""
        if not self._questions:
            self._questions = self.read()[: self.limit]
        return self._questions

    def read(self) -> list[Question]:
        """All questions of the file."""
        images = None if self.images is None else Path(self.images)
        return read_questions(Path(self.path), images, self.held_out)

    def content(self) -> str:
        """Hash of what is asked, of the bytes of its pictures and videos, and of who judges."""
        digests = {path: image_digest(path) for q in self.questions for path in q.images}
        rows: list[Any] = [
            [q.id, q.text, q.category, q.answers, q.caption, [digests[i] for i in q.images]]
            for q in self.questions
        ]
        rows.append(self.metric.settings())
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def check(self, policy: Policy) -> None:
        """Refuse questions that could not be asked or scored before anything is spent."""
        for question in self.questions:
            if any(isinstance(path, VideoPath) for path in question.images) and not policy.videos:
                raise ValueError(
                    f"{question.source}: a video, which data.policy {type(policy).__name__} cannot "
                    "show; set data.policy to llava_lab.data.video.Frames"
                )
            if not question.answers:
                raise ValueError(
                    f"{question.source}: no answer to score against. Files that keep their answers "
                    "secret are for `predict`."
                )
        self.metric.check(self.questions)

    def groups(self) -> list[list[Question]]:
        """Questions that share their images, in the order of the file."""
        return by_images(self.questions)


def by_images(questions: Sequence[Question]) -> list[list[Question]]:
    """Questions that share their images, in the order in which each image is first asked about."""
    groups: dict[tuple[Path, ...], list[Question]] = {}
    for question in questions:
        groups.setdefault(question.images, []).append(question)
    return list(groups.values())


def other_images(groups: Sequence[Sequence[Question]]) -> list[tuple[Path, ...]]:
    """Images of another group for each group, all of them used once; text-only groups keep none.

    Groups are dealt along one shuffled circle for each number of images.
    """
    dealt: list[tuple[Path, ...]] = [group[0].images for group in groups]
    for number in {len(images) for images in dealt if images}:
        circle = [index for index, group in enumerate(groups) if len(group[0].images) == number]
        random.Random(f"{run_seed()}/blind").shuffle(circle)
        shown = [groups[index][0].images for index in circle]
        for place, index in enumerate(circle):
            dealt[index] = shown[(place + 1) % len(circle)]
    return dealt


class Trees(Dataset):
    """One row a group of questions: what their prompts share is the root, the rest its leaves."""

    def __init__(
        self,
        groups: Sequence[Sequence[Question]],
        images: Sequence[tuple[Path, ...]],
        template: Template,
        tokenizer: Any,
        views: Views,
        position: Position,
        prompt: str | None,
    ):
        self.groups, self.images = groups, images
        self.template, self.tokenizer, self.views = template, tokenizer, views
        self.position, self.prompt = position, prompt

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> tuple[Row, list[str]]:
        group = self.groups[index]
        views, layouts = self.views(self.images[index])
        tokens = [layout.tokens for layout in layouts]
        images = self.images[index]
        prompts = [self._prompt(question, images, tokens) for question in group]
        shared = min(_common(prompts), min(map(len, prompts)) - 1)
        root = prompts[0][:shared]
        leaves = [prompt[shared:] for prompt in prompts]
        segments = [Segment(root, [IGNORE] * len(root))] if shared else []
        parent = 0 if shared else None
        segments += [Segment(leaf, [IGNORE] * len(leaf), parent) for leaf in leaves]
        row = Row(segments, views, layouts, group[0].source)
        return row, [question.id for question in group]

    def _prompt(self, question: Question, images: Sequence[Path], tokens: list[int]) -> list[int]:
        text = question.text if self.prompt is None else f"{question.text}\n{self.prompt}"
        chance = random.Random(f"{run_seed()}/{question.id}")
        turns = self.views.told(place_image([Turn("user", text)], self.position, chance), images)
        return self.template.prompt(turns, self.tokenizer, tokens, source=question.source)


def _common(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the longest beginning that all prompts share."""
    for place, tokens in enumerate(zip(*prompts, strict=False)):
        if len(set(tokens)) > 1:
            return place
    return min(map(len, prompts))


def question_loader(
    model: Any,
    groups: Sequence[Sequence[Question]],
    images: Sequence[tuple[Path, ...]],
    policy: Policy,
    *,
    position: Position = "first",
    prompt: str | None = None,
    template: str | None = None,
    max_new_tokens: int = 128,
    images_per_batch: int = 1,
    num_workers: int = 0,
    sampling: Sampling | None = None,
) -> DataLoader:
    """Batches of questions for `answer`, in the order of the groups.

    Args:
        model: Whose tokenizer, encoder and template the prompts are made for.
        groups: Questions that are asked about the same images.
        images: Images that each group is shown.
        policy: How an image becomes views.
        position: Where the image stands in the question.
        prompt: Line that is added to every question.
        template: Chat template; null takes the LM's.
        max_new_tokens: Longest answer.
        images_per_batch: Groups that are answered at once.
        num_workers: Processes that load images beside the main one.
        sampling: How tokens are drawn; None takes the likeliest.
    """
    tokenizer = model.llm.tokenizer
    style = get_template(template or model.llm.template)
    views = Views(policy, model.encoder.vision)
    trees = Trees(groups, images, style, tokenizer, views, position, prompt)
    stop_ids = frozenset(style.stop_ids(tokenizer))

    def collate(items: list[tuple[Row, list[str]]]) -> Questions:
        return Questions(
            Batch.pack([row for row, _ in items]),
            [name for _, names in items for name in names],
            max_new_tokens,
            stop_ids,
            style.stop_string,
            sampling,
        )

    return DataLoader(
        trees, batch_size=images_per_batch, collate_fn=collate, num_workers=num_workers
    )


class BenchmarkDataModule(LightningDataModule):
    """What `test` and `predict` ask.

    Args:
        benchmarks: The question files.
        policy: How an image becomes views: that of the stage that was trained last.
        image_position: Where the image stands in the question.
        max_new_tokens: Longest answer.
        images_per_batch: Images whose questions are answered at once.
        template: Chat template; null takes the LM's.
        num_workers: Processes that load images beside the main one.
        rope_factor: Divide the LM's positions by it while questions are answered (linear scaling),
            so that it reads so many times the length that it was trained on.
    """

    idle = ("num_workers",)

    def __init__(
        self,
        benchmarks: list[Benchmark],
        policy: Policy,
        image_position: Position = "first",
        max_new_tokens: int = 128,
        images_per_batch: int = 1,
        template: str | None = None,
        num_workers: int = 0,
        rope_factor: float = 1.0,
    ):
        super().__init__()
        names = [
            plain_name(benchmark.name, "data.benchmarks: name").casefold()
            for benchmark in benchmarks
        ]
        if len(set(names)) < len(names):
            raise ValueError(f"data.benchmarks: two benchmarks have one name among {names}")
        self.benchmarks, self.policy = benchmarks, policy
        self.image_position, self.max_new_tokens = image_position, max_new_tokens
        self.images_per_batch, self.template = images_per_batch, template
        self.num_workers, self.rope_factor = num_workers, rope_factor

    def check(self, model: Any) -> None:
        """Refuse what could not be asked, before anything is spent."""
        for benchmark in self.benchmarks:
            benchmark.check(self.policy)
        self.check_policy(model)
        if self.rope_factor != 1:
            scale_positions(copy(model.llm.model.config), self.rope_factor)

    def check_policy(self, model: Any) -> None:
        """Refuse one that the model cannot follow or the LM cannot read."""
        model.check_policy(self.policy, int(model.llm.context * self.rope_factor))

    def setup(self, stage: str) -> None:
        """Scale the LM's positions."""
        assert self.trainer is not None
        model: Any = self.trainer.lightning_module
        model.llm.scale(self.rope_factor)

    @property
    def passes(self) -> list[tuple[Benchmark, bool]]:
        """Benchmark and whether blind, in the order of the test loaders."""
        return [(b, blind) for b in self.benchmarks for blind in ((False, True)[: 1 + b.blind])]

    def _loader(self, benchmark: Benchmark, blind: bool) -> DataLoader:
        assert self.trainer is not None
        groups = benchmark.groups()
        images = other_images(groups) if blind else [group[0].images for group in groups]
        return question_loader(
            self.trainer.lightning_module,
            groups,
            images,
            self.policy,
            position=self.image_position,
            prompt=benchmark.prompt,
            template=self.template,
            max_new_tokens=self.max_new_tokens,
            images_per_batch=self.images_per_batch,
            num_workers=self.num_workers,
        )

    def test_dataloader(self) -> list[DataLoader]:
        """Every benchmark, and after it its blind twin."""
        return [self._loader(*each) for each in self.passes]

    def predict_dataloader(self) -> list[DataLoader]:
        """Every benchmark."""
        return [self._loader(benchmark, blind=False) for benchmark in self.benchmarks]
