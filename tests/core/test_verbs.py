"""How verbs end: mistakes, the machine's refusals, faults of our own, signals, locks."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llava_lab.__main__ import main
from llava_lab.cli import verb as verbs
from llava_lab.cli.verb import Stop, one_message
from llava_lab.core import atomic as disk
from llava_lab.core import lock
from llava_lab.core.records import read_record, write_record

ROOT = Path(__file__).resolve().parents[2]
HEAD = """
hangup = 0  # SIG_DFL, however these tests were started
import os, signal, sys, threading, time
from llava_lab.core import signals
from llava_lab.cli.verb import one_message
signals.GRACE_SECONDS = 0.3
signal.signal(signal.SIGHUP, hangup)
"""


def started(code: str) -> subprocess.Popen:
    """A process that runs `code` in a verb, which says "there" when it is."""
    indented = "\n".join(f"    {line}" for line in code.strip().splitlines())
    text = f"{HEAD}with one_message():\n{indented}\n"
    process = subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_verb_with_one_message(number: signal.Signals) -> None:
    code = "try: print('there', flush=True); time.sleep(60)\nfinally: print('put away')"
    process = started(code)
    process.send_signal(number)
    said, _ = process.communicate(timeout=20)
    assert said == "put away\nllava_lab: interrupted; the same command goes on\n"
    assert process.returncode == 75


def test_a_signal_that_a_library_swallows_ends_the_verb_all_the_same() -> None:
    process = started(
        "try: print('there', flush=True); time.sleep(60)\n"
        "except BaseException: print('no', flush=True)\ntime.sleep(60)"
    )
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert said.endswith("llava_lab: interrupted; the same command goes on\n")
    assert process.returncode == 75


def test_a_wait_outside_of_python_is_ended_too() -> None:
    process = started("""
import ctypes
c, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
c.pthread_mutex_init(mutex, None)
c.pthread_mutex_lock(mutex)
print('there', flush=True)
c.pthread_mutex_lock(mutex)  # for ever
""")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert said.endswith("llava_lab: interrupted; the same command goes on\n")
    assert process.returncode == 75


def test_work_that_saves_itself_is_waited_for_and_a_second_signal_ends_it_at_once() -> None:
    code = """
    signals.defer()
    print('there', flush=True)
    while not signals.came(): time.sleep(0.01)
    time.sleep(1)
    print('saved', flush=True)
    {}
    signals.resume()
    """
    process = started("\n".join(x.strip() for x in code.format("").strip().splitlines()))
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # as `timeout` sends it: at once, twice
    said, _ = process.communicate(timeout=20)
    assert said == "saved\nllava_lab: interrupted; the same command goes on\n"
    assert process.returncode == 75
    code = "\n".join(x.strip() for x in code.format("time.sleep(60)").strip().splitlines())
    process = started(code)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None and process.stdout.readline() == "saved\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 128 + signal.SIGINT


def test_a_later_verb_of_the_process_goes_on() -> None:
    code = f"""{HEAD}
try:
    with one_message(): raise signals.interruption()
except SystemExit: print('first', flush=True)
with one_message(): time.sleep(1)
print('second')
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "first\nsecond\n" and done.returncode == 0, done.stderr


def test_what_nohup_started_outlives_its_terminal() -> None:
    code = HEAD.replace("hangup = 0", "hangup = 1")
    code += "with one_message():\n    os.kill(os.getpid(), signal.SIGHUP)\nprint('done')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "done\n" and done.returncode == 0


def test_a_forked_child_has_the_usual_signals() -> None:
    process = started("""
print('there', flush=True)
child = os.fork()
if not child: print('child', flush=True); time.sleep(60)
print('forked', os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), child)
time.sleep(1)  # longer than the grace that a signal to this process would give
""")
    assert process.stdout is not None and process.stdout.readline() == "child\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    os.kill(int(children), signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert said == f"forked {-signal.SIGTERM} {int(children)}\n" and process.returncode == 0


def test_a_process_whose_parent_dies_is_interrupted() -> None:
    reader, writer = os.pipe()
    code = f"{HEAD}with one_message():\n    signals.end_with(0)\n    time.sleep(60)"
    with os.fdopen(reader) as stdin:
        process = subprocess.Popen([sys.executable, "-c", code], stdin=stdin)
    os.close(writer)
    assert process.wait(timeout=20) == 75


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 2, "a/b: No space left"),
        (OSError(errno.EROFS, "Read-only file system", "a"), 2, "Choose a place that can be"),
        (ValueError("row 3 is no row"), 2, "error: row 3 is no row"),
        (RecursionError("maximum"), 2, "nested too deeply"),
        (MemoryError(), 2, "out of memory. Choose a smaller"),
        (TypeError("unhashable"), 70, "a fault of llava_lab, not of yours (TypeError: unhashable)"),
        (KeyError("x"), 70, "The traceback is in "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_every_error_is_one_message(
    error: Exception, status: int, message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(Stop) as stop, one_message():
        raise error
    said = capsys.readouterr().err
    assert stop.value.code == status and message in said and said.count("\n") == 1
    assert "Traceback" not in said
    if status == 70 and "traceback is in" in said:
        path = Path(said.split("traceback is in ")[1].split(";")[0])
        assert type(error).__name__ in path.read_text()
        path.unlink()


def test_a_fault_is_shown_whole_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_LAB_DEBUG", "1")
    with pytest.raises(KeyError), one_message():
        raise KeyError("x")


def test_a_file_where_a_folder_belongs_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "runs").write_text("no folder")
    said = f"{tmp_path / 'runs'} is a file where a folder belongs"
    for name in ("a/b.json", "b.json"):
        with pytest.raises(Stop, match=said), one_message():
            disk.write(tmp_path / "runs" / name, "{}")


def test_a_folder_that_is_gone_and_a_locale_without_our_signs_are_no_fault(tmp_path: Path) -> None:
    code = """
import os, sys
sys.path.insert(0, os.getcwd())
from llava_lab import __main__ as lab
lab._run = lambda verb, arguments: print("\u2500 \u2013")
sys.argv = ["llava_lab", "plan"]
if os.environ.get("GONE"):
    os.chdir(os.environ["GONE"])
    os.rmdir(os.environ["GONE"])
lab.run()
"""
    plain = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=plain, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "? ?\n")
    env = {**plain, "GONE": str(tmp_path)}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: the folder that you are in is")


def test_an_unknown_verb_is_a_mistake() -> None:
    with pytest.raises(Stop) as stop:
        main(["fitt"])
    assert stop.value.code == verbs.MISTAKE


def test_two_processes_that_write_one_file_leave_one_of_the_two(tmp_path: Path) -> None:
    path, texts = tmp_path / "file", ["a" * 500_000, "b" * 500_000]
    threads = [threading.Thread(target=disk.write, args=(path, text)) for text in texts * 8]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_text() in texts
    assert path.read_text() in texts and list(tmp_path.iterdir()) == [path]


def test_a_file_keeps_its_mode_and_a_new_one_has_the_umasks(tmp_path: Path) -> None:
    path = tmp_path / "file"
    before = os.umask(0o027)
    try:
        disk.write(path, "one")
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o600)
        disk.write(path, "two")
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_drafts_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".{disk.HOST}-{dead.pid}-abc{disk.DRAFT}"
    other = tmp_path / f".{disk.HOST}-{os.getppid()}-abc{disk.DRAFT}"
    far = tmp_path / f".ffffffff-{dead.pid}-abc{disk.DRAFT}"
    for path in (left, other, far):
        path.write_text("half")
    disk.write(tmp_path / "file", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"file", other.name, far.name}


def test_what_cannot_be_written_leaves_nothing_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(OSError, match=r"file") as caught, disk.whole(path) as draft:
        draft.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path)
    with pytest.raises(OSError, match="file"), disk.whole(path) as draft:
        raise RuntimeError("PytorchStreamWriter failed writing file")
    assert not list(tmp_path.iterdir())


FIELDS = {"name": str, "steps": int, "loss": (int, float)}
RECORD = {"name": "align", "steps": 3, "loss": 0.5, "held_out": {"1": [2.0, "é"]}}


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    write_record(path, RECORD)
    assert read_record(path, FIELDS, "Delete it.") == RECORD


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("\ud800", "not JSON"),
        ("[]", "holds list, no object"),
        ("{}", "has no 'name'"),
        ('{"name": "a", "steps": "3", "loss": 1}', "'steps' is str, not int"),
        ('{"name": "a", "steps": true, "loss": 1}', "'steps' is bool, not int"),
        ('{"name": "a", "steps": 3, "loss": null}', "'loss' is NoneType, not int or float"),
        ('{"name": "a", "steps": 3, "loss": 1, "sha256": 7}', "checksum is of other contents"),
    ],
)
def test_a_damaged_record_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match=message) as caught:
        read_record(path, FIELDS, "Delete it.")
    assert str(path) in str(caught.value) and str(caught.value).endswith("Delete it.")


def test_a_flipped_bit_of_a_record_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    write_record(path, RECORD)
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        try:
            found = read_record(path, FIELDS, "")
        except ValueError:
            continue
        # Blanks between values, and the checksum's own name, may differ; what it says may not.
        assert {key: found[key] for key in RECORD} == RECORD


def test_who_waits_for_a_lock_says_for_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(lock, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(lock, "AGAIN_SECONDS", 0.1)
    path = tmp_path / "locks" / "abc"
    code = f"""
import sys, time
from pathlib import Path
from llava_lab.core.lock import lock
with lock(Path({str(path)!r}), "stage align"):
    print("held", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    said = f"stage align is kept by process {process.pid} on"
    with pytest.raises(lock.Held, match=said), lock.lock(path, "stage align", wait=False):
        raise AssertionError("two at once")

    def kill() -> None:
        while "waiting" not in "".join(heard):
            heard.append(capfd.readouterr().out)
        process.kill()

    heard: list[str] = []
    killer = threading.Thread(target=kill)
    killer.start()
    with lock.lock(path, "stage align"):  # a dead holder keeps nobody waiting
        killer.join()
    process.wait()
    assert f"llava_lab: stage align: waiting since 0 s for process {process.pid} on" in heard[-1]
    assert [each.name for each in path.parent.iterdir()] == ["abc"]
