"""In this process, one task after the other, parents first: the default."""

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmark.runner.loop import Run

PAUSE = 0.2


def execute(run: "Run") -> None:
    """Work on each task in order, and again on those that are not settled by it: another run computes them."""
    waiting = list(run.plan.tasks.values())
    while waiting:
        left = [task for task in waiting if not run.work(task)]
        if len(left) == len(waiting):
            time.sleep(PAUSE)
        waiting = left
