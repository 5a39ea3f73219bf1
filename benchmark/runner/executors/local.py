"""On this machine, one task after the other, parents first: the default. Ours in this process, others' in another."""

import time

from benchmark.plan.task import Task
from benchmark.runner.executors.apart import Apart, belongs_apart
from benchmark.runner.isolation import interrupts
from benchmark.runner.limits import free
from benchmark.runner.loop import Attempt, Attempting, Events, Run, attempt
from benchmark.runner.stages import Bench

PAUSE = 0.2


def execute(run: Run) -> None:
    """Work on each task in order, and again on those that are not settled by it: another run computes them."""
    with Apart(run.bench) as apart:

        def tried(task: Task, bench: Bench, events: Events) -> Attempt:
            there = belongs_apart(task, run.plan.tasks)
            found = (apart.attempt if there else attempt)(task, bench, events)
            if found.memory and bench.device != "cpu" and given_up(bench, apart, there=there):
                found = (apart.attempt if there else attempt)(task, bench, events)
            return found

        waiting = list(run.plan.tasks.values())
        while waiting:
            left = [task for task in waiting if not worked(run, task, tried)]
            if len(left) == len(waiting):
                time.sleep(PAUSE)
            waiting = left


def worked(run: Run, task: Task, how: Attempting) -> bool:
    """`Run.work`, unless somebody pressed Ctrl-C before and a library swallowed that.

    Raises:
        KeyboardInterrupt: so it was.
    """
    interrupts.heed()
    return run.work(task, how)


def given_up(bench: Bench, apart: Apart, *, there: bool) -> bool:
    """Free what the other process holds of the device that both use; False if it holds nothing."""
    holds = "base" in vars(bench) if there else apart.process is not None
    if there:
        bench.forget()
        free()
    else:
        apart.close()
    return holds
