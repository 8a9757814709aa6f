"""10. Normalization: sums over micro-batches of all devices -> the loss of an optimizer step."""

from collections.abc import Iterable
from functools import cache
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llava_lab.core import ranks
from llava_lab.data.loader import MicroBatch
from llava_lab.data.packing import StageBatch, work
from llava_lab.train.loss import Loss, Ratios, ratio, summed

Normalization = Literal["step", "micro_batch"]
MICRO = "micro-batch"


class StepLoss:
    """The loss of an optimizer step, over all its micro-batches and devices.

    Gradients of micro-batches add up, and Lightning divides them by the number of micro-batches
    and of devices. What a micro-batch contributes is scaled beforehand, so that the outcome is
    the gradient of the step's loss however the step is split.

    Args:
        loss: What is minimised.
        normalization: See `Stage`.
    """

    def __init__(self, loss: Loss, normalization: Normalization):
        self.loss, self.normalization = loss, normalization
        self.counts: dict[str, int] = {}
        self.work: dict[str, int] = {}
        # Sums and counts [2] by name: of the loss's terms, and of the numbers beside it.
        self.seen: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
        # The terms of held-out rows of each source that has a name.
        self.apart: dict[str, dict[str, Tensor]] = {}

    def train(self, model: Any, micro: MicroBatch) -> dict[str, Any]:
        """What is to be differentiated; after the step's last micro-batch its numbers, too.

        Args:
            model: The model, with its trainer.
            micro: A micro-batch of the step.

        Returns:
            `loss`; after the last micro-batch also `means`, the step's loss and what is logged
            beside it, and `work`, how much the step computed. Both are those of all devices.

        Raises:
            ValueError: If the step has nothing to learn from.
        """
        trainer = model.trainer
        if micro.first:
            self._begin(micro)
        terms, numbers = self._ratios(model, micro.batch)
        split = trainer.accumulate_grad_batches * trainer.world_size
        loss = summed({n: (term, self.counts[n] / split) for n, (term, _) in terms.items()})
        if micro.filler:
            loss = loss * 0.0
        self._add(terms, numbers, micro.filler)
        left = set(model.parameters()) - reached(loss)
        found: dict[str, Any] = {"loss": loss + nothing(left)}
        if micro.last:
            found |= {"means": self.means(), "work": self.work}
        return found

    def watch(self, model: Any, micro: MicroBatch) -> None:
        """Count a batch of held-out rows; `watched` gives the means when all are seen."""
        terms, numbers = self._ratios(model, micro.batch)
        self._add(terms, numbers, micro.filler)
        if micro.source is not None:
            seen = self.apart.setdefault(micro.source, {})
            _add(seen, terms, micro.filler, summed(terms).device)

    def watched(self) -> dict[str, Tensor]:
        """The means of all held-out rows, and `loss/NAME` of those of each source with a name."""
        apart, self.apart = self.apart, {}
        found = self.means()
        for name, seen in apart.items():
            values = over_devices(torch.stack(list(seen.values())))
            pairs = zip(values[:, 0], values[:, 1], strict=True)
            found[f"loss/{name}"] = summed(dict(zip(seen, pairs, strict=True)))
        return found

    def means(self) -> dict[str, Tensor]:
        """The loss and the numbers beside it, over all that was counted on all devices."""
        found, self.seen = self.seen, ({}, {})
        values = over_devices(torch.stack([pair for seen in found for pair in seen.values()]))
        pairs = zip(values[:, 0], values[:, 1], strict=True)
        terms: Ratios = dict(zip(found[0], pairs, strict=False))
        numbers: Ratios = dict(zip(found[1], pairs, strict=True))
        return {"loss": summed(terms), **{name: ratio(*pair) for name, pair in numbers.items()}}

    def _begin(self, micro: MicroBatch) -> None:
        """Learn what the step's sums are divided by, and how much work the step is."""
        # A device that has fillers only counts zero of the same things as the others.
        each = [(self._counts(part.batch), work(part.batch)) for part in micro.step]
        counted = [found for found, part in zip(each, micro.step, strict=True) if not part.filler]
        names = each[0]
        totals = [sum(found[0][name] for found in counted) for name in names[0]]
        totals += [sum(found[1][name] for found in counted) for name in names[1]]
        totals = over_processes(totals)
        self.counts = dict(zip(names[0], totals, strict=False))
        self.work = dict(zip(names[1], totals[len(names[0]) :], strict=True))
        if empty := [name for name, count in self.counts.items() if not count]:
            rows = ", ".join(source for part in micro.step for source in part.batch.sources)
            raise ValueError(f"no {empty[0]} to learn from in {rows}")

    def _counts(self, batch: StageBatch) -> dict[str, int]:
        return self.loss.counts(batch) if self.normalization == "step" else {MICRO: 1}

    def _ratios(self, model: Any, batch: StageBatch) -> tuple[Ratios, Ratios]:
        """Terms of the loss, and the numbers beside it."""
        terms, numbers = self.loss.sums(model, batch)
        return (terms if self.normalization == "step" else {MICRO: (summed(terms), 1)}), numbers

    def _add(self, terms: Ratios, numbers: Ratios, filler: bool) -> None:
        """Add sums and counts to those that were seen; a filler's are zero."""
        device = summed(terms).device
        for ratios, seen in zip((terms, numbers), self.seen, strict=True):
            _add(seen, ratios, filler, device)


def _add(seen: dict[str, Tensor], ratios: Ratios, filler: bool, device: torch.device) -> None:
    for name, pair in ratios.items():
        found = torch.stack([_on(device, each) for each in pair])
        found = torch.zeros_like(found) if filler else found.detach()
        seen[name] = seen[name] + found if name in seen else found


def _on(device: torch.device, number: Tensor | float) -> Tensor:
    """A number on a device, in 32 bits; one of Python is written there, and not copied."""
    if isinstance(number, Tensor):
        return number.float()
    return torch.full((), number, dtype=torch.float32, device=device)


def over_devices(values: Tensor) -> Tensor:
    """Sum of what all devices hold, in double precision; the values themselves where one runs."""
    if not ranks.several():
        return values
    values = values.double()
    dist.all_reduce(values)
    return values


def over_processes(numbers: list[int]) -> list[int]:
    """Sums of what all processes hold, which no GPU has to finish anything for."""
    if not ranks.several():
        return numbers
    values = torch.tensor(numbers)
    dist.all_reduce(values, group=_processes(dist.group.WORLD))
    return values.tolist()


@cache
def _processes(world: Any) -> Any:
    """A group of all processes that talks between CPUs; made by all at once, and once a job."""
    return world if dist.get_backend(world) == "gloo" else dist.new_group(backend="gloo")


def reached(loss: Tensor) -> set[Any]:
    """The weights that a loss hangs on, which have a gradient of it."""
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [each for each, _ in node.next_functions]
    return {node.variable for node in seen if hasattr(node, "variable")}


def nothing(weights: Iterable[nn.Parameter]) -> Tensor | float:
    """Zero, of which the gradient for every weight that trains is zero.

    Added to the loss, it lets every weight take part in every step: a batch of text alone gives
    connector and newline no gradient, on which plain `ddp` stops, and which an optimizer skips on
    one device but not on several. To add it for weights that have a gradient would cost a pass over
    both.
    """
    # A device's share of a weight is of a layer, which every device has computed.
    trained = [w for w in weights if w.requires_grad and not isinstance(w, DTensor)]
    return _Nothing.apply(*trained) if trained else 0.0


class _Nothing(torch.autograd.Function):
    """No value is read and no memory is taken, so that neither NaN nor infinity gets through."""

    @staticmethod
    def forward(context: Any, *weights: Tensor) -> Tensor:
        context.weights = weights
        return torch.zeros((), device=weights[0].device)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:  # pyrefly: ignore[bad-override]
        return tuple(each.new_zeros(()).expand_as(each) for each in context.weights)
