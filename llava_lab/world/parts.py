"""0g. Parts: trains the tiny scale's encoder and LM from nothing and puts them into the package.

Run as `python -m llava_lab.world.parts`.
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from llava_lab import cli
from llava_lab.model.weights import ASSETS
from llava_lab.run import write
from llava_lab.world.generate import TinyWorld
from llava_lab.world.tokenizer import train_tokenizer, world_texts

EXPERIMENT = Path("experiments/tiny_parts.yaml")
WORLD = TinyWorld(Path("world/parts"), seed=1, train_images=16000, text_rows=40000)
# File, stage that makes it, and what its names lose to be those of timm and transformers.
PARTS = (("encoder", "contrast", "encoder.tower."), ("llm", "language", "llm.model."))


def main() -> None:
    """Make the world, its tokenizer, train the two stages, and pack what they trained."""
    WORLD.generate()
    tokenizer = WORLD.root / "tokenizer"
    if not tokenizer.exists():
        draft = tokenizer.with_name("tokenizer.draft")
        train_tokenizer(world_texts(WORLD.root)).save_pretrained(draft)
        draft.rename(tokenizer)
    cli.main(["fit", "-c", str(EXPERIMENT)])
    newest = max(Path("runs/tiny_parts").glob("*/results.json"), key=lambda p: p.stat().st_mtime)
    pack(newest.parent, tokenizer)


def pack(run: Path, tokenizer: Path) -> None:
    """Copy the trained parts in half precision, and the tokenizer, into the package."""
    shutil.copytree(tokenizer, ASSETS / "tokenizer", dirs_exist_ok=True)
    for part, stage, prefix in PARTS:
        weights = load_file(run / "stages" / stage / "weights.safetensors")
        half = {
            key.removeprefix(prefix): tensor.to(torch.float16) for key, tensor in weights.items()
        }
        save_file(half, ASSETS / f"{part}.safetensors")
    write(ASSETS / "README.md", NOTE)


NOTE = """The encoder and the LM of the tiny scale, in half precision, and their tokenizer.
Made by `python -m llava_lab.world.parts` from experiments/tiny_parts.yaml.
"""

if __name__ == "__main__":
    main()
