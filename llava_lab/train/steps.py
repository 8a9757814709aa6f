"""The stages that an experiment may name, in the order in which they run."""

from dataclasses import dataclass, field, fields
from typing import Any

from llava_lab.data.modules.image import StageDataModule
from llava_lab.train.stage import Stage


@dataclass(kw_only=True)
class Step:
    """One stage: what trains and how, on what, under which trainer.

    Args:
        recipe: Parts that train, their rates, the loss.
        data: What the stage reads.
        trainer: Options of Lightning's Trainer that differ in this stage.
    """

    recipe: Stage
    data: StageDataModule
    trainer: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Steps:
    """Stages by name; those that an experiment does not name are left out.

    Args:
        contrast: Makes an encoder: pictures against phrases.
        lists: Teaches an LM to find things by what is said of them, in bare lists.
        facts: The same in captions.
        language: Makes an LM: text alone.
        align: Feature alignment: the connector learns to speak the LM's language.
        instruct: Visual instruction tuning.
        video: Tuning on videos alone, after that.
        dpo: Preferences: answers that are chosen over others.
    """

    contrast: Step | None = None
    lists: Step | None = None
    facts: Step | None = None
    language: Step | None = None
    align: Step | None = None
    instruct: Step | None = None
    video: Step | None = None
    dpo: Step | None = None

    def named(self) -> dict[str, Step]:
        """The stages that are there, in order."""
        every = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: step for name, step in every.items() if step is not None}
