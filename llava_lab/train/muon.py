"""Muon: orthogonalised momentum for hidden matrices, AdamW for every other weight."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llava_lab.model.llm import CausalLM
from llava_lab.train.lora import heads
from llava_lab.train.parts import names_of, parts_of, weights_of
from llava_lab.train.precision import adamw

if TYPE_CHECKING:
    from llava_lab.train.stage import Stage


class Muon(Optimizer):
    """torch's Muon (Jordan et al. 2024) and AdamW as one optimizer, with one rate for both.

    Muon's update has AdamW's size (Liu et al. 2025, arXiv:2502.16982), so that rates carry over.

    Args:
        groups: Parameter groups; `hidden` says whether Muon updates the group, whose weights must
            then be matrices.
        betas: AdamW's.
        momentum: Muon's.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.95,
    ):
        self.inner: list[Optimizer] = []
        super().__init__(groups, {})
        hidden = [group for group in self.param_groups if group["hidden"]]
        plain = [group for group in self.param_groups if not group["hidden"]]
        if hidden:
            adjust = "match_rms_adamw"
            self.inner.append(
                torch.optim.Muon(hidden, lr=0.0, momentum=momentum, adjust_lr_fn=adjust)
            )
        if plain:
            self.inner.append(adamw(plain, betas))
        self._share_groups()

    def _share_groups(self) -> None:
        """Make the groups those of the two, so that a schedule reaches both."""
        self.param_groups = [group for each in self.inner for group in each.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all weights."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for each in self.inner:
            each.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The state of both."""
        return {"inner": [each.state_dict() for each in self.inner]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both."""
        for each, state in zip(self.inner, state_dict["inner"], strict=True):
            each.load_state_dict(state)
        self._share_groups()


def hidden_matrices(model: nn.Module) -> set[Tensor]:
    """The matrices of linear layers, without an LM's output layer."""
    outer = {weight for head in heads(model) for weight in head.parameters()}
    return {m.weight for m in model.modules() if isinstance(m, nn.Linear)} - outer


def check_matrices(stage: "Stage", model: nn.Module) -> None:
    """Refuse an LM's matrices that AdamW would train in Muon's place, such as a mixture's experts.

    Raises:
        ValueError: Names the option, and a matrix that is no linear layer's.
    """
    place, selection = f"stages.{stage.name}.optimizer=muon", stage.selection
    known = hidden_matrices(model) | {each for head in heads(model) for each in head.parameters()}
    known |= {each.weight for each in model.modules() if isinstance(each, nn.Embedding)}
    for part, module in parts_of(model).items():
        for name, weight in module.named_parameters(prefix=part):
            plain = weight.ndim < 2 or weight in known or not isinstance(module, CausalLM)
            if not plain and selection.trains(name):
                kind = type(model.get_submodule(name.rpartition(".")[0])).__name__
                raise ValueError(
                    f"{place}: {name} is a matrix of a {kind}; Muon takes those of linear "
                    "layers alone, and AdamW would train it in silence. Set optimizer to adamw"
                )


def has_matrices(stage: "Stage", model: nn.Module) -> bool:
    """Whether a stage trains a matrix of a linear layer; an adapter stands beside its layer's."""
    hidden = hidden_matrices(model) | hidden_matrices(stage.loss)
    every = names_of(weights_of(model, stage.loss))
    return any(weight in hidden and stage.selection.key(*names) for weight, names in every)
