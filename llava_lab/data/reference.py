"""3k. Reference: log-probabilities of the model that a stage starts from, computed once."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
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


class ReferenceStore:
    """Summed log-probabilities of answers under a model, on disk; safe to be killed at any point.

    The folder's name is a hash of the model, its settings, rows, template, length and policy: what
    was computed for anything else is never found.

    Args:
        root: Folder of all stores.
        model: The model before the stage trains it.
        rows: The pairs, encoded when asked for.
        pack: Encoded pairs to a batch.
        settings: What decides the numbers beside the model.
    """

    def __init__(
        self,
        root: Path,
        model: Any,
        rows: "EncodedPairs",
        pack: Callable[[list[Any]], "Pairs"],
        settings: str,
    ):
        self.model, self.rows, self.pack = model, rows, pack
        shown = policy_key(rows.views.policy, layout=True)
        text = "\n".join([digest(model.state_dict()), str(model.settings()), shown, settings])
        self.folder = root / hashlib.sha256(text.encode()).hexdigest()[:24]
        self.place = {id(sample): index for index, sample in enumerate(rows.samples)}
        self.numbers: Tensor | None = None

    def fill(self) -> None:
        """Compute the chunks that are not there yet, and read all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        chunks = []
        for start in range(0, len(self.rows), CHUNK):
            target = self.folder / f"{start // CHUNK:06d}.safetensors"
            if not target.exists():
                self._write(target, range(start, min(start + CHUNK, len(self.rows))))
            chunks.append(load_file(target)["logps"])
        self.numbers = torch.cat(chunks)

    @torch.no_grad()
    def _write(self, target: Path, indices: range) -> None:
        device = next(self.model.parameters()).device
        training = self.model.training
        self.model.eval()
        parts = []
        for start in range(indices.start, indices.stop, MICRO):
            chosen = range(start, min(start + MICRO, indices.stop))
            pairs = self.pack([self.rows[index] for index in chosen]).to(device)
            parts.append(answer_logps(self.model, pairs)[0].cpu())
        self.model.train(training)
        handle, draft = tempfile.mkstemp(dir=self.folder, suffix=".draft")
        os.close(handle)
        save_file({"logps": torch.cat(parts)}, draft)
        os.replace(draft, target)

    def __getitem__(self, sample: Sample) -> Tensor:
        """Log-probabilities [2] of a row's chosen and rejected answer."""
        assert self.numbers is not None, "fill() comes first"
        return self.numbers[self.place[id(sample)]]
