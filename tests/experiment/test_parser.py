"""The parser: types as they are written, short names of classes, one line for a mistake."""

import pytest
from conftest import REPOSITORY

from llava_lab.experiment.experiment import Experiment
from llava_lab.experiment.parser import LabParser

LLAVA15 = REPOSITORY / "experiments" / "llava15.yaml"


@pytest.mark.parametrize("kind", [int | float | None, float | int | None])
def test_ten_batches_are_not_ten_times_all_of_them(kind: object) -> None:
    """Python keeps the order of a union's types that it saw first, whichever a signature has."""
    parser = LabParser()
    parser.add_argument("--batches", type=kind, default=None)
    for value in (10, 0.5, None):
        found = parser.checked({"batches": value}).batches
        assert (type(found), found) == (type(value), value)


def test_the_tiny_scale_is_validated_on_ten_batches() -> None:
    found = Experiment.read(LLAVA15).config["trainer"]["limit_val_batches"]
    assert (type(found), found) == (int, 10)


def test_a_class_of_the_package_is_named_by_its_name_alone() -> None:
    experiment = Experiment.read(LLAVA15).changed(
        {"model.connector": "Linear", "stages.instruct.data.views": "Square"}
    )
    config = experiment.config
    assert config["model"]["connector"] == {
        "class_path": "llava_lab.model.connector.linear.Linear",
    }
    views = config["stages"]["instruct"]["data"]["views"]
    assert views["class_path"] == "llava_lab.data.views.square.Square"
    assert views["resize"] == "crop"


@pytest.mark.parametrize("before", [{}, {"stages.instruct.lr.encoder": 2e-6}])
@pytest.mark.parametrize("override", ["lr.encoder.blocks.0-1", "lr.encoder.blocks"])
def test_a_rate_below_a_part_is_one_key(before: dict, override: str) -> None:
    experiment = Experiment.read(LLAVA15).changed(before)
    lr = experiment.changed({f"stages.instruct.{override}": 1e-5}).config["stages"]["instruct"][
        "lr"
    ]
    rates = {"connector": 2e-5, "llm": 2e-5, override.removeprefix("lr."): 1e-5}
    assert lr == rates | {key.rpartition(".")[2]: rate for key, rate in before.items()}


@pytest.mark.parametrize("stages", [["instruct"], ["align", "instruct"]])
@pytest.mark.parametrize(
    ("option", "value", "may_be"),
    [("data.epochs", -1, "1 or more"), ("warmup_ratio", 1.5, "from 0 to 1")],
)
def test_a_number_that_cannot_be_is_named_by_every_key_that_has_it(
    stages: list[str], option: str, value: float, may_be: str
) -> None:
    keys = [f"stages.{stage}.{option}" for stage in stages]
    with pytest.raises(ValueError, match=f"^{' and '.join(keys)} is {value}; it is {may_be}$"):
        Experiment.read(LLAVA15).changed(dict.fromkeys(keys, value)).build()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.connector.dept": 3}, r"^model\.connector: .*'dept'.*did you mean 'depth'\?$"),
        ({"stages.align.los": 1}, r"^stages\.align: .*'los'.*did you mean 'loss'\?$"),
        ({"stages.align.data.epochs": "x"}, r"^stages\.align\.data\.epochs: .*int.* x$"),
        ({"modell.x": 1}, r"'modell\.x'.*did you mean 'model'\?$"),
        ({"stages": {"a b": {}}}, r"^stages: 'a b' is no name"),
        ({"seed_everything": -1}, r"^seed_everything is -1; it is 0 or more$"),
        (
            {"data.views": "llava_lab.data.image.Pad"},
            r"^data\.views: .*The class is llava_lab\.data\.views\.pad\.Pad",
        ),
    ],
)
def test_a_mistake_is_one_line_with_the_whole_key(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        _ = Experiment.read(LLAVA15).changed(options).options
    assert "\n" not in str(error.value)
