"""Where the adapter for lmms-eval ends an answer."""

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
    until: Any, wanted: str, lmms_adapter: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task without any is given a blank line, at which free answers were cut."""
    views = SimpleNamespace(upright=False)
    monkeypatch.setattr(lmms_adapter, "open_model", lambda *_: (None, views))
    monkeypatch.setattr(lmms_adapter, "check_answerable", lambda *_, **__: None)
    monkeypatch.setattr(lmms_adapter, "answer_questions", lambda *_, **__: [SAID])
    asked = lmms_adapter.LlavaLab("m")
    asked.task_dict = {"t": {"test": [{}]}}
    options = {"max_new_tokens": 9, "until": until}
    request = SimpleNamespace(args=("What?", options, lambda _: [], 0, "t", "test"))
    assert asked.generate_until([request]) == [wanted]
