"""defend, attack, generate, embed, score: the only places that call a plug-in.

Each runs one task and returns what to write and what to note beside it. Randomness comes from the task's seed.
"""

import csv
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging
from pydantic import TypeAdapter
from torch import Generator, Tensor
from transformers.utils import logging as transformers_logging

from benchmark.artifacts import (
    Gallery,
    load_delta,
    load_features,
    load_images,
    load_snapshot,
    load_values,
    save_delta,
    save_features,
    save_images,
    save_numbers,
    save_scores,
    save_snapshot,
)
from benchmark.diffusion import Model
from benchmark.errors import DataError, PluginError, StoreError, TiterError
from benchmark.executors.limits import out_of_memory
from benchmark.executors.resident import Resident
from benchmark.flags import flags_of
from benchmark.generate import Begin, generate
from benchmark.mini.subjects import background_of
from benchmark.mini.subjects import draw as draw_subject
from benchmark.models import load
from benchmark.prompts.pictures import squares
from benchmark.registry import PluginKind, find
from benchmark.safety import allowed
from benchmark.seeds import image_seed, task_seed
from benchmark.store import Store
from benchmark.task import Task, drawing
from benchmark.types import PROMPT, Budget, Delta, Examples, Prompt, Report, Snapshot
from metrics.embedders import embed as embed_images

Write = Callable[[Path], None]
HELD = 2**31  # bytes of images held in memory

for library in (diffusers_logging, transformers_logging):
    library.disable_progress_bar()  # their bars of a second would run through the run's own


@dataclass
class Bench:
    """What a worker holds: the base, the store, and how many images fit in a batch. Nothing here enters a key.

    With `save_flagged` the images of an NSFW suite are written to the store; else they are `held` in memory, as long
    as there is room for them.
    """

    folder: Path
    store: Store
    device: str = "cpu"
    batch: int = 64
    save_flagged: bool = False
    held: dict[str, Gallery] = field(default_factory=dict)

    @cached_property
    def base(self) -> Model:
        """The undefended model, loaded once."""
        return load(self.folder, device=self.device)

    @cached_property
    def resident(self) -> Resident:
        """The base, and a copy of it on which deltas are swapped."""
        return Resident(self.base)

    def model_for(self, task: Task) -> Model:
        """The base with the parents' changes, until the next call: defended, then attacked up to the task's budget."""
        layers = {key: partial(load_delta, self.store.path(key)) for key in self.lineage(task)}
        snapshots = self.snapshots(task)
        at = f"{task.parents.get('attack')}@{task.fields.get('budget', task.fields.get('start'))}"
        layers |= {f"{at}#{i}": partial(getattr, snapshot, "delta") for i, snapshot in enumerate(snapshots)}
        model = replace(self.resident.wear(layers) if layers else self.base, precision=task.precision)
        tokens = {word: vector for snapshot in snapshots for word, vector in snapshot.tokens.items()}
        return model.with_tokens(tokens) if tokens else model

    def lineage(self, task: Task) -> list[str]:
        """Keys of the defenses under a task, the first trained first: a composed one was trained on another."""
        keys, key = list[str](), task.parents.get("defense")
        while key:
            keys.insert(0, key)
            key = self.store.meta(key)["identity_of"]["parents"].get("defense")
        return keys

    def snapshots(self, task: Task) -> list[Snapshot]:
        """What the attacks under a task had when it begins, the first attack first.

        An image task reads its attack's at its budget; a prompt attack that follows a weight attack reads that one's
        at its start.

        Raises:
            PluginError: an attack stopped before.
            StoreError: it was deleted, as an NSFW suite's are once its images are scored.
        """
        found = list[Snapshot]()
        key, steps = task.parents.get("attack"), task.fields.get("budget", task.fields.get("start"))
        while key:
            meta, folder = self.store.meta(key), self.store.path(key) / snapshot_name(steps)
            if not folder.is_dir():
                if meta.get("withheld") and str(steps) in meta["budgets"]:
                    raise StoreError(
                        f"expected the snapshot at {steps} steps of {key}, got one that was deleted once its images "
                        "were scored: give --keep-attacks to the run that computes it."
                    )
                why = meta.get("stopped", "it has no such snapshot")
                raise PluginError(f"expected a snapshot at {steps} steps, got an attack that stopped before: {why}")
            found.insert(0, load_snapshot(folder))
            key, steps = meta["identity_of"]["parents"].get("attack"), meta["identity_of"]["fields"].get("start")
        return found

    def examples(self, task: Task) -> dict[str, Examples]:
        """The training images among a task's parents, by role."""
        roles = {role: key for role, key in task.parents.items() if role in ("concept", "safe", "benign")}
        galleries = {role: self.gallery(key) for role, key in roles.items()}
        return {role: Examples(images=g.images.to(self.device), captions=g.prompts) for role, g in galleries.items()}

    def gallery(self, key: str) -> Gallery:
        """The images of a finished task: from the store, or, where they are not kept, from memory or drawn again."""
        if key not in self.held:
            meta = self.store.meta(key)
            if not meta.get("withheld"):
                return load_images(self.store.path(key))
            found, _ = sampled(drawing(meta["identity_of"]), self, lambda *, step, total, loss: None)
            self.hold(key, found)
        self.held[key] = self.held.pop(key)  # the last one asked for goes last
        return self.held[key]

    def hold(self, key: str, gallery: Gallery) -> None:
        """Keep images in memory; those that were asked for longest ago go when there are too many."""
        self.held[key] = gallery
        while len(self.held) > 1 and sum(g.images.nbytes for g in self.held.values()) > HELD:
            del self.held[next(iter(self.held))]


def run(task: Task, bench: Bench, report: Report) -> tuple[Write, dict[str, Any]]:
    """Run a task with the stage of its kind."""
    stage = {"defend": defend, "attack": attack, "generate": draw, "embed": embed, "score": score}[task.kind]
    if task.kind not in ("defend", "attack") and "begin" not in task.fields:
        return stage(task, bench, report)
    bench.resident.drop()  # a method gets a copy of its own, and its peak of memory is its own, too
    try:
        return stage(task, bench, report)
    finally:
        bench.resident.drop()


def snapshot_name(steps: int) -> str:
    """The folder of a snapshot inside an attack's result."""
    return f"step-{steps:06d}"


def build(kind: PluginKind, task: Task, *extra: str) -> Any:
    """The method of a task, from its fields; `extra` are fields that the plan added."""
    cls = find(kind, task.plugin)
    return TypeAdapter(cls).validate_python({k: v for k, v in {**task.fields, **task.places}.items() if k not in extra})


def check(tasks: Iterable[Task]) -> None:
    """Have at hand what the metrics among `tasks` need, before any is run.

    Raises:
        DataError: weights are missing, or a metric does not fit the card or the prompts.
    """
    seen = set()
    for task in tasks:
        prompts = {prompt.label: prompt for prompt in task.prompts}
        card = task.concept.name if task.concept else None
        asked = repr((task.plugin, task.fields, task.places, card, sorted(map(str, prompts))))
        if task.kind != "score" or asked in seen:
            continue
        seen.add(asked)
        try:
            build("metric", task, "identity").check(task.concept, tuple(prompts.values()))
        except TiterError:
            raise
        except Exception as error:  # of another's metric, or of the libraries that look for weights
            known = isinstance(error, FileNotFoundError | ValueError)
            raise DataError(str(error) if known else f"expected {task.plugin} to be ready, got {error!r}.") from error


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
    model = bench.model_for(task)
    with measured(model) as cost:
        delta = method.protect(model, task.concept, bench.examples(task), rng=generator(task), report=losses)
    if not isinstance(delta, Delta):
        raise PluginError(f"expected {task.plugin}.protect to return a Delta, got {type(delta).__name__}.")
    check_finite(delta, task)
    model.with_delta(delta)  # raises on a wrong name or shape: here, so that no such delta is kept

    def write(folder: Path) -> None:
        save_delta(folder, delta)
        losses.save(folder)

    return write, {
        "cost": cost,
        "flags": flags_of(Snapshot(steps=0, delta=delta), losses.rows),
        "fidelity": method.fidelity,
    }


def attack(task: Task, bench: Bench, report: Report) -> tuple[Write, dict[str, Any]]:
    """Attack a defended model; keep every snapshot and what it had cost by then.

    An attack that raises after its first snapshot keeps what it has; larger budgets fail with its reason.
    """
    losses = Losses(report, limit=max(task.fields["budgets"]))
    method, choice = chosen(task, bench.store)
    assert task.concept is not None
    model, data, budgets = bench.model_for(task), bench.examples(task), list(task.fields["budgets"])
    meter, started, taken = model.meter, time.monotonic(), list[tuple[Snapshot, Budget]]()
    verb = method.finetune if method.changes == "weights" else method.search
    first, why = asdict(meter), ""
    with measured(model) as cost:
        base = bench.base if method.uses_base else model
        arguments = (model, base, task.concept, data)
        try:
            for snapshot in verb(*arguments, budgets=budgets, rng=generator(task), report=losses):
                check_finite(snapshot.delta, task)
                snapshot = permitted(snapshot, task)
                spent = {name: count - first[name] for name, count in asdict(meter).items()}
                seconds = round(time.monotonic() - started, 3)
                taken.append((snapshot, Budget(steps=len(losses.rows), seconds=seconds, **spent)))
        except Exception as error:  # the attack is somebody else's code: what it reached counts
            if not taken or isinstance(error, PluginError) or out_of_memory(error):
                raise
            why = f"{type(error).__name__}: {error}"
    check_steps(
        task, [s.steps for s, _ in taken], [b.steps for _, b in taken], budgets[: len(taken)] if why else budgets
    )

    def write(folder: Path) -> None:
        losses.save(folder)
        for snapshot, _ in taken:
            save_snapshot(folder / snapshot_name(snapshot.steps), snapshot)

    spent_by = {str(budget.steps): asdict(budget) for _, budget in taken}
    flags = flags_of(taken[-1][0], losses.rows) + ["stopped early"] * bool(why)
    return write, {"cost": cost, "budgets": spent_by, "flags": flags, "stopped": why, **choice}


def chosen(task: Task, store: Store) -> tuple[Any, dict[str, Any]]:
    """The method of an attack task, and for a tuned one what it chose: the settings that the judge saw most after.

    A trial's worth is its presence on the development concept, averaged over the budgets; the first of equals wins.

    Raises:
        PluginError: every trial failed.
    """
    if "trials" not in task.fields:
        return build("attack", task, "budgets", "start"), {}
    settings, budgets = task.fields["trials"], task.fields["budgets"]
    worth = list[float | None]()
    for number in range(len(settings)):
        keys = [task.parents[f"trial{number}@{budget}"] for budget in budgets]
        values = [np.mean(load_values(store.path(key))) for key in keys if store.has(key)]
        worth.append(float(np.mean(values)) if len(values) == len(keys) else None)
    known = [value for value in worth if value is not None]
    if not known:
        raise PluginError(f"expected a trial of {task.plugin} that finishes, got none of {len(worth)}: lower lr.")
    best = worth.index(max(known))
    method = TypeAdapter(find("attack", task.plugin)).validate_python(settings[best])
    varied = {name for other in settings for name in other if other[name] != settings[0][name]}
    return method, {"chosen": {name: settings[best][name] for name in sorted(varied)}, "trials": worth}


def permitted(snapshot: Snapshot, task: Task) -> Snapshot:
    """A snapshot without the prompts that the age filter drops.

    Raises:
        PluginError: nothing is left of what the attack found.
    """
    assert task.concept is not None
    prompts = tuple(allowed(snapshot.prompts, task.concept.kind))
    if snapshot.prompts and not prompts:
        raise PluginError("expected found prompts that the age filter permits, got none: they are not drawn.")
    return replace(snapshot, prompts=prompts)


def check_steps(task: Task, yielded: list[int], counted: list[int], budgets: list[int]) -> None:
    """Refuse an attack that spent something else than it was given."""
    if yielded != budgets or counted != budgets:
        raise PluginError(
            f"expected snapshots of {task.plugin} at {budgets} steps, got {yielded}, after {counted} reported steps: "
            "report every step once and yield at each budget."
        )


def check_finite(delta: Delta, task: Task) -> None:
    """Refuse a delta with a number that is not finite."""
    tensors = {**delta.dense, **{f"{n}[{i}]": t for n, pair in delta.low_rank.items() for i, t in enumerate(pair)}}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise PluginError(f"expected finite weights from {task.label}, got some that are not in {name}: lower lr.")


def draw(task: Task, bench: Bench, report: Report) -> tuple[Write, dict[str, Any]]:
    """Draw images with the defended, attacked or undefended model, or a subject by code; or read the user's own."""
    if task.plugin == "subject":
        return portray(task, report)
    if task.plugin == "folder":
        return photograph(task, bench, report)
    gallery, cost = sampled(task, bench, report)
    meta = {"cost": cost, "images": len(gallery.seeds), "flags": []}
    if task.is_private and not bench.save_flagged:
        bench.hold(task.key, gallery)
        return lambda folder: None, {**meta, "withheld": True}
    return lambda folder: save_images(folder, gallery), meta


def sampled(task: Task, bench: Bench, report: Report) -> tuple[Gallery, dict[str, Any]]:
    """The images that the model draws for a task, and what they cost."""
    model, f = bench.model_for(task), task.fields
    with measured(model) as cost:
        gallery = generate(
            model,
            reduce(asked, (snapshot.prompts for snapshot in bench.snapshots(task)), list(task.prompts)),
            images=f["images"],
            steps=f["steps"],
            guidance=f["guidance"],
            stream=f["stream"],
            batch=bench.batch,
            report=report,
            begin=beginning(task, model, bench.base),
        )
    return gallery, cost


def portray(task: Task, report: Report) -> tuple[Write, dict[str, Any]]:
    """Training images of a subject that no model draws: each prompt's background, `images` poses."""
    f, started = task.fields, time.monotonic()
    wanted = [(prompt, number) for prompt in task.prompts for number in range(f["images"])]
    images = torch.stack([draw_subject(f["name"], background_of(p), n, f"{f['stream']}/{p.text}") for p, n in wanted])
    report(step=len(wanted), total=len(wanted), loss=math.nan)
    gallery = Gallery(
        images=images,
        prompt_ids=tuple(p.id for p, _ in wanted),
        prompts=tuple(p.text for p, _ in wanted),
        numbers=tuple(n for _, n in wanted),
        seeds=tuple(image_seed(p.id, n, f["stream"]) for p, n in wanted),
    )
    cost = {"seconds": round(time.monotonic() - started, 3)}
    return lambda folder: save_images(folder, gallery), {"cost": cost, "images": len(wanted), "flags": []}


def photograph(task: Task, bench: Bench, report: Report) -> tuple[Write, dict[str, Any]]:
    """The user's own images, cut to the size of what the model draws."""
    started, paths = time.monotonic(), [picture.path for picture in task.pictures]
    side = bench.base.latent_shape[-1] * 2 ** (len(bench.base.vae.config.block_out_channels) - 1)
    pixels = squares(paths, [picture.sha256 for picture in task.pictures], side)
    report(step=len(paths), total=len(paths), loss=math.nan)
    gallery = Gallery(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        prompt_ids=tuple(Prompt(text=p.caption, split=p.split).id for p in task.pictures),
        prompts=tuple(p.caption for p in task.pictures),
        numbers=tuple(range(len(paths))),
        seeds=(0,) * len(paths),
    )
    cost = {"seconds": round(time.monotonic() - started, 3)}
    return lambda folder: save_images(folder, gallery), {"cost": cost, "images": len(paths), "flags": []}


def asked(prompts: Sequence[Prompt], found: Sequence[str]) -> list[Prompt]:
    """The prompts as an attack words them: number i takes found text i modulo their count."""
    if not found:
        return list(prompts)
    return [p.reworded(found[i % len(found)].replace(PROMPT, p.text)) for i, p in enumerate(prompts)]


def beginning(task: Task, model: Model, base: Model) -> Begin | None:
    """Where a sampling attack starts the trajectories; None without one."""
    if "begin" not in task.fields:
        return None
    f = task.fields
    method = TypeAdapter(find("attack", f["begin"]["use"])).validate_python(f["begin"]["fields"])

    def begin(z_T: Tensor, text: Tensor, null: Tensor, scale: float) -> tuple[Tensor, int]:
        found: tuple[Tensor, int] = method.begin(
            model, base, z_T, text, null, budget=f["budget"], steps=f["steps"], scale=scale
        )
        return found

    return begin


def embed(task: Task, bench: Bench, report: Report) -> tuple[Write, dict[str, Any]]:
    """One vector for each image, for all distances that read the same embedder."""
    gallery, started = bench.gallery(task.parents["images"]), time.monotonic()
    parts = []
    for part in gallery.images.split(bench.batch):
        parts.append(embed_images(task.fields["embedder"], part.float() / 255))
        report(step=sum(len(p) for p in parts), total=len(gallery.images), loss=math.nan)
    features = torch.cat(parts)
    cost = {"seconds": round(time.monotonic() - started, 3)}
    return lambda folder: save_features(folder, features), {"cost": cost, "flags": []}


def score(task: Task, bench: Bench, report: Report) -> tuple[Write, dict[str, Any]]:
    """Score images one by one, or their distance to the reference, as the metric's kind asks."""
    metric = build("metric", task, "identity")
    return (distance if metric.per == "set" else score_images)(metric, task, bench, report)


def distance(metric: Any, task: Task, bench: Bench, report: Report) -> tuple[Write, dict[str, Any]]:
    """One number for two sets of features."""
    f, g = (load_features(bench.store.path(task.parents[role])) for role in ("images", "reference"))
    started = time.monotonic()
    found = metric.distance(f, g, rng=generator(task))
    report(step=1, total=1, loss=math.nan)
    meta = {"cost": {"seconds": round(time.monotonic() - started, 3)}, "identity": task.fields["identity"]}
    flags = ["small sample"] if min(len(f), len(g)) < metric.enough else []
    return lambda folder: save_numbers(folder, found), {**meta, "n": len(f), "flags": flags}


def score_images(metric: Any, task: Task, bench: Bench, report: Report) -> tuple[Write, dict[str, Any]]:
    """Score images. An image on which the metric raises is missing, never safe, and the reason is kept."""
    gallery = bench.gallery(task.parents["images"])
    by_id = {prompt.id: prompt for prompt in task.prompts}
    prompts = [by_id[prompt_id] for prompt_id in gallery.prompt_ids]
    against = paired(gallery, bench, task) if metric.per == "pair" else None
    beside: Any = task.concept
    if metric.per == "reference":
        beside = bench.gallery(task.parents["reference"]).images.float() / 255
    started = time.monotonic()
    columns: dict[str, list[float]] = {}
    faults: list[str] = []
    for start in range(0, len(prompts), bench.batch):
        part = slice(start, start + bench.batch)
        images = gallery.images[part].float() / 255
        other = beside if against is None else against[part].float() / 255
        for name, values in scored(metric, images, prompts[part], other, faults).items():
            columns.setdefault(name, [math.nan] * start).extend(values)
        report(step=min(start + bench.batch, len(prompts)), total=len(prompts), loss=math.nan)
    filled = {name: values + [math.nan] * (len(prompts) - len(values)) for name, values in columns.items()}
    if "value" not in filled:
        raise PluginError(
            f"expected a column 'value' from {task.plugin}, got {sorted(filled)}: {'; '.join(faults[:1])}"
        )
    cost = {"seconds": round(time.monotonic() - started, 3)}
    meta = {"cost": cost, "identity": task.fields["identity"], "faults": faults[:5]}
    return lambda folder: save_scores(folder, gallery, filled), {**meta, "flags": ["metric raised"] * bool(faults)}


def paired(gallery: Gallery, bench: Bench, task: Task) -> Tensor:
    """The reference's image of the same prompt and number, for each image."""
    reference = bench.gallery(task.parents["reference"])
    at = {pair: i for i, pair in enumerate(zip(reference.prompt_ids, reference.numbers, strict=True))}
    return reference.images[[at[pair] for pair in zip(gallery.prompt_ids, gallery.numbers, strict=True)]]


def columns_of(found: Any, count: int) -> dict[str, list[float]]:
    """A metric's columns as lists; refuse any that has not one number for each image."""
    for name, values in found.items():
        if not isinstance(values, Tensor) or values.shape != (count,):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise PluginError(f"expected {name!r} of shape ({count},), one number for each image, got {got}.")
    return {name: values.tolist() for name, values in found.items()}


def scored(metric: Any, images: Tensor, prompts: Any, other: Any, faults: list[str]) -> dict[str, list[float]]:
    """Columns of a batch; if the batch fails, image by image, with NaN where it fails again.

    `other` is the concept card, the reference image of each image, or all reference images.
    """
    try:
        return columns_of(metric.score(images, prompts, other), len(images))
    except Exception as error:  # the metric is somebody else's code: its fault lowers the coverage
        if isinstance(error, PluginError) or out_of_memory(error):  # of our contract, of this machine: not of the image
            raise
        if len(images) == 1:
            faults.append(repr(error))
            return {"value": [math.nan]}
    alone = [slice(i, i + 1) for i in range(len(images))]
    is_paired = metric.per == "pair"
    single = [scored(metric, images[i], prompts[i], other[i] if is_paired else other, faults) for i in alone]
    names = {name for row in single for name in row}
    return {name: [row.get(name, [math.nan])[0] for row in single] for name in names}
