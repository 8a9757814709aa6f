"""LoRA: an LM of which small adapters train, merged into its weights when the stage ends."""

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from llava_lab.model.llm import CausalLM
from llava_lab.model.weights import seeded


@dataclass(kw_only=True)
class Lora:
    """Low-rank adapters beside the LM's linear layers; all else of the LM is frozen (Hu 2021).

    A finished stage holds the merged weights, so that nothing that comes after knows of adapters;
    an unfinished one holds the adapters alone.

    Args:
        rank: Of every adapter.
        alpha: An adapter's output is multiplied by alpha / rank.
        dropout: Of an adapter's input.
        targets: Endings of the names of the layers that have one; or `all-linear`, all but the
            output layer.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: list[str] | Literal["all-linear"] = "all-linear"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank is {self.rank}; it is 1 or more")

    def layers(self, llm: CausalLM) -> dict[str, nn.Linear]:
        """Layers of an LM without adapters that get one."""
        linear = {
            name: layer
            for name, layer in llm.model.named_modules()
            if isinstance(layer, nn.Linear) and layer is not llm.head()
        }
        if self.targets == "all-linear":
            return linear
        ends = {target: f".{target}" for target in self.targets}
        for target, end in ends.items():
            if not any(f".{name}".endswith(end) for name in linear):
                known = sorted({name.rsplit(".", 1)[-1] for name in linear})
                raise ValueError(f"lora.targets: no linear layer {target!r} among {known}")
        return {n: each for n, each in linear.items() if f".{n}".endswith(tuple(ends.values()))}

    def size(self, llm: CausalLM) -> int:
        """Weights of all adapters."""
        layers = self.layers(llm).values()
        return sum(self.rank * (each.in_features + each.out_features) for each in layers)

    def check(self, llm: CausalLM) -> None:
        """Refuse what cannot be trained.

        Raises:
            ValueError: If peft is not installed, or a target is not there.
        """
        if importlib.util.find_spec("peft") is None:
            raise ValueError("lora needs peft, which is not there: pip install -e '.[lora]'")
        self.layers(llm)

    def attach(self, llm: CausalLM) -> None:
        """Put adapters in, of which the outputs are zero."""
        from peft import LoraConfig, inject_adapter_in_model

        self.check(llm)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # pyrefly: ignore[bad-argument-type]
            lora_dropout=self.dropout,
            target_modules=list(self.layers(llm)),
        )
        with seeded("lora"):
            inject_adapter_in_model(config, llm.model)


def adapters(module: nn.Module) -> dict[str, Any]:
    """Layers that have an adapter, by name."""
    return {name: each for name, each in module.named_modules() if hasattr(each, "lora_A")}


def merge(llm: CausalLM) -> None:
    """Add the adapters to the weights of their layers, and take them out."""
    for name, layer in adapters(llm.model).items():
        layer.merge()
        llm.model.set_submodule(name, layer.get_base_layer())
