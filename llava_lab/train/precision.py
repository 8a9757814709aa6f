"""10. Precision: in which types a stage keeps its weights, computes, and takes its steps.

`trainer.precision` is one value, Lightning's names and one more. Bytes are those of a weight: as it
is held, its gradient, and its optimizer's states (AdamW).

| value | holds | computes | takes steps | frozen weight | trained weight |
|---|---|---|---|--:|--:|
| `32-true` | float32 | float32 | float32 | 4 | 4 + 4 + 8 |
| `bf16-mixed` | float32 | bfloat16 (autocast) | float32 | 4 | 4 + 4 + 8 |
| `bf16-master` | bfloat16 | bfloat16 | float32 | 2 | 2 + 2 + 12 |
| `bf16-true` | bfloat16 | bfloat16 | bfloat16 | 2 | 2 + 2 + 4 |

`bf16-mixed` casts each weight anew whenever it is used. `bf16-master` has a copy of each trained
weight in float32 among its states (while a step is taken gradients are in float32, too, one tensor
after another giving up its own in bfloat16), and the stage's result is that copy. `bf16-true` loses
every change of a weight below its 256th part: it is for memory that allows nothing else.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn
from torch.optim import AdamW

# Lightning's names, and one more.
Precisions = Literal[
    "32-true",
    "bf16-mixed",
    "bf16-master",
    "bf16-true",
    "16-mixed",
]
# Lightning's others, which convert batches, of kinds that it knows.
UNFIT = ("16-true", "64-true", "64", 64, "transformer-engine", "transformer-engine-float16")
CHOICES = (
    "Types in which weights are held and computed, and steps taken; in brackets the bytes of a "
    "trained weight with AdamW. 32-true: float32 throughout (16). bf16-mixed: float32, computed in "
    "bfloat16 by autocast (16). bf16-master: bfloat16, with a copy in float32 with which steps are "
    "taken (16; a frozen weight takes 2 in place of 4). bf16-true: bfloat16 throughout (8), which "
    "loses small steps. 16-mixed: float32, computed in float16 with a scaled loss (16)."
)


class WeightBytes(NamedTuple):
    """Bytes that a weight takes on a device.

    Attributes:
        held: The weight as it is computed with.
        gradient: Its gradient, where it trains.
        states: The optimizer's, where it trains: AdamW's two moments, and the weight in float32.
    """

    held: int
    gradient: int
    states: int


BYTES = {
    "32-true": WeightBytes(4, 4, 8),
    "bf16-mixed": WeightBytes(4, 4, 8),
    "bf16-master": WeightBytes(2, 2, 12),
    "bf16-true": WeightBytes(2, 2, 4),
}


class Bfloat16(Precision):
    """Weights in bfloat16 while a trainer runs; before and after they are as they were.

    Args:
        precision: `bf16-master` keeps what trains in float32, too, and takes steps there;
            `bf16-true` does not.
    """

    def __init__(self, precision: Literal["bf16-master", "bf16-true"]):
        self.precision: Any = precision
        self.names: dict[nn.Parameter, str] = {}
        self.before: dict[nn.Parameter, Tensor] = {}  # values that bfloat16 does not hold
        self.masters: dict[nn.Parameter, nn.Parameter] = {}
        self.buffers: list[tuple[nn.Module, str, Tensor]] = []  # with their values before

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Round the weights, and keep what would be lost."""
        for name, weight in module.named_parameters():
            if weight.dtype != torch.float32:
                continue
            exact, weight.data = weight.data, weight.data.bfloat16()
            self.names[weight] = name
            if weight.requires_grad:
                if self.precision == "bf16-master":
                    self.before[weight] = exact
            elif not torch.equal(weight.data.float(), exact):
                self.before[weight] = exact.cpu()
        for part in module.modules():
            # Those that are not saved, such as the angles of positions, stay exact.
            kept = part._non_persistent_buffers_set
            for name, buffer in part.named_buffers(recurse=False):
                if buffer.dtype == torch.float32 and name not in kept:
                    self.buffers.append((part, name, buffer.data))
                    buffer.data = buffer.data.bfloat16()
        return module

    def master(self, weight: nn.Parameter) -> nn.Parameter:
        """What an optimizer changes in place of a weight: the weight in float32, or itself."""
        if self.precision != "bf16-master" or not weight.requires_grad:
            return weight
        if weight in self.before:
            exact = self.before.pop(weight).to(weight.device)
            self.masters[weight] = nn.Parameter(exact)
        return self.masters.get(weight, weight)

    def _after_closure(self, model: Any, optimizer: Any) -> None:
        """Hand the gradients over, in float32, before they are clipped."""
        for weight, master in self.masters.items():
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        super()._after_closure(model, optimizer)

    def optimizer_step(  # pyrefly: ignore[bad-override]
        self, optimizer: Any, model: Any, closure: Callable[[], Any], **options: Any
    ) -> Any:
        """Take a step in float32, and round the weights anew."""
        found = super().optimizer_step(optimizer, model, closure, **options)
        if self.masters:
            with torch.no_grad():
                torch._foreach_copy_(list(self.masters), list(self.masters.values()))
        return found

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: the weights in float32, by name."""
        return {self.names[weight]: master.data for weight, master in self.masters.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        for weight, master in self.masters.items():
            master.data.copy_(state_dict[self.names[weight]])

    def teardown(self) -> None:
        """Put the weights back in float32: what trained as it was trained, the rest as it was."""
        for weight in self.names:
            exact = self.masters.get(weight, self.before.get(weight, weight)).data
            weight.data, weight.grad = exact.to(weight.device, torch.float32), None
        for part, name, exact in self.buffers:
            buffer = getattr(part, name)
            buffer.data = _buffer_after(buffer, exact)
        self.names, self.before, self.masters, self.buffers = {}, {}, {}, []


def _buffer_after(buffer: Tensor, exact: Tensor) -> Tensor:
    """A buffer in float32: as it was before, unless it has moved since."""
    exact = exact.to(buffer.device)
    return exact if torch.equal(buffer, exact.bfloat16()) else buffer.float()


def master_of(plugin: Any) -> Callable[[nn.Parameter], nn.Parameter]:
    """What an optimizer changes in place of a weight, under a trainer's precision."""
    return plugin.master if isinstance(plugin, Bfloat16) else lambda weight: weight


def as_after(plugin: Any) -> Callable[[Tensor], Tensor]:
    """What a weight or a buffer will be when a trainer of this precision ends, while it runs."""
    if not isinstance(plugin, Bfloat16):
        return lambda tensor: tensor
    held: dict[int, Tensor] = {}
    for each in plugin.names:
        held[each.data_ptr()] = plugin.masters.get(each, plugin.before.get(each, each)).detach()
    for part, name, exact in plugin.buffers:
        buffer = getattr(part, name)
        held[buffer.data_ptr()] = _buffer_after(buffer, exact)
    rounded = held.keys()
    return lambda tensor: held[p].float() if (p := tensor.data_ptr()) in rounded else tensor


def precision_of(options: Mapping[str, Any]) -> Any:
    """The precision that options of Lightning's Trainer choose, by name or as a plugin."""
    plugins = options.get("plugins") or []
    plugins = plugins if isinstance(plugins, list | tuple) else [plugins]
    found = [each.precision for each in plugins if isinstance(each, Precision)]
    return (found or [options.get("precision") or "32-true"])[0]


def check_held(weights: Mapping[str, nn.Parameter], precision: Any) -> None:
    """Refuse to train weights that were made in half precision, which loses most small steps.

    Args:
        weights: The weights that train, by name.
        precision: The trainer's; bf16-true loses them for all weights.

    Raises:
        ValueError: Names a weight, and what to set.
    """
    if precision == "bf16-true":
        return
    for name, weight in weights.items():
        if weight.is_floating_point() and weight.dtype.itemsize < 4:
            kind = str(weight.dtype).removeprefix("torch.")
            raise ValueError(
                f"{name} trains and was made in {kind}, which loses most of the small steps that "
                f"trainer.precision={precision} takes; set model.llm.dtype to float32 (under "
                "bf16-master a stage holds it in bfloat16 all the same), or trainer.precision to "
                "bf16-true"
            )


def adamw(groups: list[dict[str, Any]], betas: tuple[float, float]) -> AdamW:
    """AdamW at the rates of its groups; on a GPU the kernel that reads every number once."""
    fused = all(weight.is_cuda for group in groups for weight in group["params"])
    optimizer = AdamW(groups, lr=0.0, betas=betas, fused=fused or None)
    # A fused one could take a scaler's factor, and for that Lightning would clip no gradients.
    vars(optimizer)["_step_supports_amp_scaling"] = False
    return optimizer


def with_precision(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of Lightning's Trainer, with a precision that it has not as a plugin.

    Args:
        options: The options, without those that are None.
    """
    given = dict(options)
    precision = given.get("precision")
    if precision not in ("bf16-master", "bf16-true"):
        return given
    del given["precision"]
    plugins = given.get("plugins") or []
    plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins]
    return {**given, "plugins": [*plugins, Bfloat16(precision)]}
