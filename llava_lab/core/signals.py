"""Signals: an interrupted verb ends within seconds, and the same command goes on."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

TAKEN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PEER = signal.SIGUSR2  # of a rank that was interrupted, to the rank that started it
AGAIN = 75  # exit status of an interrupted verb: the same command goes on
PARENT = "LLAVA_LAB_PARENT"  # environment: "stdin" is a pipe that closes when the parent dies
MESSAGE = "interrupted; the same command goes on"
GRACE_SECONDS = 10.0
STUCK_SECONDS = 1.0
SECOND_SECONDS = 0.5  # a signal that comes sooner after the first is the same one, sent twice


class Interrupted(BaseException):
    """A signal asked the verb to end.

    Not a KeyboardInterrupt: Lightning would answer that one itself, with exit status 1.
    """


class _State:
    """What this process knows of signals."""

    owner = 0  # process whose verb has taken them
    verbs = 0  # how many verbs of this process have taken them so far
    deferred = False  # whether work goes on until it is saved
    came: int | None = None
    since = 0.0


_state = _State()


def came() -> bool:
    """Whether a signal has asked this process to end."""
    return _state.came is not None


def defer() -> None:
    """From here on a signal only makes `came` true: what runs will save and end by itself."""
    _state.deferred = True


def resume() -> None:
    """Let signals end the verb wherever it is again.

    Raises:
        Interrupted: If one came in the meantime.
    """
    if _state.deferred:
        _state.deferred = False
        if came():
            raise interruption()


def interruption(message: str = MESSAGE) -> Interrupted:
    """What to raise once work is saved; the process ends by itself if that does not end it.

    Args:
        message: What is still to be said.
    """
    _state.deferred, _state.came = False, _state.came or signal.SIGTERM
    _end_after(GRACE_SECONDS)
    return Interrupted(message)


def leave_last() -> None:
    """Let the rank that started this one end first, told by a signal.

    Lightning kills it where another rank ends with an exit status, before it could say anything.
    """
    if not _started_by_rank() or threading.current_thread() is not threading.main_thread():
        return
    parent, deadline = os.getppid(), time.monotonic() + GRACE_SECONDS + 5
    os.kill(parent, PEER)
    while os.getppid() == parent and time.monotonic() < deadline:
        time.sleep(0.05)


def _started_by_rank() -> bool:
    """Whether rank 0 of this machine is the parent: not torchrun, srun or a user."""
    others = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID")
    return os.environ.get("LOCAL_RANK", "0") != "0" and not any(k in os.environ for k in others)


@contextmanager
def taken() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into `Interrupted`, raised once wherever the verb is.

    A second signal ends the process at once, even where Python code does not run. What was
    started with SIGHUP ignored (nohup) goes on ignoring it. Child processes that are forked
    have the usual handlers.
    """
    if _active() or threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [*(each for each in TAKEN if not (each == signal.SIGHUP and ignored)), PEER]
    _state.verbs += 1
    _state.owner, _state.deferred, _state.came = os.getpid(), False, None
    before = {number: signal.signal(number, _take) for number in numbers}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    try:
        yield
    finally:
        _state.owner, _state.deferred = 0, False
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if number == PEER else handler)
        os.close(writer)


def _active() -> bool:
    return _state.owner == os.getpid()


def _take(number: int, frame: FrameType | None) -> None:
    if not _active():
        os._exit(128 + number)  # a child that was forked a moment ago
    if _state.came is None:
        _state.came = number
        if not _state.deferred:
            raise interruption()


def _watch(reader: int) -> None:
    """End the process at a second signal; runs beside the verb, whatever that waits for."""
    first = 0.0
    while number := os.read(reader, 1):
        if number[0] not in (*TAKEN, PEER):
            continue
        now = time.monotonic()
        if not first:
            first = now
            # Where no Python code takes the signal, such as in a wait for a rank that has died.
            _end_after(STUCK_SECONDS, unless=came)
        elif now - first >= SECOND_SECONDS and number[0] != PEER:
            os._exit(128 + number[0])
    os.close(reader)


def _end_after(seconds: float, unless: Callable[[], bool] = lambda: False) -> None:
    """End the process in a while, if the verb has not ended by itself; a later verb goes on."""
    verb = _state.verbs

    def wait() -> None:
        time.sleep(seconds)
        if verb == _state.verbs and not unless():
            _end()

    threading.Thread(target=wait, daemon=True).start()


def _end() -> None:
    if _active() and not _state.deferred:
        print(f"llava_lab: {MESSAGE}", file=sys.stderr, flush=True)
        os._exit(AGAIN)


def _forked() -> None:
    """A forked child, such as a loader's worker, is not the verb."""
    if _state.owner:
        _state.owner = 0
        signal.set_wakeup_fd(-1)
        for number in (*TAKEN, PEER):
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            if signal.getsignal(number) is _take:
                signal.signal(number, usual)


os.register_at_fork(after_in_child=_forked)


def end_with(stream: int) -> None:
    """Interrupt this process when the other end of a pipe is closed: its parent has died."""

    def wait() -> None:
        while os.read(stream, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
