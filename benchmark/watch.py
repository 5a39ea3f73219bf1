"""What people see while a run works and when it is done: bars with the time left, and the leaderboard as a table."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmark.task import Task

SHOWN: tuple[str, ...] = (
    "rank",
    "defense",
    "titer",
    "worst_presence",
    "worst_attack",
    "presence_before",
    "retained_accuracy",
)
SHOWN += ("clip_score", "status")


def weight(task: Task) -> int:
    """What a task costs, in samples through the U-Net; scoring counts as one for each prompt."""
    return max(task.passes, len(task.prompts), 1)


class Bars:
    """Two bars: the whole run, weighed by cost, and the task at hand. Without a terminal, a line for each task."""

    def __init__(self, console: Console, left: Sequence[Task]) -> None:
        self.console, self.count, self.done = console, len(left), 0
        self.waiting = {task.key for task in left}
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"))
        self.progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
        self.whole = self.progress.add_task("all", total=sum(weight(task) for task in left) or 1)
        self.one = self.progress.add_task("", total=1, visible=False)
        self.at, self.before = 0, 0.0

    def __enter__(self) -> "Bars":
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def started(self, task: Task) -> None:
        """A task begins."""
        self.at, self.before = weight(task), self.progress.tasks[0].completed
        self.progress.reset(self.one, description=escape(f"{task.kind} {task.label}"), total=None, visible=True)
        self.progress.update(self.whole, description=f"all {self.done}/{self.count}")

    def step(self, *, step: int, total: int, loss: float) -> None:
        """The task at hand moved on."""
        text = "" if math.isnan(loss) else f"  loss {loss:.4f}"
        name = self.progress.tasks[1].description.partition("  loss ")[0]
        self.progress.update(self.one, completed=step, total=total, description=name + text)
        self.progress.update(self.whole, completed=self.before + self.at * step / max(total, 1))

    def finished(self, task: Task, outcome: str) -> None:
        """A task ended: ran, found, failed or skipped."""
        if task.key not in self.waiting:
            return
        self.done += 1
        self.progress.update(self.whole, completed=self.before + self.at, description=f"all {self.done}/{self.count}")
        if not self.console.is_terminal:
            self.console.print(f"{self.done}/{self.count} {outcome} {task.kind} {escape(task.label)}")


def leaderboard_table(board: pd.DataFrame) -> Table:
    """The leaderboard's main columns; empty where a number is missing."""
    table = Table(title="leaderboard")
    for name in SHOWN:
        table.add_column(name.replace("_", " "), overflow="fold")
    for _, row in board.iterrows():
        table.add_row(*(cell_text(name, row) for name in SHOWN))
    return table


def cell_text(name: str, row: Any) -> str:
    """One value for people; the worst presence comes with its interval."""
    value = row[name]
    if pd.isna(value):
        return ""
    if name == "worst_presence":
        return f"{value:.2f} [{row['worst_presence_low']:.2f}, {row['worst_presence_high']:.2f}]"
    if name == "rank":
        return str(int(value))
    return f"{value:.2f}" if isinstance(value, float) else escape(str(value))
