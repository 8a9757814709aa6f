"""2. Encoded rows: samples -> token ids, labels and views, computed at access."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from llava_lab.core.progress import shown
from llava_lab.data.chat import Template, place_image
from llava_lab.data.fields import IMAGE_PLACEHOLDER
from llava_lab.data.geometry import Layout, ViewSpec
from llava_lab.data.modules.stage import Features, run_seed
from llava_lab.data.packing import EncodedSample, Segment
from llava_lab.data.sample import Sample, Turn
from llava_lab.data.table import files_of
from llava_lab.data.tokens import Encoded
from llava_lab.data.verified import Size, verified
from llava_lab.data.views.base import Views

Position = Literal["keep", "first", "last", "first_or_last"]


class ViewLoader:
    """Makes views of images: pixels, or stored features where there is a store.

    Args:
        views: How an image becomes views.
        view_spec: Size and patch grid of a view.
        store: Features that were computed beforehand, or None.
    """

    def __init__(self, views: Views, view_spec: ViewSpec, store: Features | None = None):
        self.views, self.view_spec, self.store = views, view_spec, store

    def __call__(self, images: Sequence[Path]) -> tuple[Tensor | None, list[Layout]]:
        """Views of all images in order, and their layouts."""
        views, layouts = [], []
        for path in images:
            if self.store is not None:
                features, size = self.store[path]
                views.append(features)
            else:
                image = self.views.load(path)
                views.append(self.views.pixels(image, self.view_spec))
                size = image.size
            layouts.append(self.layout(size))
        return (torch.cat(views) if views else None), layouts

    def layout(self, size: tuple[int, ...]) -> Layout:
        """Where the features of an image or video of this size stand."""
        return self.views.layout(size, self.view_spec)

    def add_words(self, turns: Sequence[Turn], images: Sequence[Path]) -> Sequence[Turn]:
        """Write what the views say of each image, such as a video's length, behind its placeholder.

        Args:
            turns: A conversation.
            images: Its images and videos, in the order of the placeholders.
        """
        words = [self.views.words(path) for path in images]
        if not any(words):
            return turns
        marks = (f"{IMAGE_PLACEHOLDER}\n{line}" if line else IMAGE_PLACEHOLDER for line in words)
        return [
            replace(turn, text=re.sub(IMAGE_PLACEHOLDER, lambda _: next(marks), turn.text))
            for turn in turns
        ]


class EncodedRows(Dataset):
    """Samples, encoded at access.

    Args:
        samples: The rows.
        templates: Chat template of each name that a sample may have; None is the stage's.
        tokenizer: The LM's tokenizer.
        loader: Makes views of a row's images.
        image_position: Where the image stands in the first turn.
        max_length: Longest row in tokens; longer ones are cut.
        context: Tokens that the LM can read; None takes `max_length`.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        templates: dict[str | None, Template],
        tokenizer: Any,
        loader: ViewLoader,
        image_position: Position,
        max_length: int,
        context: int | None = None,
    ):
        self.samples, self.templates, self.tokenizer = samples, templates, tokenizer
        self.loader, self.image_position, self.max_length = loader, image_position, max_length
        self.context = context or max_length

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        sample = self.samples[index]
        views, layouts = self.loader(sample.images)
        encoded = self.encode(sample, sample.turns, layouts)
        return EncodedSample([Segment(encoded.ids, encoded.labels)], views, layouts, sample.source)

    def encode(
        self, sample: Sample, turns: Sequence[Turn], layouts: Sequence[Layout], whole: bool = False
    ) -> Encoded:
        """Ids and labels of a sample's turns; cut at the longest row unless the whole is asked."""
        return self.templates[sample.template].encode(
            self.placed(sample, turns),
            self.tokenizer,
            [layout.tokens for layout in layouts],
            source=sample.source,
            max_length=None if whole else self.max_length,
        )

    def placed(self, sample: Sample, turns: Sequence[Turn]) -> Sequence[Turn]:
        """The turns as they are encoded: images in their place, with the views' words on each."""
        # By the file's name and row, so that it is the same wherever the file lies.
        chance = random.Random(f"{run_seed()}/{Path(sample.source).name}")
        placed = place_image(turns, self.image_position, chance)
        return self.loader.add_words(placed, sample.images)

    def refused(self, what: str) -> dict[int, str]:
        """Why samples cannot be trained on, by their number; those that can are left out.

        Args:
            what: Name of what is read, for the progress bar.
        """
        return self.measured(*verified(files_of(self.samples), self.loader.views, what), what)

    def measured(
        self, sizes: Mapping[Path, Size], faults: Mapping[Path, str], what: str
    ) -> dict[int, str]:
        """Why samples cannot be trained on; pictures have been decoded before.

        Args:
            sizes: Size of each picture and video that can be read.
            faults: What is wrong with each other one.
            what: Name of what is read, for the progress bar.
        """
        found: dict[int, str] = {}
        for number, sample in enumerate(shown(self.samples, f"{what}: rows measured")):
            if broken := [faults[image] for image in sample.images if image in faults]:
                found[number] = broken[0]
                continue
            try:
                layouts = [self.loader.layout(sizes[image]) for image in sample.images]
                self.measure(sample, layouts)
            except ValueError as problem:
                found[number] = str(problem).removeprefix(f"{sample.source}: ")
        return found

    def measure(self, sample: Sample, layouts: Sequence[Layout]) -> None:
        """Refuse what `encode` would refuse or the LM cannot read, mostly without tokenizing it.

        Raises:
            ValueError: With the reason.
        """
        template, turns = self.templates[sample.template], self.placed(sample, sample.turns)
        template.check(turns, self.tokenizer)
        written = "".join(piece.text for piece in template.pieces(turns, self.tokenizer))
        # A token of ASCII text is a character or more; each image begins a text of its own.
        most = len(written) + sum(layout.tokens for layout in layouts) + len(layouts) + 2
        if not written.isascii() or most > min(self.max_length, self.context):
            self.within(self.encode(sample, sample.turns, layouts))

    def within(self, encoded: Encoded) -> None:
        """Refuse more tokens than the LM can read."""
        if len(encoded.ids) > self.context:
            raise ValueError(
                f"{len(encoded.ids)} tokens, cut at max_length {self.max_length}, but the LM reads "
                f"{self.context}; set max_length to that, or scale the LM's positions "
                "(model.llm.rope_factor)"
            )
