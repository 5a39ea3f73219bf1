"""What runs in Ray's processes: workers that keep a base loaded, and the inbox that tells how far they are.

Plain classes: the Ray executor makes actors of them, and sends them a task at a time. Weights never travel.
"""

import math
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from benchmark.config import registry
from benchmark.errors import DataError
from benchmark.plan.task import Task
from benchmark.runner.limits import each_task, free
from benchmark.runner.loop import Attempt, attempt
from benchmark.runner.stages import Bench, needs_base

PAUSE = 0.3  # seconds between two messages of a task
VISIBLE = 60.0  # seconds until a shared folder shows what another machine has written


@dataclass(frozen=True, kw_only=True)
class Order:
    """What every worker of a run is made of.

    Attributes:
        bench: the base, the store and the device; nothing is loaded on it.
        threads: to compute with.
        seconds: that a task may take.
        shared: several workers share a device, so memory is given back between tasks.
        own: classes that the driver's process registered.
    """

    bench: Bench
    threads: int
    seconds: float | None
    shared: bool
    own: Mapping[tuple[registry.PluginKind, str], type[Any]]


class Worker:
    """Runs one task after the other, each as the local executor would."""

    def __init__(self, name: str, order: Order, inbox: Any) -> None:
        import torch

        torch.set_num_threads(order.threads)
        registry.OWN.update(order.own)
        self.name, self.order, self.inbox = name, order, inbox
        self.bench = self.fresh()

    def fresh(self) -> Bench:
        """A bench on which nothing is loaded yet."""
        return deepcopy(self.order.bench)

    def place(self) -> tuple[str, int]:
        """The device, by a name that all workers on it give, and its MiB; 0 for what Ray knows of the machine."""
        import ray
        import torch

        context = ray.get_runtime_context()
        if self.bench.device == "cpu":
            return context.get_node_id(), 0
        number = ",".join(map(str, context.get_accelerator_ids().get("GPU", ())))
        return f"{context.get_node_id()}/{number}", torch.cuda.get_device_properties(0).total_memory >> 20

    def work(self, task: Task, parents: Sequence[str]) -> tuple[Attempt, int]:
        """Attempt a task, whose `parents` are in the store; give back what came of it, and the MiB of the device that
        this process keeps.

        Raises:
            DataError: the weights of the base do not fit: no task can use them.
        """
        self.wait_for(parents)
        self.load_for(task)
        with each_task(self.order.seconds):
            found = attempt(task, self.bench, Wire(self.name, self.inbox))
        return found, self.kept()

    def load_for(self, task: Task) -> None:
        """Load the base that a task needs.

        Raises:
            DataError: its weights do not fit.
        """
        try:
            _ = self.bench.base if needs_base(task) else None
        except DataError:
            raise
        except Exception:  # of memory, say: the attempt meets it again, and tells what became of the task
            free()

    def wait_for(self, keys: Sequence[str]) -> None:
        """Wait until this machine sees what others have written: a network file system may take its time."""
        over = time.monotonic() + VISIBLE
        while time.monotonic() < over and not all(self.bench.store.has(key) for key in keys):
            time.sleep(PAUSE)

    def kept(self) -> int:
        """MiB of the GPU that stay in use between two tasks."""
        if self.bench.device == "cpu":
            return 0
        import torch

        if self.order.shared:
            free()
        return torch.cuda.memory_reserved() >> 20

    def clear(self) -> None:
        """Give back all memory of the device: another worker's task needs it."""
        self.bench = self.fresh()
        free()


class Wire:
    """The events of a worker: says a few times a second how far its task is, and waits for no answer."""

    def __init__(self, name: str, inbox: Any) -> None:
        self.name, self.inbox, self.key, self.last = name, inbox, "", 0.0

    def started(self, task: Task) -> None:
        """A task begins: its time counts from the last of these."""
        self.key = task.key
        self.inbox.begin.remote(self.key)
        self.send(0, 1, math.nan)

    def step(self, *, step: int, total: int, loss: float) -> None:
        """The task moved on."""
        if time.monotonic() - self.last >= PAUSE:
            self.send(step, total, loss)

    def finished(self, task: Task, outcome: str) -> None:
        """The driver knows: it gets the attempt."""

    def send(self, step: int, total: int, loss: float) -> None:
        """Leave a message that replaces this worker's last."""
        self.last = time.monotonic()
        self.inbox.put.remote(self.name, (self.key, step, total, loss))


class Inbox:
    """The last message of each worker and the tasks that began, until the driver takes them."""

    def __init__(self) -> None:
        self.last: dict[str, tuple[str, int, int, float]] = {}
        self.begun: list[str] = []

    def begin(self, key: str) -> None:
        """Keep that a task began."""
        self.begun.append(key)

    def put(self, name: str, message: tuple[str, int, int, float]) -> None:
        """Keep a worker's message."""
        self.last[name] = message

    def take(self) -> tuple[list[str], list[tuple[str, int, int, float]]]:
        """Hand over what came since the last time: tasks that began, messages."""
        begun, found = self.begun, list(self.last.values())
        self.begun, self.last = [], {}
        return begun, found
