"""13d. Load: a run's folder or an imported one -> the model and the policy of its images."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace

from llava_lab.data.image import Policy
from llava_lab.model.llava import Llava
from llava_lab.parser import LabParser
from llava_lab.train.stage import load_trained, stage_file

MODEL = "model.yaml"
CONFIG = "config.yaml"


def is_ours(folder: Path) -> bool:
    """Whether a folder is a run or imported."""
    return any((folder / name).is_file() for name in (CONFIG, MODEL))


def load_model(folder: Path) -> tuple[Llava, Policy]:
    """The model of a finished run or an imported folder, ready to answer, and its policy.

    Raises:
        FileNotFoundError: If the folder is neither.
        ValueError: If a stage of the run is not finished, or weights do not fit.
    """
    path = next((folder / name for name in (CONFIG, MODEL) if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder}: neither a run ({CONFIG}) nor imported ({MODEL})")
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    parser = LabParser(exit_on_error=False)
    parser.add_class_arguments(Llava, "model", sub_configs=True)
    parser.add_argument("--policy", type=Policy)
    wanted = {"model": config["model"], "policy": config["data"]["policy"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.get("seed_everything") or 0)  # of parts that nothing has trained
        built: Namespace = parser.instantiate(parser.parse_object(wanted))
    model: Llava = built.model
    for name in _stages(config):
        record = folder / "stages" / name
        if not (record / "stage.json").is_file():
            raise ValueError(f"{folder}: stage {name} is not finished; repeat its fit")
        fingerprint = json.loads((record / "stage.json").read_text())["fingerprint"]
        load_trained(model, stage_file(record), fingerprint)
    model.llm.scale(config["data"].get("rope_factor", 1.0))
    return model.eval(), built.policy


def _stages(config: dict[str, Any]) -> list[str]:
    """Stages of a run, in the order in which they ran."""
    return [name for name, step in (config.get("stages") or {}).items() if step is not None]
