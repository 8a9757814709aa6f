"""Long work shows how far it is: by time, by one process, as a bar or as lines."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest

from llava_lab.core import lock as locks
from llava_lab.core import progress as module
from llava_lab.core.lock import Held, lock
from llava_lab.core.progress import progress, say, shown
from llava_lab.train.record import Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything takes long enough to be shown."""
    for name in ("PATIENCE", "BAR_SECONDS", "LINE_SECONDS"):
        monkeypatch.setattr(module, name, 0.0)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, impatient: None) -> Terminal:
    found = Terminal()
    monkeypatch.setattr(module, "sys", SimpleNamespace(stdout=found))
    monkeypatch.setenv("COLUMNS", "80")
    return found


def test_in_a_file_are_lines_with_what_is_done_and_what_is_left(
    impatient: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(shown(range(3), "features")) == [0, 1, 2]
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "llava_lab: features: 1 of 3, 00:00 left",
        "llava_lab: features: 2 of 3, 00:00 left",
        "llava_lab: features: 3 of 3, in 00:00",
    ]


def test_what_is_quick_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    list(shown(range(1000), "features"))
    assert capsys.readouterr().out == ""


def test_lines_come_by_time_and_the_last_one_says_that_it_is_done(
    impatient: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "LINE_SECONDS", 10.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    for _ in shown(range(2500), "reference"):
        now[0] += 0.01
    counts = [text.split(",")[0] for text in capsys.readouterr().out.splitlines()]
    assert [text.split(" ")[2] for text in counts] == ["1", "2", "2"]


@pytest.mark.parametrize("terminal_there", [False, True])
def test_only_the_first_process_of_a_job_speaks(
    terminal_there: bool, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal() if terminal_there else io.StringIO()
    monkeypatch.setattr(module, "sys", SimpleNamespace(stdout=stream))
    monkeypatch.setenv("RANK", "1")
    list(shown(range(3), "features"))
    say("done")
    assert stream.getvalue() == ""


def test_on_a_terminal_is_a_bar_and_messages_have_lines_of_their_own(terminal: Terminal) -> None:
    with progress("features", 3) as bar:
        bar.update()
        say("hello")
        bar.update(2)
    written = terminal.getvalue()
    assert "features:  33%" in written and "3/3" in written
    assert "llava_lab: hello" in written.replace("\r", "\n").split("\n")


def test_a_stages_bar_ends_its_line_before_an_error_message(terminal: Terminal) -> None:
    bar = Bar("instruct")
    bar.train_progress_bar = bar.init_train_tqdm()
    bar.train_progress_bar.total = 8
    bar.train_progress_bar.refresh()
    assert not terminal.getvalue().endswith("\n")
    bar.on_exception(SimpleNamespace(), SimpleNamespace(), ValueError("a message"))
    assert "instruct:   0%" in terminal.getvalue() and terminal.getvalue().endswith("\n")


def test_a_stages_bar_moves_by_time_and_not_by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("llava_lab.train.record.time.monotonic", lambda: now[0])
    bar = Bar("instruct")
    seen = []
    for step in range(1, 21):
        now[0] += 0.3 if step < 11 else 17.0
        seen += [step] if bar._should_update(step, 40) else []
    assert seen == [1, 5, 9, *range(11, 21)]
    assert bar._should_update(40, 40) and not bar._should_update(39, 40)


def test_who_waits_for_a_lock_says_for_whom_and_how_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(locks, "AGAIN_SECONDS", 0.0)
    path, said = tmp_path / "stage", []
    holder = lock(path, "stage align")
    holder.__enter__()
    with (
        pytest.raises(Held, match="stage align is kept by process"),
        lock(path, "stage align", False),
    ):
        pass

    def hear(message: str) -> None:
        said.append(message)
        if len(said) == 3:
            holder.__exit__(None, None, None)

    monkeypatch.setattr(locks, "say", hear)
    with lock(path, "stage align"):
        assert len(said) == 3
    assert all(text.startswith("stage align: waiting since 0 s for process ") for text in said)
