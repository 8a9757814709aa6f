"""10. Doubles: what devices share out in a model's place, and what of it they gather alone."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn


class Steps(nn.Module):
    """The root of what is shared out: its weights are whole while a step of the model runs.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, step: Callable[[], Any]) -> Any:
        """Take a step of the model."""
        return step()


def layers(part: nn.Module) -> Iterator[nn.Module]:
    """Modules with weights of a part that stand in a list of several, the outermost lists alone."""
    for child in part.children():
        weighted = [each for each in child.children() if any(True for _ in each.parameters())]
        if isinstance(child, (nn.ModuleList, nn.Sequential)) and len(weighted) > 1:
            yield from weighted
        else:
            yield from layers(child)


def double(part: nn.Module) -> Any:
    """Another part of the same structure, with the same weights until they are replaced."""
    memo: dict[int, Any] = {}
    for weight in part.parameters():
        memo[id(weight)] = nn.Parameter(weight.detach(), weight.requires_grad)
    for buffer in part.buffers():
        memo[id(buffer)] = buffer.detach()
    if tokenizer := vars(part).get("_tokenizer"):
        memo[id(tokenizer)] = tokenizer
    return copy.deepcopy(part, memo)
