"""Many GPUs, many machines: long-lived workers on Ray. Needs `pip install 'titer[ray]'`.

Tasks and keys travel; weights stay in the store, a folder that every machine sees. This process alone decides what
runs where (`schedule`); a worker does with a task what the local executor would. A worker or machine that is lost
costs what it was running: another takes it over. A task that has lost LOST workers fails; a task without enough memory
gets its device to itself before it fails.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from benchmark.config import registry
from benchmark.errors import ConfigError, DataError, PackageError, WorkerError
from benchmark.plan.task import Task
from benchmark.runner.executors import memory
from benchmark.runner.executors.actors import Inbox, Order, Worker
from benchmark.runner.executors.cluster import cluster, fleet
from benchmark.runner.executors.schedule import Job, Schedule
from benchmark.runner.limits import GRACE, TIME_LIMIT, out_of_time
from benchmark.runner.loop import Attempt, Run
from benchmark.store import Store

LOST = 3  # workers that a task may take with it, and starts that may fail in a row
LATE = 600.0  # seconds that a worker may take to begin a task, base and store included, before its time counts
ALONE = 120  # seconds without any worker until we say so
LONELY = 1800  # and until we give up: a cluster that grows by itself may take its time
LOOK = 5  # seconds between two looks at whether the cluster has a machine left
GO_ON = "The same command goes on from here."
PAUSE = 0.2  # seconds between two looks at what other runs hold, and at how far the workers are

log = logging.getLogger(__name__)


def executor(workers: int | None = None) -> Callable[[Run], None]:
    """An executor for `runner.run`, with so many workers; by default one a core, or two a GPU.

    Raises:
        PackageError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise PackageError(
            f"expected the package ray for --executor ray, got {error}: pip install 'titer[ray]'."
        ) from error
    return partial(execute, ray, workers)


def execute(ray: Any, workers: int | None, run: Run) -> None:
    """Bring every task of a run to its end.

    Raises:
        ConfigError: there is no cluster where RAY_ADDRESS says, or it has no GPU and one was asked for.
        WorkerError: no worker can be started, or all machines are lost.
    """
    left = [task for task in run.plan.tasks.values() if not run.look(task)]
    if not left:
        return
    with cluster(ray):
        driver = Driver(ray, run, left, workers)
        try:
            driver.drive()
        finally:
            driver.dismiss()


class Driver:
    """The workers of a run, what each is at, and what is still to do."""

    def __init__(self, ray: Any, run: Run, left: list[Task], workers: int | None) -> None:
        self.ray, self.run = ray, run
        have, device = ray.cluster_resources(), run.bench.device
        on_gpu = device.startswith("cuda") or (device == "auto" and have.get("GPU", 0) >= 1)
        if on_gpu and have.get("GPU", 0) < 1:
            raise ConfigError(f"expected a GPU in the Ray cluster for --device {device}, got none: use --device cpu.")
        weights = memory.size_of(run.bench.folder)
        needs = {memory.group(task): memory.declared(task.kind, weights) for task in left}
        self.peaks = memory.peaks(run.bench.store, run.plan.base, needs) if on_gpu else {}
        needs |= {group: memory.measured(peak) for group, peak in self.peaks.items()}
        room = (int(have.get("memory", 0)) >> 20) // min(needs.values())
        self.fleet = fleet(have.get("CPU", 1.0), have.get("GPU", 0.0), workers, on_gpu=on_gpu, room=room)
        folder, store = run.bench.folder.resolve(), Store(run.bench.store.root.resolve())
        self.order = Order(
            bench=replace(run.bench, folder=folder, store=store, device="cuda" if on_gpu else "cpu"),
            threads=self.fleet.threads,
            seconds=TIME_LIMIT.get(),
            shared=self.fleet.gpu < 1,
            own=dict(registry.OWN),
        )
        self.schedule = Schedule(map(job, left), needs)
        self.inbox = ray.remote(Inbox).options(num_cpus=0).remote()
        self.mail: Any = None
        self.actors: dict[str, Any] = {}
        self.coming: dict[Any, str] = {}  # Ray's promise of a place -> worker
        self.running: dict[Any, tuple[str, str]] = {}  # Ray's promise of an attempt -> worker, task
        self.parked: dict[str, float] = {}  # task that another run holds -> when to look again
        self.since: dict[str, float] = {}  # task at work -> when its time began
        self.losses: Counter[str] = Counter()
        self.hired, self.misfits, self.heard, self.manned = 0, 0, 0.0, time.monotonic()
        self.looked = self.warned = self.manned
        for _ in range(self.fleet.count):
            self.hire()

    def drive(self) -> None:
        """Start, wait, collect, until every task is settled."""
        while self.schedule.left:
            self.look_again()
            self.dispatch()
            self.collect()
            self.listen()
            self.stop_late()

    def dismiss(self) -> None:
        """End every worker."""
        for actor in (*self.actors.values(), self.inbox):
            with suppress(self.ray.exceptions.RayError):  # the cluster may be gone
                self.ray.kill(actor)

    def hire(self) -> None:
        """Ask Ray for a worker; it joins when its process is there."""
        name, self.hired = f"worker-{self.hired}", self.hired + 1
        asked = {"num_cpus": self.fleet.cores, "num_gpus": self.fleet.gpu, "scheduling_strategy": "SPREAD"}
        self.actors[name] = self.ray.remote(Worker).options(**asked).remote(name, self.order, self.inbox)
        self.coming[self.actors[name].place.remote()] = name

    def look_again(self) -> None:
        """Take up the tasks that other runs held a moment ago."""
        for key, when in list(self.parked.items()):
            if time.monotonic() >= when:
                del self.parked[key]
                if self.run.look(self.run.plan.tasks[key]):
                    self.schedule.end(key)
                else:
                    self.schedule.again(key)

    def dispatch(self) -> None:
        """Start what the policy says."""
        for start in self.schedule.starts():
            cleared = [self.actors[name].clear.remote() for name in start.clear]
            if cleared:
                self.ray.wait(cleared, num_returns=len(cleared))
            task, outcome = self.run.plan.tasks[start.key], self.run.outcome
            there = [key for key in task.parents.values() if key not in outcome.failed and key not in outcome.skipped]
            promise = self.actors[start.worker].work.remote(task, there)
            self.running[promise] = start.worker, start.key
            self.since[start.key] = time.monotonic() + LATE

    def collect(self) -> None:
        """Wait a moment for workers that join, and for attempts that end."""
        promises = [*self.coming, *self.running]
        if not promises or (self.parked and not self.running):
            time.sleep(PAUSE)
        done, rest = self.ray.wait(promises, timeout=PAUSE) if promises else ([], [])
        if done and rest:
            done += self.ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for promise in done:
            if promise in self.coming:
                self.arrive(promise, self.coming.pop(promise))
            else:
                self.conclude(promise, *self.running.pop(promise))
        if self.schedule.workers:
            self.manned = self.looked = self.warned = time.monotonic()
        else:
            self.wait_for_workers(time.monotonic())

    def wait_for_workers(self, now: float) -> None:
        """Say that there is no worker, and give up where none can come.

        Raises:
            WorkerError: the cluster has no machine any more, or none had room for a worker for a long time.
        """
        if now - self.looked > LOOK:
            self.looked = now
            if not any(node["Alive"] for node in self.ray.nodes()):
                raise WorkerError(f"expected a machine in the Ray cluster, got none: it was lost. {GO_ON}")
        if now - self.manned > LONELY:
            raise WorkerError(
                f"expected room for {self.fleet} in the Ray cluster, got none for {LONELY} seconds: free some. {GO_ON}"
            )
        if now - self.warned > ALONE:
            log.warning("no worker for %d seconds: has the cluster room for %s?", ALONE, self.fleet)
            self.warned = now

    def arrive(self, promise: Any, name: str) -> None:
        """A worker is ready, or could not be started.

        Raises:
            WorkerError: none can.
        """
        try:
            device, size = self.ray.get(promise)
        except self.ray.exceptions.RayError as error:
            self.misfits += 1
            self.ray.kill(self.actors.pop(name))
            if self.misfits < LOST:
                self.hire()
            elif not self.schedule.workers and not self.coming:
                why = str(error).strip().rpartition("\n")[2]
                raise WorkerError(f"expected workers on Ray, got none that starts: {why}") from error
            return
        self.misfits = 0
        nodes = {node["NodeID"]: int(node["Resources"].get("memory", 0)) >> 20 for node in self.ray.nodes()}
        self.schedule.join(name, device, size or nodes.get(device, 0))

    def conclude(self, promise: Any, name: str, key: str) -> None:
        """An attempt came to an end, or its worker did.

        Raises:
            DataError: the weights of the base do not fit, and no task has run.
        """
        try:
            tried, idle = self.ray.get(promise)
        except self.ray.exceptions.RayTaskError as error:  # the worker lives
            if isinstance(error.cause, DataError) and not self.run.outcome.ran:
                raise error.cause from None
            tried, idle = Attempt("failed", str(error)), 0
        except self.ray.exceptions.RayError as error:
            self.lose(name, key, error)
            return
        task = self.run.plan.tasks[key]
        if tried.tampered:
            self.renew(name)
        if tried.what == "locked":
            self.run.locked(task)
            self.schedule.release(key)
            self.parked[key] = time.monotonic() + PAUSE
        elif tried.memory and self.schedule.crowded(key):
            self.schedule.again(key, alone=True)
        elif tried.what == "failed":
            self.give_up(key, tried.trace)
        else:
            self.run.settle(task, tried.what)
            self.schedule.end(key, idle=idle)
            self.learn(task)

    def lose(self, name: str, key: str, error: Exception) -> None:
        """A worker died, or its machine did: another takes its place, and its task over."""
        log.warning("lost %s, which was at %s: another takes it", name, self.run.plan.tasks[key].label)
        self.renew(name)
        self.losses[key] += 1
        if self.losses[key] < LOST:
            self.schedule.again(key, alone=self.losses[key] > 1)  # memory may be what killed the first
        else:
            why = " ".join(str(error).split())
            self.give_up(key, f"expected a worker to live through this task, got {LOST} that died: {why}")

    def renew(self, name: str) -> None:
        """End a worker, if it still lives; another takes its place."""
        self.ray.kill(self.actors.pop(name))
        self.schedule.leave(name)
        self.hire()

    def stop_late(self) -> None:
        """Kill the workers whose task has not ended by its time: it does not listen to their alarm."""
        seconds = self.order.seconds
        if seconds is None:
            return
        for promise, (name, key) in list(self.running.items()):
            if time.monotonic() > self.since[key] + seconds + GRACE:
                del self.running[promise]
                self.renew(name)
                self.give_up(key, f"TimeLimitError: {out_of_time(seconds)} Its worker was killed.")

    def give_up(self, key: str, trace: str) -> None:
        """A task failed: what needs it is skipped."""
        self.run.settle(self.run.plan.tasks[key], "failed", trace)
        for other in self.schedule.fail(key):
            self.run.look(self.run.plan.tasks[other])

    def learn(self, task: Task) -> None:
        """Keep the largest peak of a task's like."""
        if self.order.bench.device != "cpu" and self.run.bench.store.has(task.key):
            peak = self.run.bench.store.meta(task.key).get("cost", {}).get("peak_memory_mib")
            if peak is not None:
                group = memory.group(task)
                self.peaks[group] = max(self.peaks.get(group, 0), int(peak))
                self.schedule.memory[group] = memory.measured(self.peaks[group])

    def listen(self) -> None:
        """Pass on how far the workers are."""
        if time.monotonic() - self.heard < PAUSE:
            return
        self.heard = time.monotonic()
        if self.mail is None:
            self.mail = self.inbox.take.remote()
        if not self.ray.wait([self.mail], timeout=0)[0]:
            return
        try:
            (begun, messages), self.mail = self.ray.get(self.mail), None
        except self.ray.exceptions.RayError:  # its machine is lost: no bars, but nothing else
            return
        at_work = {key for _, key in self.running.values()}
        self.since |= {key: time.monotonic() for key in begun if key in at_work}
        for key, step, total, loss in messages:
            if key in at_work:
                self.run.events.started(self.run.plan.tasks[key])
                self.run.events.step(step=step, total=total, loss=loss)


def job(task: Task) -> Job:
    """What the policy knows of a task. A defense leaves its own result at hand for what follows it."""
    model = task.key if task.kind == "defend" else task.parents.get("defense", "")
    needed = set(task.required.values())
    return Job(
        key=task.key,
        parents=tuple(task.parents.values()),
        optional=frozenset(task.parents.values()) - needed,
        cost=float(task.weight),
        group=memory.group(task),
        model=model,
    )
