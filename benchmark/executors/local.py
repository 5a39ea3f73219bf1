"""In this process, one task after the other, parents first: the default."""

from collections.abc import Callable, Iterable

from benchmark.task import Task


def execute(tasks: Iterable[Task], work: Callable[[Task], None]) -> None:
    """Call `work` on each task in order."""
    for task in tasks:
        work(task)
