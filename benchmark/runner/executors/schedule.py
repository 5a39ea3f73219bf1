"""Which task runs next, and where. A pure policy: the Ray executor drives it with workers, `simulate` with a clock.

ready    its parents are settled.
rank     a task's own cost and that of the costliest chain of tasks that waits for it. The highest rank runs first, so
         that long chains start early. Ranks with the same highest binary digit count as equal.
model    among such equals a worker takes a task of the defended model that it holds, then one that needs none, then
         one of a model that no other worker holds.
memory   a task runs where it fits beside what the other workers of the device use. One that is passed over too often
         has its device kept free until it fits; one that runs `alone` shares its device with nothing.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

PATIENCE = 8  # how often a task that does not fit is passed over
Heap = list[tuple[float, int, str]]  # minus the rank, the place in the plan, the key


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the policy knows of a task.

    Attributes:
        optional: the parents that may fail without taking it with them.
        cost: how long it takes, in any unit.
        group: tasks of one group need the same memory.
        model: the defended model it works on; empty where any worker will do.
    """

    key: str
    parents: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset()
    cost: float = 1.0
    group: str = ""
    model: str = ""


@dataclass
class Worker:
    """A process that runs one task at a time, on a device that it may share.

    Attributes:
        model: the defended model it holds.
        job: the task it runs; empty if it is idle.
        idle: MiB of the device that it keeps between tasks.
    """

    name: str
    device: str
    model: str = ""
    job: str = ""
    idle: int = 0


@dataclass(frozen=True)
class Start:
    """A task to start, where, and the idle workers that must give back their memory first."""

    key: str
    worker: str
    clear: tuple[str, ...] = ()


class Schedule:
    """Jobs, parents first, and workers that come and go. Every job ends by `end` or `fail`.

    Args:
        jobs: a parent that is not among them counts as settled.
        memory: MiB that a job of each group needs; it may change at any time.
    """

    def __init__(self, jobs: Iterable[Job], memory: Mapping[str, int] | None = None) -> None:
        self.jobs = {job.key: job for job in jobs}
        self.memory = dict(memory or {})
        self.place = {key: number for number, key in enumerate(self.jobs)}
        self.children: dict[str, list[str]] = {key: [] for key in self.jobs}
        self.missing: dict[str, int] = {}
        for key, job in self.jobs.items():
            parents = set(job.parents) & self.jobs.keys()
            self.missing[key] = len(parents)
            for parent in parents:
                self.children[parent].append(key)
        self.rank = ranks(self.jobs, self.children)
        self.left = set(self.jobs)
        self.workers: dict[str, Worker] = {}
        self.capacity: dict[str, int] = {}
        self.alone: set[str] = set()
        self.passed: Counter[str] = Counter()
        self.kept: dict[str, str] = {}  # device -> the job that it is kept free for
        self.queues: dict[int, dict[str, dict[str, Heap]]] = {}  # level -> model -> group -> heap
        for key, count in self.missing.items():
            if not count:
                self.push(key)

    def join(self, name: str, device: str, capacity: int = 0) -> None:
        """A worker is ready, on a device of so many MiB."""
        self.workers[name] = Worker(name, device)
        self.capacity[device] = capacity

    def leave(self, name: str) -> str:
        """A worker is lost; give back the job that it ran, for `again` or `fail`."""
        worker = self.workers.pop(name)
        if not any(other.device == worker.device for other in self.workers.values()):
            del self.capacity[worker.device]
            self.kept.pop(worker.device, None)
        return worker.job

    def starts(self) -> list[Start]:
        """Everything that can start now; it counts as started."""
        found = list[Start]()
        for choose in (self.stay, self.choose):
            for worker in self.workers.values():
                start = None if worker.job else choose(worker)
                if start:
                    self.take(worker, start)
                    found.append(start)
        return found

    def end(self, key: str, *, idle: int = 0) -> None:
        """A job is done; its worker holds the job's model now and keeps `idle` MiB."""
        worker = self.release(key)
        if worker:
            worker.model, worker.idle = self.jobs[key].model or worker.model, idle
        self.left.discard(key)
        for child in self.children[key]:
            self.settle(child)

    def fail(self, key: str) -> list[str]:
        """A job is given up, and with it all that cannot do without it: these are returned, parents first."""
        self.release(key)
        self.left.discard(key)
        gone = [key]
        for parent in gone:  # it grows
            for child in self.children[parent]:
                if parent in self.jobs[child].optional:
                    self.settle(child)
                elif child in self.left:
                    self.left.discard(child)
                    gone.append(child)
        return sorted(gone[1:], key=self.place.__getitem__)

    def settle(self, child: str) -> None:
        """One parent less to wait for."""
        self.missing[child] -= 1
        if not self.missing[child] and child in self.left:
            self.push(child)

    def again(self, key: str, *, alone: bool = False) -> None:
        """A job that was taken back, or lost, waits again; from now on `alone` on its device, if so said."""
        self.release(key)
        if alone:
            self.alone.add(key)
        self.push(key)

    def release(self, key: str) -> Worker | None:
        """Free the worker of a job; the job itself does not wait again before `again`."""
        for worker in self.workers.values():
            if worker.job == key:
                worker.job = ""
                return worker
        return None

    def crowded(self, key: str) -> bool:
        """True when the running job shares its device with other workers, and not alone."""
        devices = [worker.device for worker in self.workers.values() if worker.job == key]
        return key not in self.alone and sum(w.device in devices for w in self.workers.values()) > 1

    def need(self, key: str) -> int:
        """MiB that a job is thought to need; the largest device at most, so that it runs somewhere."""
        return min(self.memory.get(self.jobs[key].group, 0), max(self.capacity.values(), default=0))

    def fits(self, worker: Worker, key: str) -> tuple[str, ...] | None:
        """The idle workers that must give back memory for this job to run here; None if it does not fit now."""
        if self.kept.get(worker.device, key) != key:
            return None
        others = [w for w in self.workers.values() if w.device == worker.device and w is not worker]
        need, size = self.need(key), self.capacity[worker.device]
        used = sum(self.need(w.job) if w.job else w.idle for w in others)
        if key not in self.alone and used + need <= size and not any(w.job in self.alone for w in others):
            return ()
        if need > size or any(w.job for w in others):
            return None
        return tuple(w.name for w in others if w.idle)

    def stay(self, worker: Worker) -> Start | None:
        """The best job of the model that the worker holds, if it is among the longest chains."""
        for key in self.tops(max(self.queues, default=0), worker.model) if worker.model else ():
            clear = self.fits(worker, key)
            if clear is not None:
                return Start(key, worker.name, clear)
        return None

    def choose(self, worker: Worker) -> Start | None:
        """The best job for a worker; note which better ones did not fit."""
        skipped = ""
        for level in sorted(self.queues, reverse=True):
            for key in self.preferred(level, worker):
                clear = self.fits(worker, key)
                if clear is not None:
                    self.note(worker, skipped)
                    return Start(key, worker.name, clear)
                skipped = skipped or key
        return None

    def note(self, worker: Worker, skipped: str) -> None:
        """Count that a job was passed over, and keep the device free for it in the end."""
        if skipped and worker.device not in self.kept and self.need(skipped) <= self.capacity[worker.device]:
            self.passed[skipped] += 1
            if self.passed[skipped] > PATIENCE and skipped not in self.kept.values():
                self.kept[worker.device] = skipped

    def preferred(self, level: int, worker: Worker) -> Iterator[str]:
        """The first job of each model and group of a level, the most welcome first."""
        held = {w.model for w in self.workers.values() if w is not worker}

        def order(model: str) -> tuple[int, float]:
            wish = 0 if model == worker.model else 1 if not model else 3 if model in held else 2
            return wish, min(heap[0][0] for heap in self.queues[level][model].values())

        for model in sorted(self.queues[level], key=order):
            yield from self.tops(level, model)

    def tops(self, level: int, model: str) -> list[str]:
        """The first job of each group, the highest rank first."""
        heaps = self.queues.get(level, {}).get(model, {})
        return [key for _, _, key in sorted(heap[0] for heap in heaps.values())]

    def slot(self, key: str) -> tuple[int, str, str]:
        """The queue of a job: its level, its model, its group."""
        job = self.jobs[key]
        return math.frexp(self.rank[key])[1], job.model, f"alone {key}" if key in self.alone else job.group

    def push(self, key: str) -> None:
        """Put a job in its queue."""
        level, model, group = self.slot(key)
        heap = self.queues.setdefault(level, {}).setdefault(model, {}).setdefault(group, [])
        heappush(heap, (-self.rank[key], self.place[key], key))

    def take(self, worker: Worker, start: Start) -> None:
        """Take a job out of its queue, for a worker."""
        level, model, group = self.slot(start.key)
        heap = self.queues[level][model][group]
        if heap[0][2] == start.key:
            heappop(heap)
        else:
            heap.remove((-self.rank[start.key], self.place[start.key], start.key))
            heapify(heap)
        if not heap:
            del self.queues[level][model][group]
        if not self.queues[level][model]:
            del self.queues[level][model]
        if not self.queues[level]:
            del self.queues[level]
        worker.job = start.key
        for name in start.clear:
            self.workers[name].idle, self.workers[name].model = 0, ""
        self.kept = {device: key for device, key in self.kept.items() if key != start.key}


def ranks(jobs: Mapping[str, Job], children: Mapping[str, list[str]]) -> dict[str, float]:
    """The cost of the costliest chain that begins with each job; `jobs` come parents first."""
    found: dict[str, float] = {}
    for key in reversed(list(jobs)):
        found[key] = jobs[key].cost + max((found[child] for child in children[key]), default=0.0)
    return found
