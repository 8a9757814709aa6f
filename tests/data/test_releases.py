"""Releases are trained on as they lie on the disk, each in its own form."""

from pathlib import Path
from typing import Any

import pytest
import torch
from releases import RELEASES
from test_preference import tiny
from test_waiting import trainer_of

from llava_lab.data.modules.image import ImageDataModule, VideoDataModule
from llava_lab.data.modules.preference import PreferenceDataModule
from llava_lab.data.source import Source
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.video import Frames
from llava_lab.model.llava import Llava
from llava_lab.train.loss import NextToken
from llava_lab.train.preference import DPO
from llava_lab.train.stage import Stage

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def model() -> Llava:
    return tiny()


def data_of(name: str, root: Path, **options: Any) -> ImageDataModule:
    """The data of a stage that reads a release."""
    source = Source(**RELEASES[name](root))
    shown = any(each in name for each in ("video", "dpo"))
    kind = VideoDataModule if shown else ImageDataModule
    if name == "sft_dpo_17k":
        kind, options = PreferenceDataModule, {"reference_store": str(root / "refs"), **options}
    data = kind([source], Frames(2, image=Pad()) if shown else Pad(), 2, **options)
    data.name = "stage"
    return data


ALIKE = ("conversation_58k", "detail_23k", "complex_reasoning_77k")  # as instruct_150k
CASES = [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in RELEASES]


@pytest.mark.parametrize("name", CASES)
def test_a_release_is_trained_on_in_its_own_form(name: str, model: Llava, tmp_path: Path) -> None:
    data = data_of(name, tmp_path, max_steps=2, epochs=2)
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    loss = DPO() if name == "sft_dpo_17k" else NextToken()
    stage = Stage(data, loss, {"connector": 1e-2})
    weight = next(model.connector.parameters()).detach().clone()
    data.check(model)
    trainer = trainer_of(stage, tmp_path, [stage], accelerator="cpu")
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 2 and not data.skipped
    assert not torch.equal(weight, next(model.connector.parameters()))
    made = {path for path in tmp_path.rglob("*") if "cache" not in path.parts} - before
    assert not [path for path in made if path.suffix in (".jpg", ".png", ".arrow")], "unpacked"
