"""Commands of docs/clusters.md, made short for a test, and the weights of their runs."""

import os
import re
import sys
from pathlib import Path

from conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "clusters.md"


def commands(beginning: str) -> list[str]:
    """Lines of the page's blocks that begin so, and compute on CPUs."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    found = [each for each in lines if each.startswith(beginning) and "accelerator=cpu" in each]
    assert found, f"{PAGE} has no command {beginning}"
    return found


def script() -> str:
    """The page's script for sbatch."""
    (found,) = re.findall(r"^```bash\n(#!.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return found


def options(world: Path) -> list[str]:
    """Four steps of four rows for the first stage, twelve for the second."""
    given = {
        "tiny_world": "null",
        "tiny_videos": "null",
        "paths.root": world,
        "data.images_per_batch": 6,
        "data.max_new_tokens": 3,
        "trainer.callbacks": '[{"class_path": "pause.Pause"}]',
    }
    for stage, steps in (("align", 4), ("instruct", 12)):
        given |= {f"stages.{stage}.data.max_steps": steps, f"stages.{stage}.data.batch_size": 4}
    return [f"--{key}={value}" for key, value in given.items()]


def environment(**more: str) -> dict[str, str]:
    """An environment in which the package, `pause` and Python's own programs are found."""
    paths = {
        "PYTHONPATH": f"{REPOSITORY}:{Path(__file__).parent}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    return {**os.environ, **paths, **more}


def weights(runs: Path) -> dict[str, bytes]:
    """Trained weights of the second stage, by its LM's learning rate."""
    found = {}
    for file in runs.glob("llava15/*/stages/instruct/weights.safetensors"):
        text = (file.parents[2] / "config.yaml").read_text()
        found[re.findall(r"llm: (\S*e-0?5)", text)[-1]] = file.read_bytes()
    return found
