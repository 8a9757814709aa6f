"""Peak memory of loss and logits against the vocabulary, and of what a layer keeps.

    python tests/benchmarks/memory.py [--size small] [--device cuda] [--json FILE]

`small` takes a minute on two cores, `1b` on a GPU. Two tables:

- The loss from hidden states and a head, forward and backward, over 32,000 to 152,064 words: ours
  against `linear` and `cross_entropy` in 32 bits. Counted is what is alive at the peak beside the
  arguments and their gradients. First, losses and gradients are compared at the smallest.
- A step of `--batch` rows of sft.py under each `gradient_checkpointing`: what is alive at the peak
  beside weights and gradients. Losses are compared.

On a GPU it is what torch's allocator gave out, on a CPU what torch asked for (its profiler); what
kernels take themselves, and what an allocator wastes, are in neither. On a CPU the plain way is
measured up to --most logits, or it would take tens of GB.
"""

import gc
from collections.abc import Callable
from typing import Any

import torch
from common import SIZES, make_model, options, prepared, report, say
from sft import Rows, draw
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from llava_lab.data.packing import Batch
from llava_lab.train.cross_entropy import linear_cross_entropy
from llava_lab.train.loss import NextToken
from llava_lab.train.stage import Stage

WORDS = (32_000, 64_000, 128_000, 152_064)
GIBI = 2**30


def peak_of(work: Callable[[], Any], device: torch.device) -> int:
    """Bytes that are alive at the peak of some work, beside those that were before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """All logits at once, as most trainers have them."""
    return functional.cross_entropy(
        functional.linear(hidden, weight).float(), targets, reduction="none"
    )


def loss_peak(loss: Callable[..., Tensor], given: tuple[Tensor, Tensor, Tensor]) -> float:
    """Bytes of a loss beside its arguments and their gradients."""
    hidden, weight, targets = given
    device = hidden.device

    def both() -> None:
        loss(hidden, weight, targets).sum().backward()

    forward = peak_of(lambda: loss(hidden, weight, targets), device)
    whole = peak_of(both, device)
    gradients = sum(each.grad.nbytes for each in (hidden, weight))  # pyrefly: ignore
    hidden.grad = weight.grad = None
    return max(forward, whole - gradients)


def apart(given: tuple[Tensor, Tensor, Tensor]) -> float:
    """How far losses and gradients of both ways are apart, over their size."""
    found = []
    for loss in (linear_cross_entropy, plain):
        losses = loss(*given)
        weights = torch.linspace(0.5, 1.5, len(losses), device=losses.device)
        gradients = torch.autograd.grad((losses * weights).mean(), given[:2])
        found.append((losses.detach(), *gradients))
    sizes = [(a - b).float().norm() / b.float().norm() for a, b in zip(*found, strict=True)]
    return max(map(float, sizes))


def losses(given: Any) -> dict[str, dict[str, float | str]]:
    """Peaks of both ways over vocabularies."""
    width = SIZES[given.size].lm["hidden_size"] if given.device.type == "cuda" else 64
    kind = {"device": given.device, "dtype": given.dtype}
    torch.manual_seed(0)
    hidden = torch.randn(given.targets, width, **kind).requires_grad_()
    rows: dict[str, dict[str, float | str]] = {}
    first = 0.0
    for words in WORDS:
        weight = (torch.randn(words, width, **kind) / width**0.5).requires_grad_()
        arguments = hidden, weight, torch.randint(words, (given.targets,), device=given.device)
        if words == WORDS[0]:
            error = apart(arguments)
            say(f"both ways are {error:.2g} apart")
            if error > (1e-2 if given.dtype == torch.bfloat16 else 1e-4):
                raise SystemExit("the two losses are not the same")
        say(f"{words:,} words")
        ours = loss_peak(linear_cross_entropy, arguments) / GIBI
        first = first or ours
        fits = given.device.type == "cuda" or given.targets * words <= given.most
        rows[f"{words:,} words"] = {
            "ours, GiB": ours,
            "over the first": ours / first,
            "plain, GiB": loss_peak(plain, arguments) / GIBI if fits else "not run",
        }
    return rows


def layers(given: Any) -> dict[str, dict[str, float | str]]:
    """Peaks of a step by what is recomputed."""
    model = make_model(SIZES[given.size], given.device, given.dtype)
    pixels = given.device.type == "cuda"
    rows = draw(given.batch, model, model.llm.model.config.vocab_size, pixels)
    batch = Batch.pack(rows).to(given.device)
    found: dict[str, dict[str, float | str]] = {}
    first = None
    for choice in (False, "products", True):
        say(f"gradient_checkpointing: {choice}")
        model.llm.model.gradient_checkpointing_disable()
        rates = {"llm": 1e-6, "connector": 1e-6}
        kept: Any = choice
        stage = Stage(Rows(rows, len(rows)), NextToken(), rates, gradient_checkpointing=kept)
        stage.prepare(model)

        def step() -> float:
            loss, _ = NextToken()(model, batch)
            loss.backward()
            return float(loss.detach())

        loss = step()  # gradients are there from here on
        first = loss if first is None else first
        if abs(loss - first) > 1e-3 * abs(first):
            raise SystemExit(f"losses are not the same: {loss} and {first}")
        peak = peak_of(step, given.device)
        tokens = len(batch.ids)
        found[str(choice)] = {"GiB": peak / GIBI, "KiB a token": peak / 1024 / tokens}
    return found


def main() -> None:
    """Run both."""
    parser = options(__doc__)
    parser.add_argument("--batch", type=int, help="rows of a step; 16 on a GPU, else 4")
    parser.add_argument("--targets", type=int, help="targets; 8,192 on a GPU, else 4,096")
    parser.add_argument("--most", type=int, default=2**28, help="logits of the plain way on a CPU")
    given = prepared(parser)
    gpu = given.device.type == "cuda"
    given.batch, given.targets = given.batch or (4, 16)[gpu], given.targets or (4096, 8192)[gpu]
    about = {"size": given.size, "device": str(given.device), "targets": given.targets}
    both = {"loss": losses(given), "layers": layers(given)}
    title = f"loss and logits of {given.targets:,} targets: GiB beside arguments and gradients"
    report(title, both["loss"], given.json, **about, layers=both["layers"])
    print()
    report(
        f"a step of {given.batch} rows, {given.size}, by gradient_checkpointing",
        both["layers"],
        None,
    )


if __name__ == "__main__":
    main()
