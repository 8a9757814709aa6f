"""10. Turns: devices that share a model out, and each compute it as often as they need to.

Layers that are shared out are gathered on all devices at once, so that one that computes alone
would wait for ever. Here each says what it would compute next, and all compute the same: those that
have no need of it, on next to nothing.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llava_lab.core.modes import evaluating
from llava_lab.data.forest import Forest


class Turns:
    """Lets every device call a model's parts as often as it needs to, until `end`.

    Args:
        model: The model.
        parts: Those of its parts that are shared out. Where devices ask for several, the last one
            comes first: pictures are encoded before their LM is called.
        steps: The root of what is shared out.
        precision: Gives the context in which the model computes.
    """

    def __init__(self, model: Any, parts: Sequence[str], steps: Any, precision: Any):
        self.model, self.parts = model, parts
        self.steps, self.precision, self.idle = steps, precision, False
        for number, module in enumerate(self._modules(), 1):
            module.forward = partial(self._in_turn, number, module.forward)

    def _modules(self) -> list[Any]:
        found = {"llm": self.model.llm.model.get_decoder(), "encoder": self.model.encoder}
        return [found[name] for name in self.parts]

    def _in_turn(self, number: int, forward: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Compute along with the others until they compute the same, then compute."""
        while not self.idle and (asked := self._ask(number)) != number:
            self._compute_along(asked)
        return self.steps(partial(forward, *given, **named))

    def _ask(self, number: int) -> int:
        """What all devices compute next, where this one would compute `number`; 0 is nothing."""
        asked = torch.tensor(number, device=self.model.device)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        return int(asked)

    @torch.no_grad()
    def _compute_along(self, number: int) -> None:
        self.idle = True
        # In training mode statistics of batch norm would move on this device alone.
        with evaluating(self.model), self.precision.forward_context():
            (idle_encoder if self.parts[number - 1] == "encoder" else idle_lm)(self.model)
        self.idle = False

    def end(self) -> None:
        """Compute along until no device has anything left."""
        while asked := self._ask(0):
            self._compute_along(asked)
        for module in self._modules():
            del module.forward


def idle_encoder(model: Any) -> Tensor:
    """Features of a view that nobody asked for."""
    kind, size = next(model.encoder.parameters()).dtype, model.encoder.view_spec.image_size
    return model.encode(torch.zeros(1, 3, size, size, dtype=kind, device=model.device))


def idle_lm(model: Any) -> Tensor:
    """Hidden states of a word that nobody asked for."""
    word = torch.zeros(1, dtype=torch.long, device=model.device)
    return model.llm(model.llm.embed(word), Forest((1,), (None,)))


def ranks_apart(trainer: Any, model: Any) -> AbstractContextManager[None]:
    """Let each rank compute without gradients, as often as it needs to, on its device.

    Args:
        trainer: Whose devices compute.
        model: The model, whole.
    """
    if hasattr(trainer.strategy, "apart"):
        return trainer.strategy.apart(model)
    model.to(trainer.strategy.root_device)
    return nullcontext()
