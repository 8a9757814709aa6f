"""Signals: a verb that is interrupted ends with one message, whatever it is doing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAD = """
hangup = 0  # SIG_DFL, however these tests were started
import os, signal, sys, threading, time, warnings
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
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


def test_what_saves_at_a_clusters_warning_is_not_ended_by_the_signals_behind_it() -> None:
    process = started("""
signals.defer()
print('there', flush=True)
while not signals.came(): time.sleep(0.01)
print('saving', flush=True)
time.sleep(1.2)
print('saved', flush=True)
signals.resume()
""")
    process.send_signal(signal.SIGUSR1)
    assert process.stdout is not None and process.stdout.readline() == "saving\n"
    time.sleep(0.6)  # longer than two signals may be apart to be one
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert said == "saved\nllava_lab: interrupted; the same command goes on\n"
    assert process.returncode == 75


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
warnings.simplefilter('ignore')  # Python 3.12 warns of any fork beside threads
child = os.fork()
if not child: print('child', flush=True); time.sleep(60)
print('forked', os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), child)
time.sleep(1)  # longer than the grace that a signal to this process would give
""")
    assert process.stdout is not None and process.stdout.readline() == "child\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    os.kill(int(children), signal.SIGUSR1)  # a cluster warns all processes
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
