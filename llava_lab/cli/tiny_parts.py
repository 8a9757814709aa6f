"""Parts: makes the tiny scale's tokenizer, encoder and LM from nothing, for the package.

Run as `python -m llava_lab.cli.tiny_parts` from the repository's root.
"""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from llava_lab.core.atomic import write
from llava_lab.experiment.experiment import Experiment
from llava_lab.model.weights import ASSETS
from llava_lab.tiny_world.generate import TinyWorld
from llava_lab.tiny_world.tokenizer import train_tokenizer, world_texts

EXPERIMENT = Path("experiments/tiny_parts.yaml")
# File, stage that makes it, and what its names lose to be those of timm and transformers.
PARTS = (("encoder", "contrast", "encoder.tower."), ("llm", "language", "llm.model."))
TEXTS = {"seed": 1, "train_images": 1500, "eval_images": 10, "text_rows": 6000}
VOCABULARY = 768
NOTE = """The encoder and the LM of the tiny scale, in half precision, and their tokenizer.
Made by `python -m llava_lab.cli.tiny_parts` from experiments/tiny_parts.yaml.
judge/ has what judges are told, in our own words.
"""


def main() -> None:
    """Make the tokenizer, train the stages, and pack what they trained."""
    torch.set_num_threads(1)  # sums of convolutions depend on it, and so would every later bit
    tokenizer(ASSETS / "tokenizer")
    pack(Experiment.read(EXPERIMENT).fit().folder)


def tokenizer(folder: Path) -> None:
    """Train the tokenizer on the texts of a world of its own, and save it."""
    with tempfile.TemporaryDirectory() as temporary:
        world = TinyWorld(Path(temporary) / "world", **TEXTS)
        world.generate()
        train_tokenizer(world_texts(world.root), VOCABULARY).save_pretrained(folder)


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
