"""Plan memory: bytes that a stage takes on each device under each strategy, and which fit."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from math import ceil
from typing import Any, NamedTuple

from torch import nn

from llava_lab.model.llava import Llava
from llava_lab.report.budget import Budget
from llava_lab.report.grid import Figure, figure
from llava_lab.train.parts import names_of, parts_of, weights_of
from llava_lab.train.precision import BYTES
from llava_lab.train.preference import PreferenceLoss
from llava_lab.train.stage import Stage

GIBI = 2**30
Row = list[str | Figure]  # what, value, formula
# Bytes that a block computes for its backward pass, a token and unit of width, in 16-bit precision
# and without attention scores (Korthikanti et al. 2022, arXiv:2205.05198, equation 2 less its last
# term), and how many of them are kept by each way of `gradient_checkpointing`: all; its input and
# what attention and its products gave, but the narrowing ones; its input. The rest is there one
# block at a time.
BLOCK_BYTES = 34
KEPT_BYTES = {False: BLOCK_BYTES, "products": 20, True: 2}
# Bytes of a weight in 4 bits (`Lora.quantize`): 64 share a scale of a byte, 256 scales a float32.
NF4 = 1 / 2 + (1 + 4 / 256) / 64
# What is left of a device for attention scores, logits, and what an allocator wastes.
SPARE = 0.1


class Bytes(NamedTuple):
    """`precision.WeightBytes` of a weight, and those of what is computed with.

    Attributes:
        held: The weight itself.
        gradient: Its gradient, if it trains.
        states: AdamW's states of it, if it trains.
        used: The weight as it is computed with, which may be a copy.
    """

    held: int
    gradient: int
    states: int
    used: int

    @property
    def trained(self) -> int:
        """All of a weight that trains, but the copy."""
        return self.held + self.gradient + self.states


ALIASES = {None: "32-true", "32": "32-true", "bf16": "bf16-mixed"}
ALIASES |= {"16": "bf16-mixed", "16-mixed": "bf16-mixed", "16-true": "bf16-true"}


class Part(NamedTuple):
    """Weights of a part.

    Attributes:
        trained: Those that train.
        frozen: Those that do not, by the bytes that one was made with.
        outside: Those outside its layers: embeddings, head, all of a connector.
        trained_outside: Those of them that train.
        layer: Those of its largest layer.
    """

    trained: int
    frozen: Counter[float]
    outside: int
    trained_outside: int
    layer: int


def part_weights(model: Llava, stage: Stage) -> dict[str, Part]:
    """Weights of each part, as a stage trains them; adapters stand as a part of their own."""
    found = {}
    every = list(names_of(weights_of(model, nn.Module())))
    lora = stage.lora
    small = {f"{name}.weight" for name in (lora.layers(model) if lora and lora.quantize else ())}
    for name, part in parts_of(model).items():
        sizes = {id(each): _size(each) for each in _layers(part)}
        inside = {id(weight) for each in _layers(part) for weight in each.parameters()}
        trained, frozen, outside, learned = 0, Counter[float](), 0, 0
        for weight, names in every:
            if names[0].split(".")[0] != name:
                continue
            size, learns = weight.numel(), stage.selection.trains(*names)
            outside += size * (id(weight) not in inside)
            learned += size * (learns and id(weight) not in inside)
            trained += size * learns
            if not learns:
                frozen[NF4 if names[0] in small else weight.element_size()] += size
        found[name] = Part(trained, frozen, outside, learned, max(sizes.values(), default=0))
    if lora:
        found["adapters"] = Part(lora.size(model), Counter(), 0, 0, 0)
    return found


def frozen_bytes(parts: Iterable[Part], held: int, merged: bool = False) -> tuple[int, str]:
    """Bytes of the weights that do not train, and their formula.

    A weight takes what it was made with, or less where the precision holds all in less.

    Args:
        parts: The parts.
        held: Bytes in which the precision holds a weight.
        merged: Whether adapters are merged: then weights in 4 bits are in full again.
    """
    found = Counter[float]()
    for part in parts:
        for own, count in part.frozen.items():
            found[held if merged and own == NF4 else min(held, own)] += count
    said = " + ".join(f"{each:.3g} x {count:,} frozen" for each, count in found.items())
    return ceil(sum(each * count for each, count in found.items())), said or "0 frozen"


def answering(parts: dict[str, Part], kind: Bytes) -> tuple[int, str]:
    """Bytes of the whole model while it answers, adapters merged, and their formula."""
    trained = sum(part.trained for name, part in parts.items() if name != "adapters")
    frozen, said = frozen_bytes(parts.values(), kind.held, merged=True)
    return kind.held * trained + frozen, f"{kind.held} x {trained:,} trained + {said}"


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _layers(part: nn.Module) -> Sequence[nn.Module]:
    """The layers of a part: the longest list of modules that it holds."""
    lists = [m for m in part.modules() if isinstance(m, (nn.ModuleList, nn.Sequential))]
    return list(max(lists, key=_depth)) if any(_depth(each) > 2 for each in lists) else []


def _depth(modules: nn.ModuleList | nn.Sequential) -> int:
    return sum(_size(each) > 0 for each in modules)


def activations(
    model: Llava, tokens: dict[str, int], stage: Stage, devices: int
) -> Iterator[tuple[str, int, str]]:
    """Parts, bytes that their blocks keep for the backward pass, formulas; of a micro-batch.

    Args:
        model: The model.
        tokens: Tokens of a row that each part sees.
        stage: The stage.
        devices: Devices that share a step's rows.
    """
    rows, config = rows_at_once(stage, devices), model.llm.model.config
    sizes = {"llm": (config.hidden_size, config.num_hidden_layers)}
    if "encoder" in stage.selection.parts:
        width = model.encoder.width
        sizes["encoder"] = (width, round(model.size("encoder") / (12 * width**2)))
    for part, (width, blocks) in sizes.items():
        kept = KEPT_BYTES[stage.gradient_checkpointing if part == "llm" else False]
        size = rows * tokens[part] * width * (kept * blocks + BLOCK_BYTES - kept)
        bytes_ = f"({kept} x {blocks} blocks + {BLOCK_BYTES - kept})"
        formula = f"{rows} rows at once x {tokens[part]:,} tokens x {width:,} x {bytes_}"
        yield part, size, formula


def rows_at_once(stage: Stage, devices: int) -> int:
    """Rows of a micro-batch on a device: of the largest, where they differ.

    Raises:
        ValueError: If a batch has fewer rows than there are devices.
    """
    return ceil(ceil(stage.data.batch_size / devices) / stage.data.accumulate(devices))


def memory_rows(
    model: Llava, stage: Stage, tokens: dict[str, int], budget: Budget, precision: Any
) -> Iterator[Row]:
    """What each device holds under each strategy, and the best that fits.

    Raises:
        ValueError: If the precision is not known.
    """
    parts, kind = part_weights(model, stage), bytes_of(precision)
    kept = list(activations(model, tokens, stage, budget.devices))
    for part, size, formula in kept:
        yield [f"GiB of activations, {part}", figure(size / GIBI, ",.1f"), formula]
    active, fits = sum(size for _, size, _ in kept), []
    accumulates, (_, answers) = stage.data.accumulate(budget.devices) > 1, answering(parts, kind)
    for name, step, whole, formula in strategies(parts, kind, budget, accumulates):
        value = max(step + active, whole) / GIBI
        if value <= (1 - SPARE) * budget.memory:
            fits.append(name)
        formula += " + activations"
        if whole > step + active:
            formula = f"{answers} while it answers; a step takes less: {formula}"
        yield [f"GiB a device, {name}", figure(value, ",.1f"), formula]
    best = fits[0] if fits else "none"
    formula = (
        f"the first of them below {1 - SPARE:.0%} of it: each sends more than the one before"
        if fits
        else "take more devices, fewer rows at once, or adapters (configs/stage/lora.yaml)"
    )
    yield [f"fits {budget.memory:g} GiB", Figure(best, fits), formula]


def bytes_of(precision: Any) -> Bytes:
    """Bytes a weight under a precision of the trainer.

    Raises:
        ValueError: If it is not known.
    """
    name = ALIASES.get(None if precision is None else str(precision), str(precision))
    if name not in BYTES:
        raise ValueError(f"trainer.precision: {precision!r} is not planned; known: {[*BYTES]}")
    return Bytes(*BYTES[name], used=4 if name == "32-true" else 2)


def strategies(
    parts: dict[str, Part], kind: Bytes, budget: Budget, accumulates: bool
) -> Iterator[tuple[str, int, int, str]]:
    """Strategies in order of what they send a step.

    A gradient is sent once a step under all of them; weights are gathered for each micro-batch
    where they are shared out, and within a node where each node has a copy. Weights in 4 bits are
    not shared out.

    Args:
        parts: Weights of each part.
        kind: Bytes a weight.
        budget: Devices and nodes.
        accumulates: Whether a step has several micro-batches.

    Yields:
        Name, bytes of a step but its activations, bytes while answering, formula of the step's.
    """
    trained, (whole, _) = sum(part.trained for part in parts.values()), answering(parts, kind)
    size, said = frozen_bytes(parts.values(), kind.held)
    size, said = size + kind.trained * trained, f"{kind.trained} x {trained:,} trained + {said}"
    if kind.used != kind.held:
        size, said = size + kind.used * trained, f"{said} + {kind.used} x trained as they are used"
    if budget.devices == 1:
        yield "alone", size, whole, said
        return
    size, said = size + kind.gradient * trained, f"{said} + {kind.gradient} x trained in buckets"
    yield "ddp", size, whole, said
    if any(NF4 in part.frozen for part in parts.values()):
        return
    kept = [name for name, part in parts.items() if name == "encoder" and not part.trained]
    if budget.devices > budget.nodes > 1:
        size, said = _shared(parts, kind, budget.devices // budget.nodes, kept, accumulates)
        yield "hsdp", size, whole, said
    size, said = _shared(parts, kind, budget.devices, kept, accumulates)
    yield "fsdp2", size, whole, said
    size, said = _shared(parts, kind, budget.devices, kept, False)
    yield "fsdp2_large", size, 0, said
    if kept:
        size, said = _shared(parts, kind, budget.devices, [], False)
        yield "fsdp2_large, whole: []", size, 0, said


def _shared(
    parts: dict[str, Part], kind: Bytes, devices: int, whole: Sequence[str], accumulated: bool
) -> tuple[int, str]:
    """Bytes a device where parts are shared out over some, as `Sharded` does it; the formula.

    What is outside layers is gathered for a whole step, with its gradients; of layers one is in
    use and the next on its way, and gradients of one are on their way.
    """
    if kind == bytes_of("bf16-master"):  # sharding refuses it: bf16-mixed keeps the same there
        kind = bytes_of("bf16-mixed")
    shared = [part for name, part in parts.items() if name not in whole]
    trained, outside = sum(each.trained for each in shared), sum(each.outside for each in shared)
    learned = sum(each.trained_outside for each in shared)
    layer = max(part.layer for part in shared)
    frozen, said = frozen_bytes(shared, kind.held)
    size = (kind.trained * trained + frozen) // devices
    said = f"({kind.trained} x {trained:,} trained + {said}) / {devices}"
    if whole:
        kept, formula = frozen_bytes([parts[name] for name in whole], kind.held)
        size, said = size + kept, f"{said} + {formula}, whole"
    size += kind.used * (outside + learned + 2 * layer) + (kind.used + kind.gradient) * layer
    said += f" + gathered: {kind.used} x ({outside:,} + {learned:,} gradients outside layers"
    said += f" + 2 x {layer:,} of a layer) + {kind.used + kind.gradient} x a layer's gradients"
    if accumulated:
        size, said = size + kind.gradient * trained, f"{said} + {kind.gradient} x trained, kept"
    return size, said


def reference_rows(model: Llava, stage: Stage, precision: Any) -> Iterator[Row]:
    """What a preference stage would take more with its reference in memory."""
    if isinstance(stage.loss, PreferenceLoss):
        whole, held = 0 if stage.lora else stage.size(model), bytes_of(precision).held
        formula = f"{held} x {whole:,} bytes that train; here its numbers are kept"
        more = figure(held * whole / GIBI, ",.1f")
        yield ["GiB more with a reference in memory", more, formula]
