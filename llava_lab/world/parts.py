"""0g. Parts: trains the tiny scale's encoder and LM from nothing and puts them into the package.

Run as `python -m llava_lab.world.parts`. The tokenizer that both read with ships beside them; it
was made by `llava_lab.world.tokenizer` from the same world's texts.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from llava_lab import cli
from llava_lab.model.weights import ASSETS
from llava_lab.run import write

EXPERIMENT = Path("experiments/tiny_parts.yaml")
# File, stage that makes it, and what its names lose to be those of timm and transformers.
PARTS = (("encoder", "contrast", "encoder.tower."), ("llm", "language", "llm.model."))
NOTE = """The encoder and the LM of the tiny scale, in half precision, and their tokenizer.
Made by `python -m llava_lab.world.parts` from experiments/tiny_parts.yaml.
"""


def main() -> None:
    """Train the two stages and pack what they trained."""
    cli.main(["fit", "-c", str(EXPERIMENT)])
    newest = max(Path("runs/tiny_parts").glob("*/results.json"), key=lambda p: p.stat().st_mtime)
    pack(newest.parent)


def pack(run: Path) -> None:
    """Copy a run's parts into the package, in half precision."""
    for part, stage, prefix in PARTS:
        weights = load_file(run / "stages" / stage / "weights.safetensors")
        half = {
            key.removeprefix(prefix): tensor.to(torch.float16) for key, tensor in weights.items()
        }
        save_file(half, ASSETS / f"{part}.safetensors")
    write(ASSETS / "README.md", NOTE)


if __name__ == "__main__":
    main()
