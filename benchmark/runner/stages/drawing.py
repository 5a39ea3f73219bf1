"""generate: images of a model, of a subject drawn by code, or the user's own."""

import math
import time
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from benchmark.config.registry import find
from benchmark.data.pictures import squares
from benchmark.data.safety import is_refused
from benchmark.diffusion import Model
from benchmark.errors import PluginError
from benchmark.mini.subjects import background_of
from benchmark.mini.subjects import draw as draw_subject
from benchmark.model.generate import Ask, Begin, generate
from benchmark.plan.seeds import image_seed
from benchmark.plan.task import Task
from benchmark.runner.stages.account import measured
from benchmark.runner.stages.bench import Bench, Done
from benchmark.store.artifacts import Gallery, save_images
from benchmark.types import PROMPT, Prompt, Report


def draw(task: Task, bench: Bench, report: Report) -> Done:
    """Draw images with the defended, attacked or undefended model, or a subject by code; or read the user's own."""
    if task.plugin == "subject":
        return portray(task, report)
    gallery, cost = seen(task, bench, report)
    wanted = len(task.pictures) or len(task.prompts) * task.fields["images"]
    flags = ["age filter"] if len(gallery.seeds) < wanted else []
    meta = {"cost": cost, "images": len(gallery.seeds), "flags": flags}
    if task.is_private and not bench.save_flagged:
        bench.hold(task.key, gallery)
        return lambda folder: None, {**meta, "withheld": True}
    return lambda folder: save_images(folder, gallery), meta


def seen(task: Task, bench: Bench, report: Report) -> tuple[Gallery, dict[str, Any]]:
    """The images that a model draws for a task, or the user's own, and what they cost."""
    return (photographed if task.plugin == "folder" else sampled)(task, bench, report)


def sampled(task: Task, bench: Bench, report: Report) -> tuple[Gallery, dict[str, Any]]:
    """The images that the model draws for a task, and what they cost."""
    model, f = bench.model_for(task), task.fields
    begin, ask = beginning(task, model, bench.gated(bench.base, task))
    with measured(model) as cost:
        gallery = generate(
            model,
            permitted(task, reduce(asked, (s.prompts for s in bench.snapshots(task)), list(task.prompts))),
            images=f["images"],
            steps=f["steps"],
            guidance=f["guidance"],
            stream=f["stream"],
            batch=bench.batch,
            report=report,
            begin=begin,
            ask=ask,
        )
    return gallery, cost


def portray(task: Task, report: Report) -> Done:
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


def photographed(task: Task, bench: Bench, report: Report) -> tuple[Gallery, dict[str, Any]]:
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
    return gallery, {"seconds": round(time.monotonic() - started, 3)}


def permitted(task: Task, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts, as they are drawn, that the age filter permits; the images of the others are missing.

    Raises:
        PluginError: there is none.
    """
    kept = [prompt for prompt in prompts if not is_refused(prompt.text, is_sexual=task.is_sexual)]
    if prompts and not kept:
        raise PluginError("expected prompts that the age filter permits once they are put together, got none.")
    return kept


def asked(prompts: Sequence[Prompt], found: Sequence[str]) -> list[Prompt]:
    """The prompts as an attack words them: number i takes found text i modulo their count, or is left out if empty."""
    if not found:
        return list(prompts)
    taken = [(p, found[i % len(found)]) for i, p in enumerate(prompts)]
    return [p.reworded(text.replace(PROMPT, p.text)) for p, text in taken if text]


def beginning(task: Task, model: Model, base: Model) -> tuple[Begin | None, Ask | None]:
    """Where a sampling attack starts the trajectories, and what it lets the model read; nothing without one."""
    if "begin" not in task.fields:
        return None, None
    f = task.fields
    method = TypeAdapter(find("attack", f["begin"]["use"])).validate_python(f["begin"]["fields"])

    def begin(z_T: Tensor, text: Tensor, null: Tensor, scale: float) -> tuple[Tensor, int]:
        found: tuple[Tensor, int] = method.begin(
            model, base, z_T, text, null, budget=f["budget"], steps=f["steps"], scale=scale
        )
        return found

    return begin, partial(method.ask, model, base)
