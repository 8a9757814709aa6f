"""The commit of the code."""

import subprocess
from pathlib import Path

import pytest

from llava_lab.core import checkout


def test_a_commit_has_a_plus_where_code_differs_and_not_for_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "results").mkdir()
    code, results = tmp_path / "package" / "checkout.py", tmp_path / "results" / "a.json"
    monkeypatch.setattr(checkout, "__file__", str(code))
    assert checkout.git_commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for file in (code, results):
        file.write_text("before")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    commit = checkout.git_commit()
    assert commit is not None and len(commit) == 40
    results.write_text("after")
    assert checkout.git_commit() == commit
    code.write_text("after")
    assert checkout.git_commit() == f"{commit}+"
    (installed := tmp_path / ".venv" / "package").mkdir(parents=True)
    (installed / "checkout.py").write_text("before")  # no commit of that checkout has it
    monkeypatch.setattr(checkout, "__file__", str(installed / "checkout.py"))
    assert checkout.git_commit() is None
