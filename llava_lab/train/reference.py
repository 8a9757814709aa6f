"""10. Reference: log-probabilities of the model that a stage starts from, computed once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_lab.core.fingerprint import fingerprint
from llava_lab.core.tensors import digest, made_again
from llava_lab.data.modules.preference import EncodedPairs, Pairs, ReferenceHidden
from llava_lab.data.sample import Sample
from llava_lab.train.loss import answer_logps

CHUNK = 64  # pairs computed and stored together; the same rows give the same chunks, bit for bit
MICRO = 8  # pairs computed at once
HEAD = "head.safetensors"


class ReferenceStore:
    """Summed log-probabilities of answers under a model, on disk; safe to be killed at any point.

    Of held-out rows, which are few, it keeps the hidden states at the answers' tokens too. The
    folder's name is a hash of the model, its settings, rows, template, length and views: what
    was computed for anything else is never found.

    Args:
        root: Folder of all stores.
        model: The model before the stage trains it.
        rows: The pairs, encoded when asked for.
        pack: Encoded pairs to a batch.
        settings: What decides the numbers beside the model.
        held: How many of the rows, the last ones, are held out.
    """

    def __init__(
        self,
        root: Path,
        model: Any,
        rows: EncodedPairs,
        pack: Callable[[list[Any]], Pairs],
        settings: str,
        held: int,
    ):
        self.model, self.rows, self.pack = model, rows, pack
        parts = [digest(model.state_dict()), model.encoder, model.connector, model.llm]
        self.key = fingerprint(*parts, rows.loader.views, settings, held)[:24]
        self.folder = root / self.key
        self.place = {id(sample): index for index, sample in enumerate(rows.samples)}
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
        self.model.to(trainer.strategy.root_device)  # Lightning does so only after this
        starts = range(0, len(self.rows), CHUNK)
        self._write_missing(starts[trainer.global_rank :: trainer.world_size])
        if trainer.world_size > 1:
            trainer.strategy.barrier()
            self._write_missing(starts)  # none, unless machines have disks of their own
        found = [self._chunk(start) for start in starts]
        self.numbers = torch.cat([each["logps"] for each in found])
        self.hidden = {k: each[k] for each in found for k in each if k != "logps"}
        if self.first_held < len(self.rows):
            self.head = self._head()

    def _write_missing(self, starts: range) -> None:
        training = self.model.training
        self.model.eval()
        for start in starts:
            self._chunk(start)
        if self.first_held < len(self.rows):
            self._head()
        self.model.train(training)

    def _chunk(self, start: int) -> dict[str, Tensor]:
        indices = range(start, min(start + CHUNK, len(self.rows)))
        key = f"{self.key}/{start}"
        return made_again(self.file(start), key, lambda: self._compute(indices))

    def _head(self) -> dict[str, Tensor]:
        head = self.model.llm.head()
        return made_again(self.folder / HEAD, f"{self.key}/head", head.state_dict)

    @torch.no_grad()
    def _compute(self, indices: range) -> dict[str, Tensor]:
        device = next(self.model.parameters()).device
        logps, hidden = [], {}
        for start in range(indices.start, indices.stop, MICRO):
            chosen = range(start, min(start + MICRO, indices.stop))
            pairs = self.pack([self.rows[index] for index in chosen]).to(device)
            states = self.model(pairs)[pairs.predictors]
            logps.append(answer_logps(self.model, pairs, states)[0].cpu())
            for index, row in enumerate(chosen):
                if row >= self.first_held:
                    own = (pairs.owners // 3) == index
                    hidden[f"hidden.{row}"] = states[own].cpu()
        return {"logps": torch.cat(logps), **hidden}

    def __getitem__(self, sample: Sample) -> Tensor:
        """Log-probabilities [2] of a row's chosen and rejected answer."""
        assert self.numbers is not None, "fill() comes first"
        return self.numbers[self.place[id(sample)]]

    def hidden_of(self, sample: Sample) -> ReferenceHidden | None:
        """What a held-out row's distributions follow from; None of other rows."""
        index = self.place[id(sample)]
        if index < self.first_held:
            return None
        hidden = self.hidden[f"hidden.{index}"]
        return ReferenceHidden(hidden, self.head["weight"], self.head.get("bias"))


def store_references(model: Any, data: Any, trainer: Any) -> None:
    """Compute what the model says of a stage's pairs before it is trained.

    Args:
        model: The model that the stage starts from.
        data: The stage's DataModule, which gets the store as `references`.
        trainer: Whose devices share the work.
    """
    rows = data.encoded([*data.samples, *data.held])
    root = Path(data.reference_store)
    store = ReferenceStore(root, model, rows, Pairs.of, data.settings(), len(data.held))
    store.fill(trainer)
    data.references = store
