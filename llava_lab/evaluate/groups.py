"""11. Groups: questions -> groups that share their images; wrong images, or none, for baselines."""

import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

from llava_lab.data.chat import place_image
from llava_lab.data.fields import IMAGE_PLACEHOLDER
from llava_lab.data.image_folder import VideoPath
from llava_lab.data.media.clip import image_digests
from llava_lab.data.modules.encoded import Position
from llava_lab.data.modules.stage import run_seed
from llava_lab.data.questions import Question
from llava_lab.data.sample import Turn


@dataclass(frozen=True)
class QuestionGroup:
    """Questions about the same images, which are encoded once for all of them.

    Attributes:
        images: The images: the questions' own, in a blind pass those of others, or none.
        questions: The questions.
        places: Index of each question in its file, which is unique; ids may repeat.
    """

    images: tuple[Path, ...]
    questions: list[Question]
    places: list[int]

    @property
    def number_and_kind(self) -> tuple[int, bool]:
        """Number of images, and whether they are videos."""
        return len(self.images), any(isinstance(image, VideoPath) for image in self.images)


def placed(question: Question, position: Position, prompt: str | None = None) -> Turn:
    """Return the question as the user's turn, with its image at `position`.

    Args:
        question: The question.
        position: Where its image goes.
        prompt: Line that is added to it, or None.
    """
    text = question.text if prompt is None else f"{question.text}\n{prompt}"
    chance = random.Random(f"{run_seed()}/{question.id}")
    (turn,) = place_image([Turn("user", text)], position, chance)
    return turn


def by_images(questions: Sequence[Question], position: Position = "first") -> list[QuestionGroup]:
    """Group questions by their images, in the order in which each image occurs first.

    Questions share a group if their texts are equal up to the last image, so that a common prefix
    holds all images. A question without images is a group of its own.
    """
    alone = [QuestionGroup(q.images, [q], [place]) for place, q in enumerate(questions)]
    return _joined(alone, position)


def of_passes(
    passes: Sequence[Sequence[QuestionGroup]], number: int, position: Position = "first"
) -> list[QuestionGroup]:
    """Groups of several passes over one benchmark, in which images are shown once for all passes.

    Args:
        passes: Groups of each pass.
        number: Questions of the benchmark. In the N-th pass, from 0, a question's place is
            N times so much beyond its place in the file.
        position: Where the image goes in the question.
    """
    moved = [
        replace(group, places=[nth * number + place for place in group.places])
        for nth, groups in enumerate(passes)
        for group in groups
    ]
    return _joined(moved, position)


def _joined(groups: Iterable[QuestionGroup], position: Position) -> list[QuestionGroup]:
    """Groups of the same images, whose questions are alike up to the last of them, as one."""
    found: dict[Hashable, QuestionGroup] = {}
    for place, group in enumerate(groups):
        before, _, _ = placed(group.questions[0], position).text.rpartition(IMAGE_PLACEHOLDER)
        # The path of an image may equal that of a video.
        kinds = tuple(type(image) for image in group.images)
        key = (group.images, kinds, before) if group.images else place
        into = found.setdefault(key, QuestionGroup(group.images, [], []))
        into.questions.extend(group.questions)
        into.places.extend(group.places)
    return list(found.values())


def blind_groups(groups: Sequence[QuestionGroup]) -> list[QuestionGroup] | None:
    """Give each group the images of another group; groups without images keep none.

    Groups with the same number of images pass them on along one shuffled circle, so that each image
    is used once. If a group would get one of its own images, also under another name, two groups of
    the circle swap; if no swap helps, images are drawn from the whole benchmark.

    Returns:
        The groups; None if there are no images, or no other image for some group.
    """
    if not any(group.images for group in groups):
        return None
    content = contents(image for group in groups for image in group.images)
    own = [{content[image] for image in group.images} for group in groups]

    def suits(index: int, images: Sequence[Path]) -> bool:
        return own[index].isdisjoint(content[image] for image in images)

    dealt = [group.images for group in groups]
    for circle in _circles(groups):
        shown = [groups[index].images for index in circle]
        for place, index in enumerate(circle):
            dealt[index] = shown[(place + 1) % len(circle)]
        _swap(circle, dealt, suits)
    pool = {content[image]: image for group in groups for image in group.images}
    for index, group in enumerate(groups):
        if group.images and not suits(index, dealt[index]):
            others = [image for key, image in pool.items() if key not in own[index]]
            if not others:
                return None
            dealt[index] = _drawn(group, others, f"{run_seed()}/blind/{index}")
    return [replace(group, images=images) for group, images in zip(groups, dealt, strict=True)]


def without_images(groups: Sequence[QuestionGroup]) -> list[QuestionGroup]:
    """Ask the questions of each group without their images."""
    return [
        replace(
            group,
            images=(),
            questions=[replace(each, images=(), text=each.prompt) for each in group.questions],
        )
        for group in groups
    ]


def most_frequent(questions: Sequence[Question]) -> list[str]:
    """The answer that is most frequent among the questions of the same type, for each question.

    Each accepted answer of each question counts once; of equally frequent ones, the first in the
    file is taken.
    """
    counts: dict[str | None, Counter[str]] = {}
    for question in questions:
        counts.setdefault(question.category, Counter()).update(question.answers)
    first = {category: count.most_common(1)[0][0] for category, count in counts.items()}
    return [first[question.category] for question in questions]


def _swap(
    circle: Sequence[int],
    dealt: list[tuple[Path, ...]],
    suits: Callable[[int, Sequence[Path]], bool],
) -> None:
    """Swap images of groups that got their own, with groups that both can exchange with."""
    for index in circle:
        if suits(index, dealt[index]):
            continue
        for other in circle:
            if suits(index, dealt[other]) and suits(other, dealt[index]):
                dealt[index], dealt[other] = dealt[other], dealt[index]
                break


def _drawn(group: QuestionGroup, others: list[Path], seed: str) -> tuple[Path, ...]:
    """Draw as many images as the group has, of the same kind if possible; repeated if too few."""
    number, video = group.number_and_kind
    random.Random(seed).shuffle(others)
    others.sort(key=lambda image: isinstance(image, VideoPath) != video)
    return tuple(islice(cycle(others), number))


def _circles(groups: Sequence[QuestionGroup]) -> list[list[int]]:
    """Indices of the groups with the same number and kind of images, shuffled."""
    circles: dict[tuple[int, bool], list[int]] = {}
    for index, group in enumerate(groups):
        if group.images:
            circles.setdefault(group.number_and_kind, []).append(index)
    for circle in circles.values():
        random.Random(f"{run_seed()}/blind").shuffle(circle)
    return list(circles.values())


def contents(images: Iterable[Path]) -> dict[Path, Hashable]:
    """Key of each file's content; only files of equal length are read."""
    paths = dict.fromkeys(images)
    sizes = {path: path.stat().st_size if path.is_file() else None for path in paths}
    times = Counter(sizes.values())
    digests = image_digests(path for path, size in sizes.items() if times[size] > 1)
    return {path: digests.get(path, size) for path, size in sizes.items()}
