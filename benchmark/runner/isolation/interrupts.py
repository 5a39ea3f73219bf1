"""Whether somebody pressed Ctrl-C: a plug-in can raise KeyboardInterrupt, too."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPED = 130  # the exit code of a command that Ctrl-C stopped
SEEN: list[bool] = []  # for each run that listens, whether the signal came


@contextmanager
def listening() -> Iterator[None]:
    """Inside the block the signal is noted before its handler runs. Only the main thread can, and only it gets it."""
    before: Any = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        SEEN[:] = [True] * len(SEEN)
        before(number, frame)

    SEEN.append(False)
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        SEEN.pop()
        signal.signal(signal.SIGINT, before)


def real() -> bool:
    """Whether a KeyboardInterrupt came from the signal, as far as one knows."""
    if threading.current_thread() is not threading.main_thread():
        return False
    return SEEN[-1] if SEEN else signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def heed() -> None:
    """Between two tasks.

    Raises:
        KeyboardInterrupt: the signal came, but whoever was at work swallowed what it raised.
    """
    if SEEN and SEEN[-1] and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


@contextmanager
def insisting(say: Callable[[], object]) -> Iterator[None]:
    """Inside the block a second Ctrl-C ends the process at once, also while a library does not return to Python.

    Args:
        say: called before the end, by another thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def count() -> None:
        pressed = 0
        while numbers := os.read(reader, 64):  # one byte for each signal
            pressed += numbers.count(signal.SIGINT)
            if pressed > 1:
                say()
                os._exit(STOPPED)
        os.close(reader)

    threading.Thread(target=count, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
