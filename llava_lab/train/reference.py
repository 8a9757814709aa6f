"""10. Reference: log-probabilities of the model that a stage starts from, computed once."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from llava_lab.core.fingerprint import fingerprint
from llava_lab.core.modes import evaluating
from llava_lab.core.numbers import above
from llava_lab.core.progress import progress
from llava_lab.core.tensors import digest, made_again
from llava_lab.data.modules.answers import (
    AnswerBatch,
    AnswerDataModule,
    EncodedAnswers,
    ReferenceHidden,
)
from llava_lab.data.sample import Sample
from llava_lab.model.llava import Llava
from llava_lab.train.answers import answer_logps
from llava_lab.train.loss import Loss
from llava_lab.train.turns import ranks_apart

CHUNK = 64  # prompts computed and stored together; the same rows give the same chunks, bit for bit
MICRO = 8  # prompts computed at once
HEAD = "head.safetensors"


class ReferenceStore:
    """Summed log-probabilities of answers under a model, on disk; safe to be killed at any point.

    Of held-out rows, which are few, it keeps the hidden states at the answers' tokens too. The
    folder's name is a hash of the model, its settings, rows, template, length and views: what
    was computed for anything else is never found.

    Args:
        root: Folder of all stores.
        model: The model before the stage trains it.
        rows: The prompts with their answers.
        batch: The kind of batch that they are packed to.
        settings: What decides the numbers beside the model.
        held: How many of the rows, the last ones, are held out.
    """

    def __init__(
        self,
        root: Path,
        model: Any,
        rows: EncodedAnswers,
        batch: type[AnswerBatch],
        settings: str,
        held: int,
    ):
        self.model, self.rows, self.batch = model, rows, batch
        parts = [digest(model.state_dict()), model.encoder, model.connector, model.llm]
        if type(model) is not Llava:
            parts += [type(model), dict(model.named_children()), own_attributes(model)]
        self.key = fingerprint(*parts, rows.loader.views, settings, held)[:24]
        self.folder = root / self.key
        # By what they are: a worker of a loader may have copies of them.
        self.place = {sample: index for index, sample in enumerate(rows.samples)}
        self.first_held = len(rows) - held
        self.numbers: Tensor | None = None
        self.hidden: dict[str, Tensor] = {}
        self.head: dict[str, Tensor] = {}

    def file(self, index: int) -> Path:
        """Where a row's numbers are."""
        return self.folder / f"{index // CHUNK:06d}.safetensors"

    def fill(self, trainer: Any) -> None:
        """Compute the chunks that are not there yet, each on one of the devices, and read all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        starts = range(0, len(self.rows), CHUNK)
        with ranks_apart(trainer, self.model), evaluating(self.model):
            self._write_missing(starts[trainer.global_rank :: trainer.world_size])
        if trainer.world_size > 1:
            trainer.strategy.barrier()
        # Nothing is computed any more, unless machines have disks of their own.
        with ranks_apart(trainer, self.model), evaluating(self.model):
            self._write_missing(starts)
            found = [self._chunk(start) for start in starts]
            if self.first_held < len(self.rows):
                self.head = self._head()
        self.numbers = torch.cat([each["logps"] for each in found])
        self.hidden = {k: each[k] for each in found for k in each if k != "logps"}

    def _write_missing(self, starts: range) -> None:
        with progress("reference", sum(map(len, map(self._indices, starts)))) as bar:
            for start in starts:
                end = bar.n + len(self._indices(start))
                self._chunk(start, bar)
                bar.update(end - bar.n)
        if self.first_held < len(self.rows):
            self._head()

    def _indices(self, start: int) -> range:
        return range(start, min(start + CHUNK, len(self.rows)))

    def _chunk(self, start: int, bar: tqdm | None = None) -> dict[str, Tensor]:
        compute = partial(self._compute, self._indices(start), bar)
        return made_again(self.file(start), f"{self.key}/{start}", compute)

    def _head(self) -> dict[str, Tensor]:
        def copied() -> dict[str, Tensor]:
            return {n: w.detach().clone() for n, w in self.model.llm.head().named_parameters()}

        return made_again(self.folder / HEAD, f"{self.key}/head", copied)

    @torch.no_grad()
    def _compute(self, indices: range, bar: tqdm | None) -> dict[str, Tensor]:
        device = next(self.model.parameters()).device
        logps, hidden = [], {}
        for start in range(indices.start, indices.stop, MICRO):
            chosen = range(start, min(start + MICRO, indices.stop))
            batch = self.batch.of([self.rows[index] for index in chosen]).to(device)
            states = self.model(batch)[batch.predictors]
            logps.append(answer_logps(self.model, batch, states)[0].cpu())
            for segments, row in zip(batch.answers, chosen, strict=True):
                if row >= self.first_held:
                    own = torch.isin(batch.owners, segments)
                    hidden[f"hidden.{row}"] = states[own].cpu()
            if bar is not None:
                bar.update(len(chosen))
        return {"logps": torch.cat(logps), **hidden}

    def __getitem__(self, sample: Sample) -> Tensor:
        """Log-probabilities of a row's answers, in their order."""
        assert self.numbers is not None, "fill() comes first"
        return self.numbers[self.place[sample]]

    def hidden_of(self, sample: Sample) -> ReferenceHidden | None:
        """What a held-out row's distributions follow from; None of other rows."""
        index = self.place[sample]
        if index < self.first_held:
            return None
        hidden = self.hidden[f"hidden.{index}"]
        return ReferenceHidden(hidden, self.head["weight"], self.head.get("bias"))


def own_attributes(model: Any) -> dict[str, Any]:
    """What a model has beside its parts, without what its stage gave it."""
    given = ("optimizers_of_stage", "step_loss")
    return {k: v for k, v in vars(model).items() if not k.startswith("_") and k not in given}


def store_references(model: Any, data: Any, trainer: Any) -> None:
    """Store the log-probabilities of a stage's answers before the model is trained.

    Args:
        model: The model that the stage starts from.
        data: The stage's DataModule, which gets the store as `references`.
        trainer: Whose devices share the work.
    """
    rows = data.encoded([*data.samples, *data.held])
    root = Path(data.reference_store)
    store = ReferenceStore(root, model, rows, data.batch, data.settings(), len(data.held))
    store.fill(trainer)
    data.references = store


class ReferenceLoss(Loss):
    """A loss that compares the model's answers with those of the model that its stage starts from.

    Args:
        beta: Strength of the KL penalty.
    """

    def __init__(self, beta: float = 0.1):
        super().__init__()
        above(0, beta=beta)
        self.beta = beta

    def prepare(self, model: Any, data: Any, trainer: Any, verb: str) -> None:
        """Store what the model that the stage starts from says of the answers.

        Raises:
            ValueError: If the model is not that one, or the data has no answers to compare.
        """
        if verb != "fit":
            raise ValueError(
                f"stages.{data.name}: `{verb}` has a model that was trained, and not the one that "
                "its preferences are measured against; results.json has the held-out numbers"
            )
        if not isinstance(data, AnswerDataModule):
            raise ValueError(
                f"stages.{data.name}: {type(self).__name__} compares answers, which "
                f"{type(data).__name__} does not read; its data is an AnswerDataModule, such as "
                "llava_lab.data.modules.preference.PreferenceDataModule"
            )
        store_references(model, data, trainer)
