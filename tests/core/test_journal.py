"""A journal has one writer, and says so to a second one."""

from pathlib import Path

import pytest

from llava_lab.core.journal import Journal


def test_a_second_writer_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with Journal(out, "a") as first:
        first.add("one", 1)
        with pytest.raises(ValueError, match="another process is writing it"), Journal(out, "a"):
            pass
    with Journal(out, "a") as second:
        assert second.read() == {"one": 1}
        second.add("two", 2)
        second.path.unlink()
    with Journal(out, "a") as third:
        assert third.read() == {}


def test_a_journal_that_was_finished_meanwhile_is_begun_anew(tmp_path: Path) -> None:
    """Its file is gone from its folder, though a process has opened it."""
    journal = Journal(tmp_path / "out.json", "a")
    opened = journal.path.open("a")
    real = type(journal.path).open
    calls = []

    def old_first(path: Path, *arguments: object, **options: object) -> object:
        calls.append(path)
        if len(calls) == 1:
            path.unlink()
            return opened
        return real(path, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(journal.path), "open", old_first)
        with journal:
            journal.add("one", 1)
    assert Journal(tmp_path / "out.json", "a").read() == {"one": 1}
