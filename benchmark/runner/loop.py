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
from typing import Literal, Protocol

from benchmark.errors import readable
from benchmark.plan import Plan
from benchmark.plan.task import Task
from benchmark.runner import stages
from benchmark.runner.code import code_of, pin
from benchmark.runner.isolation import interrupts
from benchmark.runner.isolation.guard import TamperedError, guarded
from benchmark.runner.limits import TimeLimitError, limited, out_of_memory, smaller
from benchmark.runner.nsfw import is_private_attack
from benchmark.runner.stages import Bench, Done

log = logging.getLogger(__name__)


class Events(Protocol):
    """What the runner tells whoever watches."""

    def started(self, task: Task) -> None:
        """A task begins, with the base at hand and its time; or it is at hand again. Several may run at once."""

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

    def then(self, later: "Outcome") -> "Outcome":
        """What happened in two rounds, each task counted once."""
        known = {*self.ran, *self.found}
        return Outcome(
            ran=[*self.ran, *(key for key in later.ran if key not in known)],
            found=[*self.found, *(key for key in later.found if key not in known)],
            failed={**self.failed, **later.failed},
            skipped={**self.skipped, **later.skipped},
        )


What = Literal["ran", "found", "failed", "skipped", "locked"]
BATCHED = ("generate", "embed", "score")  # the stages that read the batch: defenses and attacks have their own


@dataclass(frozen=True)
class Attempt:
    """What came of one attempt at a task; `locked`: another process is at it.

    Attributes:
        memory: it failed for want of it.
        tampered: its plug-in changed what is not its own; what was seen of it was put back.
    """

    what: What
    trace: str = ""
    memory: bool = False
    tampered: bool = False


@dataclass
class Run:
    """A plan on its way into the store: what is settled, and how. An executor brings every task to `settle`."""

    plan: Plan
    bench: Bench
    events: Events
    outcome: Outcome = field(default_factory=Outcome)
    settled: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)

    def work(self, task: Task, how: "Attempting | None" = None) -> bool:
        """Settle a task by one attempt, in this process or as `how` does; False when another run computes it or what
        it needs.
        """
        if self.look(task):
            return True
        if any(parent not in self.settled for parent in task.parents.values()):
            return False
        tried = (how or attempt)(task, self.bench, self.events)
        if tried.what == "locked":
            self.locked(task)
        else:
            self.settle(task, tried.what, tried.trace)
        return task.key in self.settled

    def look(self, task: Task) -> bool:
        """Settle a task that needs no work: it is in the store, or something that it needs is not to be had."""
        if self.bench.store.has(task.key):
            self.settle(task, "found")
        elif reason := self.blocked(task):
            self.settle(task, "skipped", reason)
        return task.key in self.settled

    def blocked(self, task: Task) -> str:
        """Why a task cannot run: a parent that failed or was itself skipped."""
        for role, parent in task.required.items():
            if parent in self.outcome.failed or parent in self.outcome.skipped:
                return f"its {role} did not finish: {self.plan.tasks[parent].label}"
        return ""

    def settle(self, task: Task, what: What, why: str = "") -> None:
        """Note what became of a task, with its traceback or the reason."""
        if what == "ran":
            self.outcome.ran.append(task.key)
        elif what == "found":
            self.outcome.found.append(task.key)
        elif what == "failed":
            self.outcome.failed[task.key] = why
            log.warning("failed: %s", task.label)
        else:
            self.outcome.skipped[task.key] = why
        self.settled.add(task.key)
        self.events.finished(task, what)

    def locked(self, task: Task) -> None:
        """Say once that another run is at a task."""
        if task.key not in self.asked:
            who = self.bench.store.locker(task.key)
            log.warning("another run (process %s) computes %s: going on, or waiting for it", who, task.label)
            self.asked.add(task.key)


Executor = Callable[[Run], None]
Attempting = Callable[[Task, Bench, Events], Attempt]


def run(plan: Plan, bench: Bench, events: Events, executor: Executor) -> Outcome:
    """Bring every task of the plan into the store, as far as it can be; `limits.each_task` bounds each one's time.

    Args:
        executor: brings every task of a run to `Run.settle`.

    Raises:
        FolderError: the store cannot be written.
        DataError: a metric lacks its weights, or does not fit the card; nothing was run.
    """
    stages.check(task for key, task in plan.tasks.items() if task.kind == "score" and not bench.store.has(key))
    bench.private = {key: task for key, task in plan.tasks.items() if task.is_private and task.kind == "generate"}
    pin(plan)
    found = Run(plan, bench, events)
    with bench.store.using(), interrupts.listening():
        for key in bench.store.abandoned(plan.tasks):
            log.warning("a process died while it computed %s: trying again", plan.tasks[key].label)
        executor(found)
    return found.outcome


def attempt(task: Task, bench: Bench, events: Events) -> Attempt:
    """Run one task and put its result, unless another process holds its lock."""
    try:
        with bench.store.lock(task.key) as ours:
            if not ours:
                return Attempt("locked")
            if bench.store.has(task.key):  # finished by another run since we looked
                return Attempt("found")
            compute(task, bench, events)
    except (Exception, TimeLimitError) as error:
        return Attempt(
            "failed", readable(traceback.format_exc()), out_of_memory(error), isinstance(error, TamperedError)
        )
    return Attempt("ran")


def compute(task: Task, bench: Bench, events: Events) -> None:
    """Run a task's stage and put its result; with smaller batches while there is not enough memory."""
    before, code = bench.batch, code_of(task)

    def stage() -> Done:
        with limited(events.step, task.label) as report:
            return stages.run(task, bench, report)

    def once(batch: int) -> None:
        bench.batch = batch
        seal = bench.seal if stages.needs_base(task) else None  # loads the base
        events.started(task)
        try:
            write, meta = guarded(task, seal, stage)
        except TamperedError:
            bench.forget()
            raise
        known = {"label": task.label, **task.noted(), "code": code, **swept(task, bench)}
        bench.store.put(task.key, write, meta | known)

    try:
        smaller(before, once, least=1 if task.kind in BATCHED else before)
    finally:
        bench.batch = before


def swept(task: Task, bench: Bench) -> dict[str, bool]:
    """What an attack's marker says where its files are to go once its images are scored, whoever finds them."""
    return {"sweep": True} if is_private_attack(task) and not bench.keep_attacks else {}
