"""For each task: in the store? next. Otherwise run, catch, put.

The runner alone catches what methods raise: a failed task is kept with its traceback, tasks that need it are skipped
with the reason, and everything else goes on. The next run tries failed tasks again. A task that another process
computes is left to it: the run goes on with others and looks again. A task without enough memory is tried again with
half the batch, down to one image.
"""

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from benchmark import stages
from benchmark.executors import local
from benchmark.executors.limits import TimeLimitError, limited, smaller
from benchmark.plan import Plan
from benchmark.stages import Bench
from benchmark.task import Task

log = logging.getLogger(__name__)


class Events(Protocol):
    """What the runner tells whoever watches."""

    def started(self, task: Task) -> None:
        """A task begins."""

    def step(self, *, step: int, total: int, loss: float) -> None:
        """The task at hand moved on."""

    def finished(self, task: Task, outcome: str) -> None:
        """A task ended: ran, found, failed or skipped."""


@dataclass
class Outcome:
    """What happened: keys that ran, keys that were there, failures with tracebacks, skipped keys with reasons."""

    ran: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


Executor = Callable[..., None]
BATCHED = ("generate", "embed", "score")  # the stages that read the batch: defenses and attacks have their own


def run(plan: Plan, bench: Bench, events: Events, executor: Executor = local.execute) -> Outcome:
    """Bring every task of the plan into the store, as far as it can be; `limits.each_task` bounds each one's time.

    Args:
        executor: calls `work` on every task until it says that the task is settled.

    Raises:
        FolderError: the store cannot be written.
    """
    outcome, settled, asked = Outcome(), set[str](), set[str]()

    def work(task: Task) -> bool:
        """Settle a task; False when another run computes it or what it needs."""
        if bench.store.has(task.key):
            outcome.found.append(task.key)
            events.finished(task, "found")
        elif reason := blocked(task, plan, outcome):
            outcome.skipped[task.key] = reason
            events.finished(task, "skipped")
        elif any(parent not in settled for parent in task.parents.values()):
            return False
        elif not attempt(task, bench, events, outcome):
            if task.key not in asked:
                who = bench.store.locker(task.key)
                log.warning("another run (process %s) computes %s: going on, or waiting for it", who, task.label)
                asked.add(task.key)
            return False
        settled.add(task.key)
        return True

    with bench.store.using():
        executor(plan.tasks.values(), work)
    return outcome


def blocked(task: Task, plan: Plan, outcome: Outcome) -> str:
    """Why a task cannot run: a parent that failed or was itself skipped."""
    for role, parent in task.parents.items():
        if parent in outcome.failed or parent in outcome.skipped:
            return f"its {role} did not finish: {plan.tasks[parent].label}"
    return ""


def attempt(task: Task, bench: Bench, events: Events, outcome: Outcome) -> bool:
    """Run one task and keep its result or its traceback; False when another process holds its lock."""
    try:
        with bench.store.lock(task.key) as ours:
            if not ours:
                return False
            if bench.store.has(task.key):  # finished by another run since we looked
                outcome.found.append(task.key)
                events.finished(task, "found")
                return True
            events.started(task)
            compute(task, bench, events)
    except (Exception, TimeLimitError):
        outcome.failed[task.key] = traceback.format_exc()
        log.warning("failed: %s", task.label)
        events.finished(task, "failed")
    else:
        outcome.ran.append(task.key)
        events.finished(task, "ran")
    return True


def compute(task: Task, bench: Bench, events: Events) -> None:
    """Run a task's stage and put its result; with smaller batches while there is not enough memory."""
    before = bench.batch

    def once(batch: int) -> None:
        bench.batch = batch
        with limited(events.step) as report:
            write, meta = stages.run(task, bench, report)
        bench.store.put(task.key, write, {**meta, "label": task.label, "identity_of": task.identity()})

    try:
        smaller(before, once, least=1 if task.kind in BATCHED else before)
    finally:
        bench.batch = before
