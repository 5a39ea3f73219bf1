"""What one task may take: time, and memory by halving the batch."""

import faulthandler
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
LAST_RESORT: ContextVar["LastResort | None"] = ContextVar("last_resort", default=None)
GRACE = 10.0  # seconds after its time in which a task may still end, before its process is ended
AGAIN = 5.0  # seconds from one alarm to the next, for a method that caught the first

LastResort = Callable[[str], object]  # ends the process; takes what to say


class TimeLimitError(BaseException):
    """A task took longer than it may. No `Exception`, so that a method that catches everything cannot go on."""


@contextmanager
def each_task(seconds: float | None, last_resort: LastResort | None = None) -> Iterator[None]:
    """Inside the block no task may take longer than `seconds`; None is no limit.

    Args:
        last_resort: what to call where a task cannot be stopped: it must end the process. None where somebody else
            ends this one.
    """
    tokens = TIME_LIMIT.set(seconds), LAST_RESORT.set(last_resort)
    try:
        yield
    finally:
        TIME_LIMIT.reset(tokens[0])
        LAST_RESORT.reset(tokens[1])


def out_of_time(seconds: float) -> str:
    """What to say of a task that took too long."""
    return (
        f"expected the task to end within {seconds:g} seconds, got one that did not: "
        "raise --time-limit or look where it hangs."
    )


@contextmanager
def limited(report: Report, name: str = "a task") -> Iterator[Report]:
    """Give back a `report` that stops a task when the time of `each_task` is over.

    On the main thread an alarm stops a task that reports nothing, too, as soon as Python runs again, and rings again
    for one that goes on. One that has not ended GRACE seconds later cannot be stopped, as in a call into a library
    that never returns: then the last resort ends the process.

    Raises:
        TimeLimitError: inside the block, when the time is over.
    """
    seconds = TIME_LIMIT.get()
    if seconds is None:
        yield report
        return
    over, text = time.monotonic() + seconds, out_of_time(seconds)

    def watched(*, step: int, total: int, loss: float) -> None:
        if time.monotonic() > over:
            raise TimeLimitError(text)
        report(step=step, total=total, loss=loss)

    with watchdog(seconds + GRACE, f"{name}: {text}"), alarm(seconds, text):
        yield watched


@contextmanager
def watchdog(seconds: float, text: str) -> Iterator[None]:
    """Call the last resort after `seconds`; where not even another thread of Python runs, Python ends the process."""
    end = LAST_RESORT.get()
    if end is None:
        yield
        return
    timer = threading.Timer(seconds, end, (text,))
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=2)
    try:
        yield
    finally:
        timer.cancel()
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def alarm(seconds: float, text: str) -> Iterator[None]:
    """Raise `TimeLimitError` in the main thread after `seconds`, and again each AGAIN; nothing on another thread."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise TimeLimitError(text)

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # also if it rang in the line above
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
