"""What the benchmarks share: sizes of models, random weights on a device, clocks, peaks, tables."""

import argparse
import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Rows = Mapping[str, Mapping[str, float | str]]


@dataclass(frozen=True)
class Size:
    """A model: an LM of Llama's kind, and the CLIP tower before it.

    Attributes:
        lm: Values of the LM's configuration.
        encoder: Values of the tower's.
        visual: Visual tokens of a view.
    """

    lm: dict[str, Any]
    encoder: dict[str, Any]
    visual: int


def llama(width: int, inner: int, layers: int, heads: int, keys: int, words: int) -> dict[str, Any]:
    """An LM's configuration in Llama's shape; small ones share embeddings and output layer."""
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "vocab_size": words,
        "max_position_embeddings": 16384,
        "tie_word_embeddings": width < 1024,
    }


def tower(side: int, patch: int, width: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    """A CLIP tower's configuration."""
    return {
        "image_size": side,
        "patch_size": patch,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


VIT_S = tower(224, 14, 384, 1536, 12, 6)
VIT_L = tower(336, 14, 1024, 4096, 24, 16)
SIZES = {
    "tiny": Size(llama(64, 160, 2, 4, 2, 1024), tower(64, 16, 32, 64, 2, 4), 16),
    "small": Size(llama(384, 1024, 6, 6, 2, 16384), VIT_S, 256),
    "135m": Size(llama(576, 1536, 30, 9, 3, 49152), VIT_S, 256),  # SmolLM2-135M
    "1b": Size(llama(2048, 5632, 22, 32, 4, 32000), VIT_L, 576),  # TinyLlama
    "7b": Size(llama(4096, 11008, 32, 32, 32, 32000), VIT_L, 576),  # Vicuna-7B
}


def options(doc: str | None, size: str = "small") -> argparse.ArgumentParser:
    """A parser with what every benchmark has."""
    form = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=form)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", default=size, choices=list(SIZES))
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="of weights; bfloat16 on a GPU, else not"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    return parser


def prepared(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options as given; sets the number of threads and the kind of number to compute in."""
    found = parser.parse_args()
    torch.set_num_threads(found.threads)
    found.dtype, found.device = dtype_of(found), torch.device(found.device)
    return found


def dtype_of(given: argparse.Namespace) -> torch.dtype:
    """The type in which weights are held, and computed with."""
    chosen = given.dtype or ("bfloat16" if given.device == "cuda" else "float32")
    return getattr(torch, chosen)


def make_model(size: Size, device: torch.device, dtype: torch.dtype) -> Any:
    """Our model with random weights, made on the device; its connector is LLaVA-1.5's."""
    from llava_lab.model.connector.mlp import MLP
    from llava_lab.model.encoder.clip import ClipEncoder
    from llava_lab.model.llava import Llava
    from llava_lab.model.llm import CausalLM

    before = torch.get_default_dtype()
    torch.manual_seed(0)
    try:
        torch.set_default_dtype(dtype)
        with device:
            encoder = ClipEncoder(None, pretrained=False, config=size.encoder)
            name = str(dtype).removeprefix("torch.")
            llm = CausalLM(
                None, "v1", 16384, False, None, size.lm, "asset:tokenizer", "forest", dtype=name
            )
            return Llava(encoder, MLP, llm).to(device, dtype)
    finally:
        torch.set_default_dtype(before)


def precision(dtype: torch.dtype) -> str:
    """The trainer's precision for weights that are made and trained in one type."""
    return "bf16-true" if dtype == torch.bfloat16 else "32-true"


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product, the best of several."""
    side = 8192 if device.type == "cuda" else 1536
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(12):
        start = clock(device)
        left @ right
        seconds.append(clock(device) - start)
    return 2 * side**3 / min(seconds)


def clock(device: torch.device) -> float:
    """Seconds. One thread of a CPU counts what it had of a core: other work there does not."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def freed(device: torch.device) -> None:
    """Let go of what nothing refers to, and begin to look for the peak of memory anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # else what was freed counts in the peak
        Path("/proc/self/clear_refs").write_text("5")


def most_memory(device: torch.device) -> int:
    """Peak of memory in bytes since `freed`; of a CPU the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM")), 0)


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each number over rounds."""
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def report(title: str, rows: Rows, file: Path | None, **about: Any) -> None:
    """Print a table, a row a way, and write its numbers."""
    print(title)
    heads = list(next(iter(rows.values())))
    first = max(map(len, rows))
    wide = {head: max(len(head), 9) for head in heads}
    print(" " * first + "  " + "  ".join(f"{head:>{wide[head]}}" for head in heads))
    for name, row in rows.items():
        cells = (f"{_written(row[head]):>{wide[head]}}" for head in heads)
        print(f"{name:{first}}  " + "  ".join(cells))
    if file is not None:
        versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        file.write_text(json.dumps({"title": title, **about, **versions, "rows": rows}, indent=1))


def _written(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
