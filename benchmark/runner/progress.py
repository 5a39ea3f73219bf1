"""What people see while a run works: bars with the time left."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmark.plan.task import Task

ROWS = 8  # tasks that are shown at once
ENOUGH = 0.02  # share of the work that is done before the time left is told: the first tasks load the model

log = logging.getLogger(__name__)


class Bars:
    """A bar for the whole run, weighed by cost, and one for each task that runs. Without a terminal, a line a task."""

    def __init__(self, console: Console, left: Sequence[Task]) -> None:
        self.console, self.count, self.done = console, len(left), 0
        self.waiting = {task.key: task.weight for task in left}
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"))
        self.progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
        self.whole = self.progress.add_task("all", total=sum(self.waiting.values()) or 1)
        self.ended, self.at, self.began = 0, "", time.monotonic()
        self.rows: dict[str, TaskID] = {}
        self.names: dict[str, str] = {}
        self.parts: dict[str, float] = {}  # of the tasks that run, how much of their weight is done
        self.is_lost = False

    def __enter__(self) -> "Bars":
        if self.console.is_terminal:
            with self.watched():
                self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.watched():
            self.progress.stop()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Draw, as long as there is somewhere to: a terminal that is closed is no reason to end a run."""
        try:
            yield
        except OSError as error:
            if not self.is_lost:
                log.warning("no more progress is shown: %s", error)
            self.is_lost = True

    def started(self, task: Task) -> None:
        """A task begins, or is at hand again."""
        self.at = task.key
        if task.key not in self.rows:
            self.names[task.key] = escape(f"{task.kind} {task.label}")
            few = len(self.rows) < ROWS
            with self.watched():
                self.rows[task.key] = self.progress.add_task(self.names[task.key], total=None, visible=few)
                self.show()

    def step(self, *, step: int, total: int, loss: float) -> None:
        """The task at hand moved on."""
        if self.at not in self.rows:
            return
        text = "" if math.isnan(loss) else f"  loss {loss:.4f}"
        self.parts[self.at] = self.waiting.get(self.at, 0) * step / max(total, 1)
        with self.watched():
            row, name = self.rows[self.at], self.names[self.at]
            self.progress.update(row, completed=step, total=total, description=name + text)
            self.show()

    def finished(self, task: Task, outcome: str) -> None:
        """A task ended: ran, found, failed or skipped."""
        if task.key in self.rows:
            own = self.rows.pop(task.key)
            del self.names[task.key]
            self.parts.pop(task.key, None)
            with self.watched():
                self.progress.remove_task(own)
                for row in list(self.rows.values())[:ROWS]:
                    self.progress.update(row, visible=True)
        if task.key not in self.waiting:
            return
        self.done += 1
        self.ended += self.waiting.pop(task.key)
        with self.watched():
            self.show()
            if not self.console.is_terminal and not self.is_lost:
                line = f"{self.done}/{self.count} {outcome} {task.kind} {task.label}{self.time_left()}"
                self.console.print(line, markup=False)

    def time_left(self) -> str:
        """How long the rest takes, if it goes on as so far; nothing before enough of it is known."""
        rest = sum(self.waiting.values())
        if not rest or self.ended < ENOUGH * (self.ended + rest):
            return ""
        seconds = (time.monotonic() - self.began) * rest / self.ended
        return f", about {timedelta(seconds=round(seconds))} left"

    def show(self) -> None:
        """Draw the bar of the whole run."""
        done = self.ended + sum(self.parts.values())
        self.progress.update(self.whole, completed=done, description=f"all {self.done}/{self.count}")
