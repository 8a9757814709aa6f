"""Parts: makes the tiny scale's tokenizer, encoders and LMs from nothing, for the package.

Run as `python -m llava_lab.cli.tiny_parts [PART...]` from the repository's root; without names all
of them are made.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from llava_lab.core.atomic import write
from llava_lab.experiment.experiment import Experiment
from llava_lab.model.weights import ASSETS
from llava_lab.tiny_world.generate import TinyWorld
from llava_lab.tiny_world.tokenizer import train_tokenizer, world_texts

EXPERIMENT = Path("experiments/tiny_parts.yaml")
TEXTS = {"seed": 1, "train_images": 1500, "eval_images": 10, "text_rows": 6000}
VOCABULARY = 768
NOTE = """The encoders and LMs of the tiny scale, in half precision, and their tokenizer.
Made by `python -m llava_lab.cli.tiny_parts` from experiments/tiny_parts.yaml.
judge/ has what judges are told, in our own words.
"""


class Part(NamedTuple):
    """A part that ships.

    Attributes:
        stage: The stage that makes it.
        prefix: What its names lose to be those of timm and transformers.
        options: What differs from the experiment.
    """

    stage: str
    prefix: str
    options: dict[str, Any]


ENCODER: dict[str, Any] = {
    f"stages.{name}": None for name in ("lists", "facts", "language", "length")
}
LLM: dict[str, Any] = {"stages.contrast": None}
SMALL = {
    "hidden_size": 96,
    "intermediate_size": 224,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
}
PARTS = {
    "llm": Part("length", "llm.model.", LLM),
    "encoder_96": Part("contrast", "encoder.tower.", ENCODER),
    "encoder_64": Part("contrast", "encoder.tower.", ENCODER | {"resolution": 224}),
    "llm_small": Part(
        "length",
        "llm.model.",
        LLM | {f"model.llm.config.{key}": value for key, value in SMALL.items()},
    ),
}


def main(names: list[str]) -> None:
    """Make the tokenizer, train the parts, and pack them."""
    torch.set_num_threads(1)  # sums of convolutions depend on it, and so would every later bit
    known = ["tokenizer", *PARTS]
    if odd := [name for name in names if name not in known]:
        sys.exit(f"error: there is no part {odd[0]}; there are {', '.join(known)}")
    for name in names or known:
        if name == "tokenizer":
            tokenizer(ASSETS / "tokenizer")
        else:
            pack(name, Experiment.read(EXPERIMENT).changed(PARTS[name].options).fit().folder)
    write(ASSETS / "README.md", NOTE)


def tokenizer(folder: Path) -> None:
    """Train the tokenizer on the texts of a world of its own, and save it."""
    with tempfile.TemporaryDirectory() as temporary:
        world = TinyWorld(Path(temporary) / "world", **TEXTS)
        world.generate()
        train_tokenizer(world_texts(world.root), VOCABULARY).save_pretrained(folder)


def pack(name: str, run: Path) -> None:
    """Copy a run's part into the package, in half precision."""
    part = PARTS[name]
    weights = load_file(run / "stages" / part.stage / "weights.safetensors")
    half = {
        key.removeprefix(part.prefix): tensor.to(torch.float16) for key, tensor in weights.items()
    }
    save_file(half, ASSETS / f"{name}.safetensors")


if __name__ == "__main__":
    main(sys.argv[1:])
