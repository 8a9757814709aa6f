"""11. Prompts: groups of questions -> batches of prompts, checked before anything is computed."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from llava_lab.core.messages import listed
from llava_lab.core.numbers import at_least
from llava_lab.data.chat import Template, get_template
from llava_lab.data.geometry import Layout
from llava_lab.data.image_folder import VideoPath
from llava_lab.data.modules.encoded import Position, ViewLoader
from llava_lab.data.packing import Batch, EncodedSample, Segment
from llava_lab.data.questions import Question
from llava_lab.data.tokens import IGNORE, VISUAL
from llava_lab.data.verified import verified
from llava_lab.data.views.base import Views
from llava_lab.data.views.video import Frames
from llava_lab.evaluate.groups import QuestionGroup, placed
from llava_lab.model.generate import QuestionBatch, Sampling


class Trees(Dataset):
    """Prompts as trees, one a group of questions: the common prefix is the root, the rest leaves.

    Args:
        groups: Groups of questions about the same images.
        template: Chat template.
        tokenizer: The LM's tokenizer.
        loader: Loads images as views.
        position: Where the image goes in the question.
        prompt: Line that is added to every question, or None.
    """

    def __init__(
        self,
        groups: Sequence[QuestionGroup],
        template: Template,
        tokenizer: Any,
        loader: ViewLoader,
        position: Position,
        prompt: str | None,
    ):
        self.groups, self.template, self.tokenizer = groups, template, tokenizer
        self.loader, self.position, self.prompt = loader, position, prompt

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> tuple[EncodedSample, QuestionGroup]:
        group = self.groups[index]
        views, layouts = self.loader(group.images)
        prompts = [self.ids(question, group, layouts) for question in group.questions]
        shared = min(_common(prompts), min(map(len, prompts)) - 1)
        root = prompts[0][:shared]
        leaves = [prompt[shared:] for prompt in prompts]
        segments = [Segment(root, [IGNORE] * len(root))] if shared else []
        parent = 0 if shared else None
        segments += [Segment(leaf, [IGNORE] * len(leaf), parent) for leaf in leaves]
        return EncodedSample(segments, views, layouts, group.questions[0].source), group

    def ids(self, question: Question, group: QuestionGroup, layouts: Sequence[Layout]) -> list[int]:
        """Encode the prompt of one question of a group."""
        turn = placed(question, self.position, self.prompt)
        turns = self.loader.add_words([turn], group.images)
        tokens = [layout.tokens for layout in layouts]
        return self.template.prompt(turns, self.tokenizer, tokens, source=question.source)


def _common(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix of all prompts."""
    for place, tokens in enumerate(zip(*prompts, strict=False)):
        if len(set(tokens)) > 1:
            return place
    return min(map(len, prompts))


class Sizes:
    """Sizes of images and videos; each file is decoded once.

    Args:
        views: How images and videos are loaded.
    """

    def __init__(self, views: Views):
        self.views = views
        # An image and a video may have equal paths.
        self.sizes: dict[tuple[type, Path], tuple[int, ...]] = {}
        self.faults: dict[tuple[type, Path], str] = {}

    def look(self, paths: Iterable[Path]) -> None:
        """Decode files that were not decoded before, many at once."""
        known = self.sizes.keys() | self.faults.keys()
        new = [path for path in paths if (type(path), path) not in known]
        for kind in {type(path) for path in new}:
            of_kind = [path for path in new if type(path) is kind]
            sizes, faults = verified(of_kind, self.views, "pictures of questions")
            self.sizes |= {(kind, path): size for path, size in sizes.items()}
            self.faults |= {(kind, path): fault for path, fault in faults.items()}

    def __call__(self, path: Path) -> tuple[int, ...]:
        """Return width, height and, for a video, frames.

        Raises:
            ValueError: If the file cannot be loaded, with the reason.
        """
        key = (type(path), path)
        if key not in self.sizes and key not in self.faults:
            self.look([path])
        if key in self.faults:
            raise ValueError(self.faults[key])
        return self.sizes[key]


def check_questions(trees: Trees, context: int, max_new_tokens: int, sizes: Sizes) -> None:
    """Refuse questions with broken images, and prompts that are longer than the LM can read.

    Args:
        trees: The questions.
        context: Most tokens that the LM reads.
        max_new_tokens: Longest answer.
        sizes: Sizes of the images.

    Raises:
        ValueError: Lists the row of every such question, and the reason.
    """
    if faults := list(unaskable(trees, context, max_new_tokens, sizes).values()):
        number = len({(q.source, q.id) for group in trees.groups for q in group.questions})
        head = f"{len(faults)} of {number} questions cannot be asked:\n  " if number > 1 else ""
        raise ValueError(f"{head}{listed(faults, 10)}")


def unaskable(trees: Trees, context: int, max_new_tokens: int, sizes: Sizes) -> dict[int, str]:
    """Find questions that cannot be asked: row and reason, by the question's index.

    The arguments are those of `check_questions`.
    """
    views, view_spec = trees.loader.views, trees.loader.view_spec
    faults: dict[int, str] = {}
    sizes.look(image for group in trees.groups for image in group.images)
    for group in trees.groups:
        for place, question in zip(group.places, group.questions, strict=True):
            blind, layouts = group.images != question.images, None
            try:
                layouts = [views.layout(sizes(image), view_spec) for image in group.images]
                ids = trees.ids(question, group, layouts)
            except (OSError, ValueError) as error:
                if blind and layouts is None:
                    continue  # the questions whose picture it is say so
                named = str(error).startswith(question.source)
                faults[place] = str(error) if named else f"{question.source}: {error}"
                continue
            if problem := beyond(ids, group.images, layouts, trees.loader, context, max_new_tokens):
                shown = " (blind: images of others)" if blind else ""
                faults[place] = f"{question.source}{shown}: {problem}"
    return dict(sorted(faults.items()))


def beyond(
    ids: Sequence[int],
    images: Sequence[Path],
    layouts: Sequence[Layout],
    loader: ViewLoader,
    context: int,
    max_new_tokens: int,
) -> str | None:
    """Message if a prompt and its answer are longer than the LM can read, with what would fit."""
    if len(ids) + max_new_tokens <= context:
        return None
    visual = sum(token == VISUAL for token in ids)
    text, room = len(ids) - visual, context - max_new_tokens
    ways = []
    if images and isinstance(images[0], VideoPath) and isinstance(loader.views, Frames):
        kind = "video" if len(images) == 1 else "videos"
        ways.append(f"{loader.views.most_frames(loader.view_spec, room, text)} frames")
    else:
        kind = "picture" if len(images) == 1 else "pictures"
        tokens = [layout.tokens for layout in layouts]
        # Where each image ends; the text behind the last one stays, however many images fit.
        seen = [place for place, token in enumerate(ids, 1) if token == VISUAL]
        ends = [seen[whole - 1] for whole in accumulate(tokens)]
        fit = sum(end + len(ids) - ends[-1] <= room for end in ends)
        alike = "pictures of this size" if len(set(tokens)) == 1 else "of its pictures"
        ways += [f"{fit} {alike}"] if images else []
    if len(ids) < context:
        ways.append(f"answers of {context - len(ids):,} tokens")
    parts = [f"{visual:,} of {len(images)} {kind}"] if images else []
    parts += [f"{text:,} of text", f"{max_new_tokens:,} for the answer"]
    what_fits = f"; what fits: {', or '.join(ways)}" if ways else ""
    return (
        f"{len(ids) + max_new_tokens:,} tokens ({', '.join(parts)}), and the LM reads "
        f"{context:,}{what_fits}"
    )


def question_loader(
    model: Any,
    groups: Sequence[QuestionGroup],
    views: Views,
    *,
    position: Position = "first",
    prompt: str | None = None,
    template: str | None = None,
    max_new_tokens: int = 128,
    images_per_batch: int = 1,
    num_workers: int = 0,
    sampling: Sampling | None = None,
    rank: int = 0,
    world: int = 1,
    sizes: Sizes | None = None,
) -> DataLoader:
    """Make the loader of batches of questions for `answer`, in the order of the groups.

    The ranks of a job share the batches: each is answered once, and is the same as with one rank. A
    rank may get none.

    Args:
        model: Model whose tokenizer, encoder and template are used.
        groups: Groups of questions about the same images.
        views: How an image becomes views.
        position: Where the image goes in the question.
        prompt: Line that is added to every question.
        template: Chat template; null takes the LM's.
        max_new_tokens: Longest answer.
        images_per_batch: Groups that are answered at once.
        num_workers: Processes that load images beside the main one.
        sampling: How tokens are sampled; None is greedy.
        rank: Number of this process.
        world: Number of processes.
        sizes: Sizes of images, if some were read before.

    Raises:
        ValueError: If a question cannot be asked; all of them are checked, on every rank.
    """
    at_least(1, max_new_tokens=max_new_tokens, images_per_batch=images_per_batch)
    trees = trees_of(model, groups, views, position, prompt, template)
    check_questions(trees, model.llm.context, max_new_tokens, sizes or Sizes(views))
    starts = range(0, len(groups), images_per_batch)[rank::world]
    trees.groups = [each for start in starts for each in groups[start : start + images_per_batch]]
    # With several ranks Lightning replaces any other sampler, and would split the share again.
    whole = DistributedSampler(trees, num_replicas=1, rank=0, shuffle=False)
    return DataLoader(
        trees,
        batch_size=images_per_batch,
        sampler=whole,
        collate_fn=Collator(trees, max_new_tokens, sampling),
        num_workers=num_workers,
    )


class Collator:
    """Packs the prompts of some groups into one batch of questions.

    Args:
        trees: All prompts.
        max_new_tokens: Longest answer.
        sampling: How tokens are sampled; None is greedy.
    """

    def __init__(self, trees: Trees, max_new_tokens: int, sampling: Sampling | None):
        self.max_new_tokens, self.sampling = max_new_tokens, sampling
        self.stop_ids = frozenset(trees.template.stop_ids(trees.tokenizer))
        self.stop_string = trees.template.stop_string

    def __call__(self, items: list[tuple[EncodedSample, QuestionGroup]]) -> QuestionBatch:
        """Pack the samples of some groups."""
        groups = [group for _, group in items]
        return QuestionBatch(
            Batch.pack([sample for sample, _ in items]),
            [question.id for group in groups for question in group.questions],
            self.max_new_tokens,
            self.stop_ids,
            self.stop_string,
            self.sampling,
            [group.places for group in groups],
        )


def trees_of(
    model: Any,
    groups: Sequence[QuestionGroup],
    views: Views,
    position: Position,
    prompt: str | None,
    template: str | None,
) -> Trees:
    """Make the prompts of a model; the arguments are those of `question_loader`.

    Raises:
        ValueError: If the template would hide what is asked.
    """
    style = get_template(template or model.llm.template)
    style.check_asks()
    loader = ViewLoader(views, model.view_spec)
    return Trees(groups, style, model.llm.tokenizer, loader, position, prompt)
