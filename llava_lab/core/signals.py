"""Signals: an interrupted verb ends within seconds, and the same command goes on."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

TAKEN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
WARNING = signal.SIGUSR1  # what a cluster sends some time before it ends a job by SIGTERM
USUAL = {signal.SIGINT: signal.default_int_handler, WARNING: signal.SIG_IGN}  # of a forked child
PEER = signal.SIGUSR2  # sent by an interrupted rank to the rank that started it
AGAIN = 75  # exit status of an interrupted verb: the same command goes on
PARENT = "LLAVA_LAB_PARENT"  # environment: "stdin" is a pipe that closes when the parent dies
MESSAGE = "interrupted; the same command goes on"
GRACE_SECONDS = 10.0
STUCK_SECONDS = 1.0
SECOND_SECONDS = 0.5  # a second signal within this time is the first one, sent twice


class Interrupted(BaseException):
    """A signal interrupts the verb.

    Not a KeyboardInterrupt: Lightning handles that one itself and exits with status 1.
    """


class _State:
    """Signals that this process has received, and how it treats them."""

    owner = 0  # process whose verb has installed the handlers
    verbs = 0  # number of verbs of this process that have installed them
    deferred = False  # whether the work continues until it is saved
    came: int | None = None
    since = 0.0


_state = _State()


def came() -> bool:
    """Whether this process has received a signal to end."""
    return _state.came is not None


def defer() -> None:
    """Let signals only make `came` true from here on; the caller saves its work and ends itself."""
    _state.deferred = True


def resume() -> None:
    """Let signals interrupt the verb at any point again.

    Raises:
        Interrupted: If one was received in the meantime.
    """
    if _state.deferred:
        _state.deferred = False
        if came():
            raise interruption()


def interruption(message: str = MESSAGE) -> Interrupted:
    """Make the exception to raise once work is saved; if it ends nothing, the process is killed.

    Args:
        message: Message to print at the end.
    """
    _state.deferred, _state.came = False, _state.came or signal.SIGTERM
    _end_after(GRACE_SECONDS)
    return Interrupted(message)


def leave_last() -> None:
    """Signal rank 0, which started this process, and wait until it has ended.

    Lightning kills rank 0 when another rank exits first, before it can print its message.
    """
    if not _started_by_rank() or threading.current_thread() is not threading.main_thread():
        return
    parent, deadline = os.getppid(), time.monotonic() + GRACE_SECONDS + 5
    os.kill(parent, PEER)
    while os.getppid() == parent and time.monotonic() < deadline:
        time.sleep(0.05)


def _started_by_rank() -> bool:
    """Whether the parent process is rank 0 of this machine, not torchrun, srun or a shell."""
    others = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID")
    return os.environ.get("LOCAL_RANK", "0") != "0" and not any(k in os.environ for k in others)


@contextmanager
def taken() -> Iterator[None]:
    """Raise `Interrupted` at the first SIGINT, SIGTERM, SIGHUP or SIGUSR1 inside of the block.

    A second signal ends the process at once, also while it waits in native code; SIGUSR1 neither
    is that one nor has one. Where SIGHUP is ignored at the start (nohup), it stays so. Forked child
    processes have the default handlers, and ignore SIGUSR1, which clusters send to all processes.
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
    """End the process at a second signal; runs in a thread of its own."""
    first = 0.0
    while number := os.read(reader, 1):
        if number[0] not in (*TAKEN, PEER):
            continue
        now = time.monotonic()
        if not first:
            # If no Python code handles the signal, for example in a wait for a dead rank.
            _end_after(STUCK_SECONDS, unless=came)
            first = 0.0 if number[0] == WARNING else now
        elif now - first >= SECOND_SECONDS and number[0] not in (PEER, WARNING):
            os._exit(128 + number[0])
    os.close(reader)


def _end_after(seconds: float, unless: Callable[[], bool] = lambda: False) -> None:
    """End the process after a grace period, unless the verb has ended by then."""
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
    """Restore the default handlers in a forked child, such as a data loader's worker."""
    if _state.owner:
        _state.owner = 0
        signal.set_wakeup_fd(-1)
        for number in (*TAKEN, PEER):
            if signal.getsignal(number) is _take:
                signal.signal(number, USUAL.get(number, signal.SIG_DFL))


os.register_at_fork(after_in_child=_forked)


def end_with(stream: int) -> None:
    """Interrupt this process when the other end of a pipe closes: its parent has died."""

    def wait() -> None:
        while os.read(stream, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
