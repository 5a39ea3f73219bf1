"""For each task: in the store? next. Otherwise run, catch, put.

The runner alone catches what methods raise: a failed task is kept with its traceback, tasks that need it are skipped
with the reason, and everything else goes on. The next run tries failed tasks again.
"""

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from benchmark import stages
from benchmark.executors import local
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


def run(plan: Plan, bench: Bench, events: Events, executor: Executor = local.execute) -> Outcome:
    """Bring every task of the plan into the store, as far as it can be."""
    outcome = Outcome()

    def work(task: Task) -> None:
        reason = blocked(task, plan, outcome)
        if bench.store.has(task.key):
            outcome.found.append(task.key)
            events.finished(task, "found")
        elif reason:
            outcome.skipped[task.key] = reason
            events.finished(task, "skipped")
        else:
            attempt(task, bench, events, outcome)

    executor(plan.tasks.values(), work)
    return outcome


def blocked(task: Task, plan: Plan, outcome: Outcome) -> str:
    """Why a task cannot run: a parent that failed or was itself skipped."""
    for role, parent in task.parents.items():
        if parent in outcome.failed or parent in outcome.skipped:
            return f"its {role} did not finish: {plan.tasks[parent].label}"
    return ""


def attempt(task: Task, bench: Bench, events: Events, outcome: Outcome) -> None:
    """Run one task and keep its result or its traceback."""
    events.started(task)
    try:
        write, meta = stages.run(task, bench, events.step)
        bench.store.put(task.key, write, {**meta, "label": task.label, "identity_of": task.identity()})
    except Exception:
        outcome.failed[task.key] = traceback.format_exc()
        log.warning("failed: %s", task.label)
        events.finished(task, "failed")
    else:
        outcome.ran.append(task.key)
        events.finished(task, "ran")
