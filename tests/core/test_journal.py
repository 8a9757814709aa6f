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
    out = tmp_path / "out.json"
    with Journal(out, "a") as first:
        first.add("one", 0)
        journal = Journal(out, "a")
        assert journal.read() == {"one": 0}
        first.path.unlink()
    with journal:
        journal.add("one", 1)
    assert Journal(out, "a").read() == {"one": 1}


def test_results_of_others_are_neither_taken_nor_removed(tmp_path: Path, capsys) -> None:
    """A second shard with the output of the first removed what that one had paid for."""
    out = tmp_path / "out.json"
    with Journal(out, "a") as first:
        first.add("one", 1)
        first.add("two", 2)
    before = first.path.read_bytes()
    with pytest.raises(ValueError, match="2 results, and none of this command, such as 'one'"):
        Journal(out, "a").read(["three", "four"])
    mended = Journal(out, "a")
    assert mended.read(["two", "three"])["two"] == 2
    mended.remove()
    assert "1 of its results are of no input" in capsys.readouterr().out
    assert first.path.read_bytes() == before
    whole = Journal(out, "a")
    whole.read(["one", "two", "three"])
    whole.remove()
    assert not first.path.exists()


@pytest.mark.parametrize("cut", [b'{"asked": "0123', b'{"asked": "other"}\n', b"\xff"])
def test_a_journal_without_a_result_is_begun_anew(cut: bytes, tmp_path: Path) -> None:
    """One that was cut in its first line lost the header, and what was paid for next with it."""
    out = tmp_path / "out.json"
    journal = Journal(out, "a")
    journal.path.write_bytes(cut)
    with journal:
        assert journal.read() == {}
        journal.add("one", 1)
    with journal:
        assert journal.read() == {"one": 1}
    with journal.path.open("a") as file:
        file.write('["two", ')
    with journal:
        assert journal.read() == {"one": 1}
        journal.add("two", 2)
    assert Journal(out, "a").read() == {"one": 1, "two": 2}
    with pytest.raises(ValueError, match="begun with another model"):
        Journal(out, "b").read()
