"""10. LoRA: small adapters train beside linear layers, and are merged when the stage ends."""

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from llava_lab.core.numbers import above, at_least, shares
from llava_lab.model.llm import CausalLM
from llava_lab.model.weights import seeded
from llava_lab.train.parts import ADAPTER, PartKeys, Selection, parts_of

# Weights that share a scale. Where they reach over rows, bitsandbytes 0.50 reads them wrongly on
# CPUs: it comes out up to a third of the largest weight away.
QUANTIZED = 64


@dataclass(kw_only=True)
class Lora:
    """Low-rank adapters beside linear layers; all else of what they are in is frozen (Hu 2021).

    A finished stage holds the merged weights, so that nothing that comes after knows of adapters;
    an unfinished one holds the adapters alone.

    Args:
        rank: Of every adapter.
        alpha: An adapter's output is multiplied by alpha / rank.
        dropout: Of an adapter's input.
        targets: Endings of the names of the layers that have one; or `all-linear`, all but an LM's
            output layer.
        parts: Parts of the model, or keys below them as in `lr`, whose layers have one. They train
            at the rates of the weights in whose place they train.
        quantize: `4bit` keeps the layers' own weights in 4 bits (NF4 with double quantization, as
            QLoRA, Dettmers 2023); they come back in full precision, as they were trained with, when
            the adapters are merged. Null keeps them as they are.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: list[str] | Literal["all-linear"] = "all-linear"
    parts: list[str] = field(default_factory=lambda: ["llm"])
    quantize: Literal["4bit"] | None = None

    def __post_init__(self) -> None:
        at_least(1, "lora.", rank=self.rank)
        above(0, "lora.", alpha=self.alpha)
        shares("lora.", below=1, dropout=self.dropout)
        if not self.parts:
            raise ValueError("lora.parts is empty; name a part, such as llm")

    def layers(self, model: nn.Module) -> dict[str, nn.Linear]:
        """Layers of a model without adapters that get one, by name.

        Raises:
            ValueError: If there is none, or none that a target names.
        """
        keys, outer = PartKeys(self.parts, "lora.parts"), heads(model)
        linear = {
            f"{part}.{name}": layer
            for part, module in parts_of(model).items()
            for name, layer in module.named_modules()
            if isinstance(layer, nn.Linear)
            and not any(layer is head for head in outer)
            and keys.of(f"{part}.{name}.weight") is not None
        }
        if not linear:
            raise ValueError(f"lora.parts: {', '.join(self.parts)} has no linear layer")
        if self.targets == "all-linear":
            return linear
        ends = {target: f".{target}" for target in self.targets}
        for target, end in ends.items():
            if not any(name.endswith(end) for name in linear):
                known = sorted({name.rsplit(".", 1)[-1] for name in linear})
                raise ValueError(f"lora.targets: no linear layer {target!r} among {known}")
        return {n: each for n, each in linear.items() if n.endswith(tuple(ends.values()))}

    def size(self, model: nn.Module) -> int:
        """Weights of all adapters."""
        layers = self.layers(model).values()
        return sum(self.rank * (each.in_features + each.out_features) for each in layers)

    def check(self, model: nn.Module, selection: Selection) -> None:
        """Refuse what cannot be trained.

        Args:
            model: A model without adapters.
            selection: What the stage trains.

        Raises:
            ValueError: If a package or a target is not there, or a layer has no rate.
        """
        if importlib.util.find_spec("peft") is None:
            raise ValueError("lora needs peft, which is not there: pip install -e '.[lora]'")
        if self.quantize and importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(
                "lora.quantize needs bitsandbytes, which is not there: pip install -e '.[qlora]'"
            )
        for name, layer in self.layers(model).items():
            if self.quantize and layer.in_features % QUANTIZED:
                raise ValueError(
                    f"lora.quantize: {name} takes {layer.in_features} features; bitsandbytes gets "
                    f"layers right that take a multiple of {QUANTIZED}. Leave it out of lora.parts "
                    "or lora.targets"
                )
            if selection.key(f"{name}.weight") is None:
                raise ValueError(
                    f"lora: lr has no rate for {name}, at which its adapter would train; give it "
                    "one, or name fewer layers in lora.parts"
                )

    def attach(self, model: nn.Module) -> None:
        """Put adapters in, of which the outputs are zero."""
        from peft import LoraConfig, inject_adapter_in_model

        layers = self.layers(model)
        for name, layer in layers.items() if self.quantize else ():
            model.set_submodule(name, in_4_bits(layer))
        with seeded("lora"):
            for part, module in parts_of(model).items():
                names = [n.removeprefix(f"{part}.") for n in layers if n.startswith(f"{part}.")]
                config = LoraConfig(
                    r=self.rank,
                    lora_alpha=self.alpha,  # pyrefly: ignore[bad-argument-type]
                    lora_dropout=self.dropout,
                    # As a pattern of whole names: peft takes those of a list for endings, too.
                    target_modules="|".join(map(re.escape, names)),
                )
                if names:
                    inject_adapter_in_model(config, module)


def heads(model: nn.Module) -> list[nn.Linear]:
    """Output layers of a model's LMs."""
    return [part.head() for part in parts_of(model).values() if isinstance(part, CausalLM)]


def in_4_bits(layer: nn.Linear) -> nn.Linear:
    """The layer with its weights in 4 bits."""
    from bitsandbytes.nn import Linear4bit  # pyrefly: ignore[missing-import]

    small = Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=layer.weight.dtype,
        quant_type="nf4",
    )
    # Its kernel for CPUs rounds to bfloat16 in evaluation alone, and takes few widths.
    small.support_avx512bf16_for_cpu = False
    small.load_state_dict(layer.state_dict())
    return small.to(layer.weight.device)


def in_full(layer: nn.Linear) -> nn.Linear:
    """A layer in 4 bits with the weights that it computes with; another one as it is."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return layer
    from bitsandbytes.functional import dequantize_4bit  # pyrefly: ignore[missing-import]

    bias = layer.bias is not None
    full = nn.Linear(layer.in_features, layer.out_features, bias, layer.weight.device, state.dtype)
    full.weight = nn.Parameter(dequantize_4bit(layer.weight.data, state))
    if bias:
        full.bias = layer.bias
    return full


def adapters(module: nn.Module) -> dict[str, Any]:
    """Layers that have an adapter, by name."""
    return {name: each for name, each in module.named_modules() if hasattr(each, "lora_A")}


def merge(model: nn.Module) -> None:
    """Add the adapters to the weights of their layers, and take them out."""
    for name, layer in adapters(model).items():
        layer.base_layer = in_full(layer.get_base_layer())
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())


def as_merged(
    model: nn.Module, weights: Mapping[str, Tensor], exact: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Weights by name as `merge` would leave them, of a model that keeps its adapters.

    Args:
        model: The model, with adapters.
        weights: Some of its tensors, by their names in it.
        exact: What a weight will be when training ends.
    """
    own = (ADAPTER, ".base_layer.")
    found = {n: exact(each) for n, each in weights.items() if not any(part in n for part in own)}
    for name, layer in adapters(model).items():
        base = in_full(layer.get_base_layer())
        for (adapter, up), down in zip(layer.lora_B.items(), layer.lora_A.values(), strict=True):
            change = exact(up.weight) @ exact(down.weight) * layer.scaling[adapter]
            found[f"{name}.weight"] = exact(base.weight) + change.to(base.weight.device)
        if base.bias is not None:
            found[f"{name}.bias"] = exact(base.bias)
    return found
