"""Every version's recipe at the paper scale is the published one, value for value: recipes.yaml."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY

from llava_lab.data.grids import parse_grids
from llava_lab.experiment.compose import flat
from llava_lab.experiment.experiment import Experiment
from llava_lab.report.plan_costs import PUBLISHED_ROWS

PUBLISHED = yaml.safe_load(Path(__file__).with_name("recipes.yaml").read_text())
VERSIONS, SIZES = PUBLISHED["versions"], PUBLISHED["sizes"]
CONNECTORS = {"Linear": "linear", "MLP": "mlp{depth}x_gelu"}


def kind(options: dict[str, Any]) -> str:
    return options["class_path"].rpartition(".")[2]


def rows(source: dict[str, Any]) -> int | None:
    path = Path(source["path"])
    assert source["sampling"] == "all" and source["template"] is None
    return PUBLISHED_ROWS.get(f"{path.parent.name}/{path.name}", PUBLISHED_ROWS.get(path.name))


def views_of(views: dict[str, Any], pixels: int) -> dict[str, Any]:
    """Views in the words of the scripts; what is off is left out, but for frames a second."""
    found = {"kind": kind(views)}
    for key, value in views.items():
        if key == "grids":
            found["pinpoints"] = [[w * pixels, h * pixels] for w, h in parse_grids(value)]
        elif key == "image":
            found[key] = views_of(value, pixels)
        elif key == "fps" or (key != "class_path" and value not in (None, False)):
            found[key] = value
    return found


def stage_of(config: dict[str, Any], name: str) -> dict[str, Any]:
    stage, llm, pixels = config["stages"][name], config["model"]["llm"], config["resolution"]
    data, trainer = stage["data"], config["trainer"] | (stage["trainer"] or {})
    assert stage["lr_scale"] == 1 and data["max_steps"] is None and data["hold_out"] == 0
    loss = {key: value for key, value in stage["loss"].items() if key != "class_path"}
    return {
        "files": [Path(source["path"]).name for source in data["sources"]],
        "rows": [rows(source) for source in data["sources"]],
        "template": data["template"] or llm["template"],
        "supervised": data.get("masking", "correct"),
        "image": data.get("image_position", "first"),
        "views": views_of(data["views"], pixels),
        "length": (data["max_length"] or llm["max_length"]) * llm["rope_factor"],
        "batch": data["batch_size"],
        "epochs": data["epochs"],
        "grouped": data.get("group_by_modality", False),
        "lr": {part: rate for part, rate in stage["lr"].items() if rate is not None},
        "frozen": stage["frozen"],
        "lora": stage["lora"],
        "optimizer": stage["optimizer"],
        "betas": stage["betas"],
        "schedule": stage["schedule"],
        "warmup": stage["warmup_ratio"],
        "decay": stage["weight_decay"],
        "clip": trainer["gradient_clip_val"],
        "precision": trainer["precision"].removesuffix("-mixed"),
        "loss": {"kind": kind(stage["loss"]), **loss},
        "normalization": stage["normalization"],
    }


def recipe(*files: str) -> dict[str, Any]:
    """The recipe of an experiment at the paper scale, in the words of recipes.yaml."""
    config = Experiment.read(*(REPOSITORY / file for file in files)).config
    model, data, pixels = config["model"], config["data"], config["resolution"]
    encoder, llm, connector = model["encoder"], model["llm"], model["connector"]
    assert encoder["config"]["image_size"] == pixels and encoder["pretrained"] and llm["pretrained"]
    return {
        "model": {
            "encoder": encoder["name"],
            "pixels": pixels,
            "layer": encoder["layer"],
            "cls": encoder["cls"],
            "connector": CONNECTORS[kind(connector)].format_map(connector),
            "newline": model["newline"],
            "llm": llm["name"],
            "context": llm["config"]["max_position_embeddings"] * llm["rope_factor"],
        },
        "stages": {name: stage_of(config, name) for name in config["stages"]},
        "asked": {
            "template": data["template"] or llm["template"],
            "image": data["image_position"],
            "temperature": data["temperature"],
            "tokens": data["max_new_tokens"],
            "rope_factor": data["rope_factor"],
            "views": views_of(data["views"], pixels),
        },
    }


def paper(name: str) -> tuple[str, str]:
    return f"experiments/{name}.yaml", "configs/scale/paper.yaml"


def header(path: Path) -> str:
    lines = path.read_text().splitlines()
    return " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))


def test_every_version_has_a_published_recipe() -> None:
    names = {path.stem for path in (REPOSITORY / "experiments").glob("*.yaml")}
    assert set(VERSIONS) == names - {"tiny_parts"}
    assert set(SIZES) == {path.stem for path in (REPOSITORY / "configs" / "size").glob("*.yaml")}


@pytest.mark.parametrize("name", VERSIONS)
def test_a_version_is_its_published_recipe(name: str) -> None:
    published = {key: value for key, value in VERSIONS[name].items() if key != "sources"}
    assert recipe(*paper(name)) == published


@pytest.mark.parametrize("name", SIZES)
def test_a_size_changes_what_was_published_of_it_and_nothing_else(name: str) -> None:
    size = SIZES[name]
    published = {
        key: value for key, value in VERSIONS[size["experiment"]].items() if key != "sources"
    }
    found = recipe(*paper(size["experiment"]), f"configs/size/{name}.yaml")
    assert dict(flat(found)) == dict(flat(published)) | size["changes"]


@pytest.mark.parametrize("name", VERSIONS)
def test_a_header_names_the_sources_and_what_deviates(name: str) -> None:
    said = header(REPOSITORY / "experiments" / f"{name}.yaml")
    assert "Deviations: " in said
    named = {word for source in VERSIONS[name]["sources"] for word in source.split() if "@" in word}
    assert all(each in said for each in named), named
