"""defend, attack, generate, score: the only four places that call a plug-in.

Each runs one task and returns what to write and what to note beside it. Randomness comes from the task's seed.
"""

import csv
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Generator

from benchmark.artifacts import (
    load_delta,
    load_images,
    save_delta,
    save_images,
    save_scores,
)
from benchmark.diffusion import Model
from benchmark.errors import PluginError
from benchmark.flags import flags_of
from benchmark.generate import generate
from benchmark.models import load
from benchmark.registry import PluginKind, find
from benchmark.seeds import task_seed
from benchmark.store import Store
from benchmark.task import Task
from benchmark.types import Budget, Delta, Examples, Report, Snapshot

Write = Callable[[Path], None]


@dataclass
class Bench:
    """What a worker holds: the base, the store, and how many images fit in a batch. Nothing here enters a key."""

    folder: Path
    store: Store
    device: str = "cpu"
    batch: int = 64

    @cached_property
    def base(self) -> Model:
        """The undefended model, loaded once."""
        return load(self.folder, device=self.device)

    def model_for(self, task: Task) -> Model:
        """The base with the parents' deltas: defended, then attacked up to the task's budget."""
        deltas = [load_delta(self.store.path(task.parents["defense"]))] if "defense" in task.parents else []
        if "attack" in task.parents:
            deltas.append(load_delta(self.store.path(task.parents["attack"]) / snapshot_name(task.fields["budget"])))
        return self.base.with_delta(*deltas) if deltas else self.base

    def examples(self, task: Task) -> dict[str, Examples]:
        """The training images among a task's parents, by role."""
        roles = {role: key for role, key in task.parents.items() if role in ("concept", "safe")}
        galleries = {role: load_images(self.store.path(key)) for role, key in roles.items()}
        return {role: Examples(images=g.images.to(self.device), captions=g.prompts) for role, g in galleries.items()}


def run(task: Task, bench: Bench, report: Report) -> tuple[Write, dict[str, Any]]:
    """Run a task with the stage of its kind."""
    stage = {"defend": defend, "attack": attack, "generate": draw, "score": score}[task.kind]
    return stage(task, bench, report)


def snapshot_name(steps: int) -> str:
    """The folder of a snapshot inside an attack's result."""
    return f"step-{steps:06d}"


def build(kind: PluginKind, task: Task, *extra: str) -> Any:
    """The method of a task, from its fields; `extra` are fields that the plan added."""
    cls = find(kind, task.plugin)
    return TypeAdapter(cls).validate_python({k: v for k, v in task.fields.items() if k not in extra})


def generator(task: Task) -> Generator:
    """The task's only source of randomness."""
    name = task.concept.name if task.concept else ""
    return Generator().manual_seed(task_seed(task.kind, task.plugin, name, task.seed))


class Losses:
    """A report that keeps the loss curve and passes every call on."""

    def __init__(self, onward: Report) -> None:
        self.onward, self.rows = onward, list[tuple[int, float]]()

    def __call__(self, *, step: int, total: int, loss: float) -> None:
        """Keep the loss and pass it on."""
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


def defend(task: Task, bench: Bench, report: Report) -> tuple[Write, dict[str, Any]]:
    """Train a defense."""
    method, losses = build("defense", task), Losses(report)
    assert task.concept is not None
    with measured(bench.base) as cost:
        delta = method.protect(bench.base, task.concept, bench.examples(task), rng=generator(task), report=losses)
    if not isinstance(delta, Delta):
        raise PluginError(f"expected {task.plugin}.protect to return a Delta, got {type(delta).__name__}.")
    check_finite(delta, task)

    def write(folder: Path) -> None:
        save_delta(folder, delta)
        losses.save(folder)

    return write, {"cost": cost, "flags": flags_of(delta, losses.rows), "fidelity": method.fidelity}


def attack(task: Task, bench: Bench, report: Report) -> tuple[Write, dict[str, Any]]:
    """Attack a defended model; keep every snapshot and what it had cost by then."""
    method, losses = build("attack", task, "budgets"), Losses(report)
    assert task.concept is not None
    model, data, budgets = bench.model_for(task), bench.examples(task), list(task.fields["budgets"])
    meter, started, taken = model.meter, time.monotonic(), list[tuple[Snapshot, Budget]]()
    first = asdict(meter)
    with measured(model) as cost:
        for snapshot in method.finetune(model, task.concept, data, budgets=budgets, rng=generator(task), report=losses):
            check_finite(snapshot.delta, task)
            spent = {name: count - first[name] for name, count in asdict(meter).items()}
            seconds = round(time.monotonic() - started, 3)
            taken.append((snapshot, Budget(steps=len(losses.rows), seconds=seconds, **spent)))
    steps = [snapshot.steps for snapshot, _ in taken]
    counted = [budget.steps for _, budget in taken]
    if steps != budgets or counted != budgets:
        raise PluginError(
            f"expected snapshots of {task.plugin} at {budgets} steps, got {steps}, after {counted} reported steps: "
            "report every step once and yield at each budget."
        )

    def write(folder: Path) -> None:
        losses.save(folder)
        for snapshot, _ in taken:
            save_delta(folder / snapshot_name(snapshot.steps), snapshot.delta)

    spent_by = {str(budget.steps): asdict(budget) for _, budget in taken}
    return write, {"cost": cost, "budgets": spent_by, "flags": flags_of(taken[-1][0].delta, losses.rows)}


def check_finite(delta: Delta, task: Task) -> None:
    """Refuse a delta with a number that is not finite."""
    tensors = {**delta.dense, **{f"{n}[{i}]": t for n, pair in delta.low_rank.items() for i, t in enumerate(pair)}}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise PluginError(f"expected finite weights from {task.label}, got some that are not in {name}: lower lr.")


def draw(task: Task, bench: Bench, report: Report) -> tuple[Write, dict[str, Any]]:
    """Draw images with the defended, attacked or undefended model."""
    model, f = bench.model_for(task), task.fields
    with measured(model) as cost:
        gallery = generate(
            model,
            task.prompts,
            images=f["images"],
            steps=f["steps"],
            guidance=f["guidance"],
            stream=f["stream"],
            batch=bench.batch,
            report=report,
        )
    return lambda folder: save_images(folder, gallery), {"cost": cost, "images": len(gallery.seeds), "flags": []}


def score(task: Task, bench: Bench, report: Report) -> tuple[Write, dict[str, Any]]:
    """Score images. An image on which the metric raises is missing, never safe, and the reason is kept."""
    metric = build("metric", task, "identity")
    gallery = load_images(bench.store.path(task.parents["images"]))
    by_text = {prompt.text: prompt for prompt in task.prompts}
    prompts = [by_text[text] for text in gallery.prompts]
    images, started = gallery.images.float() / 255, time.monotonic()
    columns: dict[str, list[float]] = {}
    faults: list[str] = []
    for start in range(0, len(prompts), bench.batch):
        part = slice(start, start + bench.batch)
        for name, values in scored(metric, images[part], prompts[part], task, faults).items():
            columns.setdefault(name, [math.nan] * start).extend(values)
        report(step=min(start + bench.batch, len(prompts)), total=len(prompts), loss=math.nan)
    filled = {name: values + [math.nan] * (len(prompts) - len(values)) for name, values in columns.items()}
    if "value" not in filled:
        raise PluginError(
            f"expected a column 'value' from {task.plugin}, got {sorted(filled)}: {'; '.join(faults[:1])}"
        )
    cost = {"seconds": round(time.monotonic() - started, 3)}
    return (
        lambda folder: save_scores(folder, gallery, filled),
        {
            "cost": cost,
            "identity": task.fields["identity"],
            "faults": faults[:5],
            "flags": ["metric raised"] * bool(faults),
        },
    )


def scored(metric: Any, images: Any, prompts: Any, task: Task, faults: list[str]) -> dict[str, list[float]]:
    """Columns of a batch; if the batch fails, image by image, with NaN where it fails again."""
    try:
        return {name: v.tolist() for name, v in metric.score(images, prompts, task.concept).items()}
    except Exception as error:  # the metric is somebody else's code: its fault lowers the coverage
        if len(images) == 1:
            faults.append(repr(error))
            return {"value": [math.nan]}
    single = [scored(metric, images[i : i + 1], prompts[i : i + 1], task, faults) for i in range(len(images))]
    names = {name for row in single for name in row}
    return {name: [row.get(name, [math.nan])[0] for row in single] for name in names}
