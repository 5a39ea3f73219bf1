"""The process in which plug-ins of other packages run: it attempts one task after the other, and says how far it is.

Started by `apart`, as a program of its own. Tasks come as Ray's workers get them; what goes back is JSON.
"""

import ctypes
import faulthandler
import json
import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

from benchmark.plan.task import Task
from benchmark.runner.isolation import surroundings
from benchmark.runner.limits import each_task
from benchmark.runner.loop import attempt
from benchmark.runner.stages import Bench

PAUSE = 0.3  # seconds between two messages of a task
DIE_WITH_PARENT = 1  # Linux: PR_SET_PDEATHSIG


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the process is made of.

    Attributes:
        bench: the base, the store and the device; nothing is loaded on it.
        settings: of the parent's process, those that change numbers, by name.
        seconds: that a task may take.
        crash: descriptor of the file for the stack of a crash.
    """

    bench: Bench
    settings: Mapping[str, Any]
    seconds: float | None
    crash: int


class Telling:
    """Events that go to the parent; a few steps a second do."""

    def __init__(self, outbox: Connection) -> None:
        self.outbox, self.last = outbox, -math.inf

    def started(self, task: Task) -> None:
        """A task begins: its time counts from the last of these."""
        self.tell(said="started")

    def step(self, *, step: int, total: int, loss: float) -> None:
        """The task moved on."""
        if time.monotonic() - self.last >= PAUSE:
            self.last = time.monotonic()
            self.tell(said="step", step=step, total=total, loss=loss)

    def finished(self, task: Task, outcome: str) -> None:
        """The parent knows: it gets the attempt."""

    def tell(self, **message: Any) -> None:
        """Send a message."""
        self.outbox.send_bytes(json.dumps(message).encode())


def main() -> None:
    """Run tasks until the parent hangs up."""
    inbox, outbox = Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a plug-in prints is no output of titer's
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    order: Order = inbox.recv()
    faulthandler.enable(order.crash)
    if sys.platform == "linux":  # also while a plug-in holds Python's lock
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    surroundings.adopt(order.settings)
    tasks: queue.Queue[Task] = queue.Queue()
    threading.Thread(target=listen, args=(inbox, tasks), daemon=True).start()
    telling = Telling(outbox)
    while True:
        task = tasks.get()
        with each_task(order.seconds):
            found = attempt(task, order.bench, telling)
        telling.tell(said="done", **asdict(found))


def listen(inbox: Connection, tasks: "queue.Queue[Task]") -> None:
    """Queue what the parent sends; without it this process has no business."""
    while True:
        try:
            tasks.put(inbox.recv())
        except (EOFError, OSError):
            os._exit(1)
