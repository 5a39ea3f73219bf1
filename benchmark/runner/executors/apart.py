"""Plug-ins of other packages run in one long-lived process of their own (`child`), which may die or hang.

Its death is the failure of the task at hand, and the next such task gets a new process; so does one after a plug-in
that changed what is not its own. A task that outlives its time, or Ctrl-C, has it killed. It puts its results in the
store itself: only tasks and small messages travel. Plug-ins that ship with titer, and classes that a script or a
notebook registered, run in the runner's process: a new one could not import the latter.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from multiprocessing.connection import Connection
from typing import IO, Any

from benchmark.config import registry
from benchmark.config.imported import USE
from benchmark.plan.task import Task
from benchmark.runner.executors.child import Order
from benchmark.runner.isolation import surroundings
from benchmark.runner.limits import GRACE, TIME_LIMIT, out_of_time
from benchmark.runner.loop import Attempt, Events
from benchmark.runner.stages import Bench

KINDS: Mapping[str, registry.PluginKind] = {"defend": "defense", "attack": "attack", "score": "metric"}
PAUSE = 0.3  # seconds between two looks at the clock
ENDING = 5.0  # seconds for a process that hung up to be gone
PROGRAM = "import sys; sys.path[:] = {path}; from benchmark.runner.executors.child import main; main()"


def is_foreign(task: Task) -> bool:
    """Whether a task calls a plug-in of another package."""
    if task.kind == "defend" and task.plugin == USE:
        return False  # it calls nobody
    if task.kind in KINDS:
        return registry.is_foreign(KINDS[task.kind], task.plugin)
    return "begin" in task.fields and registry.is_foreign("attack", task.fields["begin"]["use"])


def belongs_apart(task: Task, tasks: Mapping[str, Task]) -> bool:
    """Whether a task runs in the process of foreign plug-ins: it calls one, or may have one's images drawn again."""
    redrawn = [tasks[key] for key in task.parents.values() if key in tasks] if task.is_private else []
    return is_foreign(task) or any(parent.kind == "generate" and is_foreign(parent) for parent in redrawn)


class Apart:
    """The process of foreign plug-ins: started when it is needed, again when it has died."""

    def __init__(self, bench: Bench) -> None:
        plain = {field.name: getattr(bench, field.name) for field in fields(Bench)}
        self.bench = Bench(**{**plain, "held": {}})
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Apart":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def attempt(self, task: Task, bench: Bench, events: Events) -> Attempt:
        """Attempt a task there."""
        try:
            if self.process is None:
                self.start()
            self.outbox.send(task)
            found = self.followed(task, events)
        except (OSError, EOFError) as error:  # it died before it read the task, or while it wrote
            found = (
                self.died(task) if self.process else Attempt("failed", f"WorkerError: expected a process, got {error}")
            )
        except BaseException:  # Ctrl-C
            self.close()
            raise
        if found.tampered:
            self.close()
        return found

    def start(self) -> None:
        """Start the process and tell it what it is made of."""
        program = PROGRAM.format(path=repr([str(place) for place in sys.path]))
        self.crash: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # `close` closes it
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self.crash.fileno()],
            start_new_session=True,  # Ctrl-C is for the parent, and its own children end with it
        )
        assert self.process.stdin and self.process.stdout
        self.outbox = Connection(os.dup(self.process.stdin.fileno()), readable=False)
        self.inbox = Connection(os.dup(self.process.stdout.fileno()), writable=False)
        self.process.stdin.close()
        self.process.stdout.close()
        settings, seconds = surroundings.numeric(), TIME_LIMIT.get()
        self.outbox.send(Order(bench=self.bench, settings=settings, seconds=seconds, crash=self.crash.fileno()))

    def followed(self, task: Task, events: Events) -> Attempt:
        """Pass on how far a task is, until it ends, or its process does, or its time."""
        assert self.process
        seconds, began = TIME_LIMIT.get(), math.inf
        while True:
            if self.inbox.poll(PAUSE):
                message = read(self.inbox.recv_bytes())
                said = message.pop("said")
                if said == "done":
                    return Attempt(**message)
                if said == "started":
                    began = time.monotonic()
                    events.started(task)
                else:
                    events.step(**message)
            elif self.process.poll() is not None:  # a process that it left behind may hold its end open
                return self.died(task)
            if seconds is not None and time.monotonic() - began > seconds + GRACE:
                self.close()
                return Attempt("failed", f"TimeLimitError: {out_of_time(seconds)} Its process was killed.")

    def died(self, task: Task) -> Attempt:
        """What to say of a task whose process is gone."""
        assert self.process
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(ENDING)
        code = self.process.poll()
        self.crash.seek(0)
        stack = self.crash.read().decode(errors="replace")
        self.close()
        if code is None:
            how = "it hung up"
        else:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Attempt(
            "failed", f"{stack}PluginError: expected {task.plugin} to return, got a process that died: {how}."
        )

    def close(self) -> None:
        """End the process, and what it started."""
        if self.process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        for end in (self.outbox, self.inbox, self.crash):
            end.close()
        self.process = None


def read(content: bytes) -> dict[str, Any]:
    """A message of the process.

    Raises:
        OSError: it is none: somebody else wrote there.
    """
    try:
        found = json.loads(content)
    except ValueError as error:
        raise OSError("expected a message") from error
    if not isinstance(found, dict) or found.get("said") not in ("started", "step", "done"):
        raise OSError("expected a message")
    return found
