"""10. KTO: single answers, each desirable or not, against a reference point (arXiv:2402.01306).

Everything that the stage needs is here: its rows, its batch, its DataModule and its loss. A stage
of it is configs/stage/kto.yaml.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import sigmoid

from llava_lab.core.numbers import above
from llava_lab.data.fields import find_images, read_id
from llava_lab.data.image_folder import ImageFolder
from llava_lab.data.keys import PREFERENCE_KEYS, SAMPLE_KEYS
from llava_lab.data.modules.answers import (
    AnswerBatch,
    AnswerDataModule,
    EncodedAnswers,
    ReferenceHidden,
)
from llava_lab.data.modules.preference import Preference, preference_reader
from llava_lab.data.packing import EncodedSample
from llava_lab.data.pair_rows import check_answer, place_marks, read_message, with_image_key
from llava_lab.data.rows import FileRow, Refused
from llava_lab.data.sample import Sample, Turn, read_turns
from llava_lab.data.source import Source
from llava_lab.model.llava import Llava
from llava_lab.train.answers import compare
from llava_lab.train.loss import Ratios
from llava_lab.train.reference import ReferenceLoss

CONVERSATION_KEYS = replace(SAMPLE_KEYS, read=SAMPLE_KEYS.read | {"label"})
UNPAIRED_KEYS = replace(
    PREFERENCE_KEYS, read=PREFERENCE_KEYS.read - {"chosen", "rejected"} | {"completion", "label"}
)


@dataclass(frozen=True, kw_only=True)
class Judged(Sample):
    """A prompt with one answer.

    Attributes:
        desirable: Whether the answer is to become more likely, or less.
        mismatched: The answer to another row's prompt; "" while rows are read one by one.
    """

    desirable: bool
    mismatched: str = ""

    @property
    def messages(self) -> list[list[str]]:
        """All messages of the row, with its label."""
        label = "desirable" if self.desirable else "undesirable"
        return [*super().messages, ["label", label], ["mismatched", self.mismatched]]

    @property
    def conversations(self) -> tuple[tuple[Turn, ...], ...]:
        """The prompt with its own answer, and with the mismatched one."""
        if not self.mismatched:
            return (self.turns,)
        return self.turns, (*self.turns[:-1], Turn("assistant", self.mismatched))


def read_judged(row: FileRow, folder: ImageFolder | None, template: str | None) -> Judged:
    """Read a conversation of one answer, or TRL's `prompt` and `completion`, with its `label`.

    Raises:
        Refused: If it is neither, or has no label.
    """
    value = with_image_key(row.value)
    paired = "completion" in value
    (UNPAIRED_KEYS if paired else CONVERSATION_KEYS).check(row.value)
    name, label = read_id(value, "id", row.number), value.get("label")
    if not isinstance(label, bool):
        raise Refused(f"'label' must be true (desirable) or false, not {label!r}")
    images = find_images(value, folder, videos=True)
    if paired:
        completion = read_message(value["completion"], "completion", "assistant")
        check_answer(completion, "completion")
        prompt = read_message(value.get("prompt"), "prompt", "user")
        prompt = place_marks(prompt, len(images), value.get("video") is not None)
        turns = (Turn("user", prompt), Turn("assistant", completion))
    else:
        turns = read_turns(value, len(images))
        if len(turns) != 2:
            raise Refused(f"has {len(turns) // 2} answers and one label; make a row of each")
    return Judged(name, turns, images, row.place, template, desirable=label)


def judged(row: Sample) -> list[Sample]:
    """A row as rows of one answer: the chosen answer of a pair is desirable, the rejected not."""
    if not isinstance(row, Preference):
        return [row]
    about = (row.images, row.source, row.template)
    answers = zip(row.conversations, (True, False), strict=True)
    return [Judged(row.id, turns, *about, desirable=label) for turns, label in answers]


def with_mismatches(rows: Sequence[Any]) -> list[Sample]:
    """Rows, each with the answer of the nearest row before it that has another prompt, in a circle.

    Args:
        rows: Rows of two prompts or more, or none.
    """
    prompts = [(row.images, row.turns[0].text) for row in rows]
    begins = [n for n, prompt in enumerate(prompts) if prompt != prompts[n - 1]]
    partner, found = 0, list(rows)
    for step in range(len(rows)):
        place = (begins[0] + step) % len(rows)
        if prompts[place] != prompts[place - 1]:
            partner = place - 1
        found[place] = replace(rows[place], mismatched=rows[partner].turns[-1].text)
    return found


class JudgedRow(NamedTuple):
    """A row, encoded: an `AnswerRow` and its label."""

    row: EncodedSample
    before: ReferenceHidden | None
    reference: Tensor | None
    desirable: bool


@dataclass(frozen=True)
class JudgedBatch(AnswerBatch):
    """Rows, packed: of each a prompt, its own answer and a mismatched one.

    Attributes:
        desirable: Whether the own answer of each row is desirable [n].
    """

    desirable: Tensor | None = None

    @classmethod
    def of(cls, rows: Sequence[Any]) -> Self:
        """Pack rows, each a `JudgedRow`."""
        return replace(super().of(rows), desirable=torch.tensor([row.desirable for row in rows]))


class EncodedJudged(EncodedAnswers):
    """Rows, encoded when asked for."""

    def __getitem__(self, index: int) -> JudgedRow:
        sample = self.samples[index]
        assert isinstance(sample, Judged)
        return JudgedRow(*super().__getitem__(index), desirable=sample.desirable)


class KTODataModule(AnswerDataModule):
    """Rows of a prompt with one answer, which is desirable or not.

    Three formats are read: conversations of one answer with `label` (true or false), TRL's
    `{prompt, completion, label}`, and pairs `{prompt, chosen, rejected}`, of which the chosen
    answer becomes a desirable row and the rejected one an undesirable.
    """

    rows = EncodedJudged
    batch = JudgedBatch

    def reader(self, source: Source) -> Callable[[FileRow, ImageFolder | None], Sample]:
        """What reads a row of a source, or refuses it."""
        pair = preference_reader(source)

        def read(row: FileRow, folder: ImageFolder | None) -> Sample:
            if row.value.get("chosen") is not None:
                return pair(row, folder)
            return read_judged(row, folder, source.template)

        return read

    def split(self, rows: Any) -> tuple[Sequence[Sample], Sequence[Sample]]:
        """Rows to train on and held-out rows, whose mismatched answers are of their own side.

        Raises:
            ValueError: If all rows of a side have one prompt.
        """
        sides = super().split([single for row in rows for single in judged(row)])
        for side, share in zip(sides, ("to train on", "held out"), strict=True):
            if side and len({(row.images, row.turns[0].text) for row in side}) == 1:
                raise ValueError(
                    f"stages.{self.name}.data: all {len(side)} rows {share} have the prompt of "
                    f"{side[0].source}; KTO's reference point needs answers to other prompts"
                )
        trained, held = map(with_mismatches, sides)
        return trained, held

    def check(self, model: Any) -> None:
        """Refuse rows whose prompt cannot be trained on with the mismatched answer, too."""
        super().check(model)
        rows = self.encoded([*self.samples, *self.held], model)
        for number, reason in rows.refused(str(self.name)).items():
            raise ValueError(f"{rows.samples[number].source}: with a mismatched answer: {reason}")


class KTO(ReferenceLoss):
    """KTO: w (1 - sigmoid(beta s (r - z0))) a row (Ethayarajh et al. 2024).

    r is the log-ratio of the row's answer, the model's summed log-probability less that of the
    model that the stage starts from; s is 1 of a desirable answer and -1 of another; w is the
    weight of its kind. The loss of a step is the mean over its rows.

    z0, the reference point, is KL(model || reference) as the paper and TRL's KTOTrainer estimate
    it: the mean log-ratio of mismatched answers, at least 0, and without a gradient. The mismatched
    answer of a row is that of the nearest row before it with another prompt, as TRL shifts its data
    by one; it is the same in every epoch, so that the reference's log-probabilities of it are
    stored with those of the own answer.

    z0 is the mean over all rows of a step. What a step computes apart cannot know it, so a step
    cannot be split: it is for one device and one micro-batch, or for a stage with `normalization:
    micro_batch`, where each micro-batch has a z0 of its own. TRL has one for a micro-batch, too,
    of all devices together; of few rows it is noise. Held-out rows have a z0 for each batch.

    Args:
        beta: Strength of the KL penalty.
        desirable_weight: Weight of desirable rows.
        undesirable_weight: Weight of undesirable rows. Where the kinds are of unequal number, TRL
            advises weights that, times the numbers of rows, stand between 1:1 and 4:3.
    """

    rows_apart = False

    def __init__(
        self, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
    ):
        super().__init__(beta)
        above(0, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
        self.desirable_weight, self.undesirable_weight = desirable_weight, undesirable_weight

    def row_losses(self, log_ratios: Tensor, desirable: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of rows [n], and z0.

        Args:
            log_ratios: Of the own and of the mismatched answers [n, 2].
            desirable: Whether the own answers are desirable [n].
        """
        z0 = log_ratios[:, 1].detach().mean().clamp(min=0)
        sign = torch.where(desirable, 1.0, -1.0)
        weight = torch.where(desirable, self.desirable_weight, self.undesirable_weight)
        return weight * (1 - sigmoid(self.beta * sign * (log_ratios[:, 0] - z0))), z0

    def counts(self, batch: JudgedBatch) -> dict[str, int]:
        """Rows."""
        return {"row": len(batch)}

    def sums(self, model: Llava, batch: JudgedBatch) -> tuple[Ratios, Ratios]:
        """Losses of rows, and the rewards that the model implies, of each kind."""
        assert batch.desirable is not None
        found = compare(model, batch)
        losses, z0 = self.row_losses(found.log_ratios, batch.desirable)
        own, good = found.log_ratios[:, 0].detach(), batch.desirable
        rewards, number = self.beta * own, len(batch)
        # Not rewards[good], for which a GPU would have to say how many they are.
        kinds = {"desirable": good, "undesirable": ~good}
        numbers: Ratios = {
            **{f"reward_{n}": (rewards.where(i, 0).sum(), i.sum()) for n, i in kinds.items()},
            "reward_accuracy": (((own > z0) == good).float().sum(), number),
            "z0": (z0 * number, number),
            "gain_a_token": ((own / found.tokens[:, 0]).sum(), number),
        }
        if found.divergences is not None:
            numbers["kl"] = (found.divergences[:, 0].sum(), number)
        return {"row": (losses.float().sum(), number)}, numbers
