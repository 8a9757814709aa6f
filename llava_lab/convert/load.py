"""Load: the folder of a run, or an imported one -> the model and its views.

The folder may come from someone else: only classes of this package and of modules that the caller
trusts are imported, which is checked before anything is built.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from llava_lab.convert.templates import check_cost
from llava_lab.core.trust import check_tree, only_trusted
from llava_lab.core.yaml_file import read_mapping
from llava_lab.data.chat import get_template
from llava_lab.data.views.base import Views
from llava_lab.experiment.compose import EXTENDS, short
from llava_lab.experiment.options import class_of
from llava_lab.experiment.parser import LabParser
from llava_lab.experiment.run import finished_stages
from llava_lab.model.llava import Llava
from llava_lab.train.kept import stage_of
from llava_lab.train.stage_weights import load_trained

MODEL = "model.yaml"
CONFIG = "config.yaml"


def is_ours(source: Path) -> bool:
    """Whether this is a run, an imported model, or weights that a run has kept of a stage."""
    return stage_of(source) is not None or any((source / n).is_file() for n in (CONFIG, MODEL))


def load_model(
    source: Path, template: str | None = None, trusted: Sequence[str] = ()
) -> tuple[Llava, Views]:
    """Load the model of a finished run or an imported folder, and its views.

    Args:
        source: Folder of a run, or an imported one; or a file of weights that a run has kept.
        template: Chat template in place of the model's own.
        trusted: Modules beside this package whose classes the folder may name.

    Raises:
        FileNotFoundError: If the folder is neither.
        ValueError: If the folder names code that is not trusted, a stage of the run is not
            finished, or weights do not fit.
    """
    stage = stage_of(source)
    folder = source if stage is None else stage.parents[1]
    path = next((folder / name for name in (CONFIG, MODEL) if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder}: neither a run ({CONFIG}) nor imported ({MODEL})")
    with only_trusted(trusted):
        config = _read(path)
        if template is not None:
            get_template(template)  # refuses a name that there is not
            _section(config, path, "model", "llm")["template"] = template
        built = _build(config, path)
    model: Llava = built.model
    names = _stages(config, path)
    if stage is not None:
        if stage.name not in names:
            raise ValueError(f"{source}: {path} has no stage {stage.name!r}")
        names = names[: names.index(stage.name) + 1]
    for weights, fingerprint in finished_stages(folder, names):
        kept = stage is not None and weights.parent.name == stage.name
        load_trained(model, source if kept else weights, fingerprint)
    model.llm.scale(config["data"].get("rope_factor", 1.0))
    if model.llm.template == "tokenizer":
        check_cost(model.llm.tokenizer, str(folder))
    return model.eval(), built.views


def _read(path: Path) -> dict[str, Any]:
    """Read the configuration, and check every class that it names without importing it."""
    config = read_mapping(path)
    try:
        check_tree(config)
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply for a configuration") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        return short(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _section(config: dict[str, Any], path: Path, *keys: str) -> Any:
    """Read a nested value; every key must exist, and all but the last hold mappings."""
    found: Any = config
    for number, key in enumerate(keys, 1):
        if not isinstance(found, dict) or key not in found:
            raise ValueError(f"{path}: has no {'.'.join(keys[:number])}")
        found = found[key]
    return found


def _build(config: dict[str, Any], path: Path) -> Namespace:
    """Build the model and the views; weights that a stage has trained are random yet."""
    parser = LabParser()
    parser.add_argument("--model", type=Llava, required=True)
    parser.add_argument("--views", type=Views, required=True)
    views = _section(config, path, "data", "views")
    if isinstance(views, dict):
        views = {key: value for key, value in views.items() if key != EXTENDS}  # null: an import's
    wanted = {"model": class_of(Llava, _section(config, path, "model")), "views": views}
    seed = config.get("seed_everything") or 0
    if not isinstance(seed, int):
        raise ValueError(f"{path}: seed_everything is {seed!r}, not a whole number")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of parts that nothing has trained
            built: Any = parser.instantiate(parser.checked(wanted))
            return built
    except (FileNotFoundError, ValueError) as error:
        if str(path.parent) in str(error):
            raise  # names a file of the folder
        raise ValueError(f"{path}: {error}") from error


def _stages(config: dict[str, Any], path: Path) -> list[str]:
    """Read the stages of a run, in their order."""
    stages = config.get("stages") or {}
    if not isinstance(stages, dict):
        raise ValueError(f"{path}: stages is {type(stages).__name__}, not a mapping")
    return [name for name, step in stages.items() if step is not None]
