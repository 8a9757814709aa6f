"""The parts of the tiny scale are made in the sizes in which they are read."""

import pytest
import yaml
from conftest import REPOSITORY

from llava_lab.cli import tiny_parts
from llava_lab.experiment.experiment import Experiment
from llava_lab.model.weights import ASSETS

CONFIGS = REPOSITORY / "configs"


@pytest.fixture(scope="module")
def made() -> dict[str, dict]:
    read = Experiment.read(REPOSITORY / tiny_parts.EXPERIMENT)
    return {name: read.changed(p.options).config for name, p in tiny_parts.PARTS.items()}


def test_a_part_is_made_by_the_last_of_its_stages_alone(made: dict[str, dict]) -> None:
    for name, part in tiny_parts.PARTS.items():
        stages = [stage for stage, value in made[name]["stages"].items() if value is not None]
        assert stages[-1] == part.stage
        assert (part.stage == "contrast") == (stages == ["contrast"])


def test_every_part_is_read_in_the_size_in_which_it_is_made(made: dict[str, dict]) -> None:
    tiny = yaml.safe_load((CONFIGS / "scale" / "tiny.yaml").read_text())["model"]["llm"]
    small = yaml.safe_load((CONFIGS / "lm" / "tiny_small.yaml").read_text())
    for name, read in (("llm", tiny), ("llm_small", small)):
        assert read["weights"] == f"asset:{name}.safetensors"
        config = dict(made[name]["model"]["llm"]["config"])
        config.pop("initializer_range")
        assert config == {k: v for k, v in read["config"].items() if k != "extends"}
    for name, side in (("encoder_96", 96), ("encoder_64", 64)):
        assert made[name]["model"]["encoder"]["image_size"] == side


def test_the_package_holds_every_part_and_no_other() -> None:
    there = {path.stem for path in ASSETS.glob("*.safetensors")}
    assert there == tiny_parts.PARTS.keys()
    assert sum(path.stat().st_size for path in ASSETS.rglob("*")) < 16e6


def test_an_unknown_part_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="there is no part encoder; there are tokenizer, llm, enc"):
        tiny_parts.main(["encoder"])
