"""What one task may take: time, and memory by halving the batch."""

import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from benchmark.types import Report

# The last is oneDNN's, of a layer on a CPU whose scratch memory cannot be had.
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "could not create a primitive")

TIME_LIMIT: ContextVar[float | None] = ContextVar("time_limit", default=None)


class TimeLimitError(BaseException):
    """A task took longer than it may. No `Exception`, so that a method that catches everything cannot go on."""


@contextmanager
def each_task(seconds: float | None) -> Iterator[None]:
    """Inside the block no task may take longer than `seconds`; None is no limit."""
    token = TIME_LIMIT.set(seconds)
    try:
        yield
    finally:
        TIME_LIMIT.reset(token)


@contextmanager
def limited(report: Report) -> Iterator[Report]:
    """Give back a `report` that stops a task when the time of `each_task` is over.

    On the main thread an alarm stops a task that reports nothing, too: as soon as Python runs again, so one call
    into a library that never returns is beyond it. On other threads, and where there is no alarm, only `report` does.

    Raises:
        TimeLimitError: inside the block, when the time is over.
    """
    seconds = TIME_LIMIT.get()
    if seconds is None:
        yield report
        return
    over = time.monotonic() + seconds
    text = (
        f"expected the task to end within {seconds:g} seconds, got one that did not: "
        "raise --time-limit or look where it hangs."
    )

    def watched(*, step: int, total: int, loss: float) -> None:
        if time.monotonic() > over:
            raise TimeLimitError(text)
        report(step=step, total=total, loss=loss)

    with alarm(seconds, text):
        yield watched


@contextmanager
def alarm(seconds: float, text: str) -> Iterator[None]:
    """Raise `TimeLimitError` in the main thread after `seconds`; nothing on another thread."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise TimeLimitError(text)

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def out_of_memory(error: BaseException) -> bool:
    """True for the ways in which Python and torch say that there is not enough memory."""
    name = type(error).__name__
    said = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in NO_MEMORY)
    return isinstance(error, MemoryError) or name == "OutOfMemoryError" or said


def free() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def smaller(batch: int, again: Callable[[int], None], *, least: int = 1) -> None:
    """Call `again` with a batch, then with half of it, down to `least`, as long as there is not enough memory.

    Raises:
        Exception: whatever `again` raised last.
    """
    while True:
        try:
            again(batch)
            return
        except Exception as error:
            if not out_of_memory(error) or batch <= least:
                raise
        batch //= 2
        free()
