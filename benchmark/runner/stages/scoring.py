"""embed and score: what judges and distances say of images."""

import math
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from benchmark.errors import DataError, PluginError, TiterError, readable
from benchmark.plan.task import Task
from benchmark.runner.limits import out_of_memory
from benchmark.runner.stages.account import build, generator
from benchmark.runner.stages.bench import Bench, Done
from benchmark.runner.stages.images import gallery_of
from benchmark.store.artifacts import Gallery, load_features, save_features, save_numbers, save_scores
from benchmark.types import Report
from metrics.embedders import embed as embed_images


def check(tasks: Iterable[Task]) -> None:
    """Load what the metrics among `tasks` need, before any is run.

    Raises:
        DataError: weights are missing or cannot be read, or a metric does not fit the card or the prompts.
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
        except (Exception, SystemExit) as error:  # of another's metric, or of the libraries that look for weights
            known = isinstance(error, FileNotFoundError | ValueError)
            why = f"expected {task.plugin} to be ready, got {error!r}"[:500]
            raise DataError(str(error) if known else f"{why}: mend its files, or leave it out.") from error


def embed(task: Task, bench: Bench, report: Report) -> Done:
    """One vector for each image, for all distances that read the same embedder."""
    gallery, started = gallery_of(task.parents["images"], bench), time.monotonic()
    parts = []
    for part in gallery.images.split(bench.batch):
        parts.append(embed_images(task.fields["embedder"], part.float() / 255))
        report(step=sum(len(p) for p in parts), total=len(gallery.images), loss=math.nan)
    features = torch.cat(parts)
    cost = {"seconds": round(time.monotonic() - started, 3)}
    return lambda folder: save_features(folder, features), {"cost": cost, "flags": []}


def score(task: Task, bench: Bench, report: Report) -> Done:
    """Score images one by one, or their distance to the reference, as the metric's kind asks."""
    metric = build("metric", task, "identity")
    return (distance if metric.per == "set" else score_images)(metric, task, bench, report)


def distance(metric: Any, task: Task, bench: Bench, report: Report) -> Done:
    """One number for two sets of features."""
    f, g = (load_features(bench.store.path(task.parents[role])) for role in ("images", "reference"))
    started = time.monotonic()
    found = metric.distance(f, g, rng=generator(task))
    report(step=1, total=1, loss=math.nan)
    meta = {"cost": {"seconds": round(time.monotonic() - started, 3)}, "identity": task.fields["identity"]}
    flags = ["small sample"] if min(len(f), len(g)) < metric.enough else []
    return lambda folder: save_numbers(folder, found), {**meta, "n": len(f), "flags": flags}


def score_images(metric: Any, task: Task, bench: Bench, report: Report) -> Done:
    """Score images. An image on which the metric raises is missing, never safe, and the reason is kept.

    Raises:
        PluginError: it raises on every image: what is wrong is not of an image, and is to be tried again.
    """
    gallery = gallery_of(task.parents["images"], bench)
    by_id = {prompt.id: prompt for prompt in task.prompts}
    prompts = [by_id[prompt_id] for prompt_id in gallery.prompt_ids]
    against = paired(gallery, bench, task) if metric.per == "pair" else None
    beside: Any = task.concept
    if metric.per == "reference":
        beside = gallery_of(task.parents["reference"], bench).images.float() / 255
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
    if len(faults) == len(prompts):
        raise PluginError(
            f"expected numbers from {task.plugin}, got an error on each of {len(faults)} images: {faults[0]}"
        )
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
    reference = gallery_of(task.parents["reference"], bench)
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
            faults.append(readable(repr(error), 500))
            return {"value": [math.nan]}
    alone = [slice(i, i + 1) for i in range(len(images))]
    is_paired = metric.per == "pair"
    single = [scored(metric, images[i], prompts[i], other[i] if is_paired else other, faults) for i in alone]
    names = {name for row in single for name in row}
    return {name: [row.get(name, [math.nan])[0] for row in single] for name in names}
