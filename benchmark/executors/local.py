"""In this process, one task after the other, parents first: the default."""

import time
from collections.abc import Callable, Iterable

from benchmark.task import Task

PAUSE = 0.2


def execute(tasks: Iterable[Task], work: Callable[[Task], bool]) -> None:
    """Call `work` on each task in order, and again on those for which it says no: another run computes them."""
    waiting = list(tasks)
    while waiting:
        left = [task for task in waiting if not work(task)]
        if len(left) == len(waiting):
            time.sleep(PAUSE)
        waiting = left
