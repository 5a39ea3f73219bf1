"""What every stage does around a method: make it from its task, seed it, count what it costs, keep its losses."""

import csv
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Generator

from benchmark.config.registry import PluginKind, find
from benchmark.diffusion import Model
from benchmark.errors import PluginError
from benchmark.plan.seeds import task_seed
from benchmark.plan.task import Task
from benchmark.types import Report


def build(kind: PluginKind, task: Task, *extra: str) -> Any:
    """The method of a task, from its fields; `extra` are fields that the plan added."""
    cls = find(kind, task.plugin)
    return TypeAdapter(cls).validate_python({k: v for k, v in {**task.fields, **task.places}.items() if k not in extra})


def generator(task: Task) -> Generator:
    """The task's only source of randomness."""
    name = task.concept.name if task.concept else ""
    return Generator().manual_seed(task_seed(task.kind, task.plugin, name, task.seed))


class Losses:
    """A report that keeps the loss curve, passes every call on, and stops whoever takes more steps than `limit`."""

    def __init__(self, onward: Report, limit: int | None = None) -> None:
        self.onward, self.limit, self.rows = onward, limit, list[tuple[int, float]]()

    def __call__(self, *, step: int, total: int, loss: float) -> None:
        """Keep the loss and pass it on."""
        if self.limit is not None and len(self.rows) >= self.limit:
            raise PluginError(f"expected at most {self.limit} steps, got one more: an attack may not overspend.")
        try:
            step, total, loss = int(step), int(total), float(loss)
        except (TypeError, ValueError, OverflowError) as error:
            raise PluginError(f"expected numbers in report(step=, total=, loss=), got {error}.") from error
        self.rows.append((step, loss))
        self.onward(step=step, total=total, loss=loss)

    def save(self, folder: Path) -> None:
        """Write `losses.csv`."""
        with (folder / "losses.csv").open("w", newline="") as handle:
            csv.writer(handle).writerows([("step", "loss"), *self.rows])


@contextmanager
def measured(model: Model) -> Iterator[dict[str, Any]]:
    """Count passes, seconds and, on a GPU, peak memory; the dictionary is filled on leaving."""
    cost: dict[str, Any] = {}
    meter, started = model.meter, time.monotonic()
    forward, backward = meter.unet_forward, meter.unet_backward
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    yield cost
    cost["seconds"] = round(time.monotonic() - started, 3)
    cost["unet_forward"], cost["unet_backward"] = meter.unet_forward - forward, meter.unet_backward - backward
    cost["peak_memory_mib"] = torch.cuda.max_memory_allocated() // 2**20 if on_gpu else None
