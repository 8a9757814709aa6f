"""Where the adapter for lmms-eval ends an answer."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

SAID = "One.\n\nTwo. Q: three"


@pytest.mark.parametrize(
    ("until", "wanted"),
    [
        (["\n\n"], SAID),
        ("\n\n", SAID),
        (None, SAID),
        ([], SAID),
        (["\n\n", "Q:"], "One.\n\nTwo."),
        ("Q:", "One.\n\nTwo."),
        (["\n"], "One."),
    ],
)
def test_an_answer_ends_at_the_texts_that_a_task_names_alone(
    until: Any, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task without any is given a blank line, at which free answers were cut."""
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models")
    for name in (*names, "lmms_eval.models.registry_v2"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["lmms_eval.api.model"], "lmms", object, raising=False)
    registry = sys.modules["lmms_eval.models.registry_v2"]
    monkeypatch.setattr(registry, "ModelManifest", dict, raising=False)
    monkeypatch.delitem(sys.modules, "llava_lab.serve.lmms_eval", raising=False)
    from llava_lab.serve import lmms_eval

    views = SimpleNamespace(upright=False)
    monkeypatch.setattr(lmms_eval, "open_model", lambda *_: (None, views))
    monkeypatch.setattr(lmms_eval, "check_answerable", lambda *_, **__: None)
    monkeypatch.setattr(lmms_eval, "answer_questions", lambda *_, **__: [SAID])
    asked = lmms_eval.LlavaLab("m")
    asked.task_dict = {"t": {"test": [{}]}}
    options = {"max_new_tokens": 9, "until": until}
    request = SimpleNamespace(args=("What?", options, lambda _: [], 0, "t", "test"))
    assert asked.generate_until([request]) == [wanted]
