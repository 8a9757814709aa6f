"""3k. Reference: log-probabilities of the model that a stage starts from, computed once."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from llava_lab.data.features import policy_key
from llava_lab.data.sample import Sample
from llava_lab.model.weights import digest
from llava_lab.train.loss import answer_logps

if TYPE_CHECKING:
    from llava_lab.data.preferences import EncodedPairs, Pairs

CHUNK = 64  # pairs computed and stored together; the same rows give the same chunks, bit for bit
MICRO = 8  # pairs computed at once
HEAD = "head.safetensors"


class Before(NamedTuple):
    """What the reference's distributions at targets follow from, without the reference.

    Attributes:
        hidden: Its last hidden states at the targets [m, d].
        weight: Of its output layer [v, d].
        bias: Of its output layer [v], or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    def to(self, device: torch.device) -> "Before":
        """The same on another device."""
        bias = None if self.bias is None else self.bias.to(device)
        return Before(self.hidden.to(device), self.weight.to(device), bias)

    @classmethod
    def pack(cls, rows: "Sequence[Before]") -> "Before":
        """That of rows packed one after another, which share an output layer."""
        return rows[0]._replace(hidden=torch.cat([row.hidden for row in rows]))


class ReferenceStore:
    """Summed log-probabilities of answers under a model, on disk; safe to be killed at any point.

    Of held-out rows, which are few, it keeps the hidden states at the answers' tokens too. The
    folder's name is a hash of the model, its settings, rows, template, length and policy: what
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
        rows: "EncodedPairs",
        pack: Callable[[list[Any]], "Pairs"],
        settings: str,
        held: int,
    ):
        self.model, self.rows, self.pack = model, rows, pack
        shown = policy_key(rows.views.policy, layout=True)
        parts = [digest(model.state_dict()), str(model.settings()), shown, settings, f"{held} held"]
        self.folder = root / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
        self.place = {id(sample): index for index, sample in enumerate(rows.samples)}
        self.first_held = len(rows) - held
        self.numbers: Tensor | None = None
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
        self.numbers = torch.cat([load_file(self.file(start))["logps"] for start in starts])
        if self.first_held < len(self.rows):
            self.head = load_file(self.folder / HEAD)

    def _write_missing(self, starts: range) -> None:
        training = self.model.training
        self.model.eval()
        for start in starts:
            if not self.file(start).exists():
                end = min(start + CHUNK, len(self.rows))
                self._save(self.file(start), self._compute(range(start, end)))
        if self.first_held < len(self.rows) and not (self.folder / HEAD).exists():
            self._save(self.folder / HEAD, self.model.llm.head().state_dict())
        self.model.train(training)

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

    def _save(self, target: Path, tensors: dict[str, Tensor]) -> None:
        handle, draft = tempfile.mkstemp(dir=self.folder, suffix=".draft")
        os.close(handle)
        save_file({name: each.detach().cpu().contiguous() for name, each in tensors.items()}, draft)
        os.replace(draft, target)

    def __getitem__(self, sample: Sample) -> Tensor:
        """Log-probabilities [2] of a row's chosen and rejected answer."""
        assert self.numbers is not None, "fill() comes first"
        return self.numbers[self.place[id(sample)]]

    def before(self, sample: Sample) -> Before | None:
        """What a held-out row's distributions follow from; None of other rows."""
        index = self.place[id(sample)]
        if index < self.first_held:
            return None
        with safe_open(self.file(index), "pt") as file:
            hidden = file.get_tensor(f"hidden.{index}")
        return Before(hidden, self.head["weight"], self.head.get("bias"))
