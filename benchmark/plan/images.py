"""Tasks that make images: drawn by a model, drawn by code, or read from the user's folder."""

import hashlib
import json
from dataclasses import replace
from typing import Any

from benchmark.config.entries import Entry
from benchmark.data.cards import spread
from benchmark.errors import PlanError
from benchmark.plan.matrix import Plan
from benchmark.plan.seeds import SEARCHED
from benchmark.plan.task import Task
from benchmark.solvers import predictions
from benchmark.types import Concept, Prompt, Split

SAMPLER_VERSION, SUBJECT_VERSION, FOLDER_VERSION = 2, 1, 1


def data_task(plan: Plan, concept: Concept, who: Entry, split: Split) -> str:
    """Training images: the user's own, or drawn by the base from prompts and seeds that no evaluation uses.

    Raises:
        PlanError: the concept card has no prompts for them.
    """
    if not any(prompt.split == split for prompt in concept.prompts):
        raise PlanError(
            f"expected prompts for the split {split!r} in the card {concept.name!r}, which {who.label} needs."
        )
    return plan.add(plan.once((concept,), (split, "data"), lambda: training_images(plan, concept, split)))


def searched_images(plan: Plan, concept: Concept, who: Entry) -> str:
    """What a search of the evaluation prompts looks at: an image of each by the base, on a seed that no evaluation
    uses; of a subject that the base never knew, the attacker's own images.
    """
    if concept.scenario == "personalize":
        return data_task(plan, concept, who, "attacker")

    def one_each() -> Task:
        label = f"{concept.name}: an image of each evaluation prompt, for searches"
        task = draw(plan, asked(plan, concept, "concept"), "concept", {}, label, stream=SEARCHED)
        fields = {**task.fields, "images": 1}
        return replace(task, fields=fields, passes=task.passes // int(task.fields["images"]))

    return plan.add(plan.once((concept,), (SEARCHED, "data"), one_each))


def training_images(plan: Plan, concept: Concept, split: Split) -> Task:
    """The task of `data_task`."""
    label = f"{concept.name}: images for the {split} split"
    if concept.pictured(split):
        return photographed(plan, concept, split, label)
    if concept.drawn and split in ("attacker", "defender"):
        return portrait(plan, concept, split, label)
    return draw(plan, concept.of(split), split, {}, label, stream=f"train-{split}")


def portrait(plan: Plan, concept: Concept, split: Split, label: str) -> Task:
    """A task that draws a subject by code: the concept is new, so the base cannot."""
    prompts = spread(concept.of(split), getattr(plan.config.raw.prompts, split))
    fields = {"name": concept.drawn, "images": getattr(plan.config.raw.images, split), "stream": f"train-{split}"}
    return Task(
        kind="generate",
        plugin="subject",
        version=SUBJECT_VERSION,
        fields=fields,
        base=plan.base,
        prompts=tuple(replace(p, label=None) for p in prompts),
        label=label,
    )


def photographed(plan: Plan, concept: Concept, split: Split, label: str, *, whole: bool = False) -> Task:
    """A task that reads the user's own images, all of a split (`whole`) or as many as the config says.

    Their contents and captions are in its key, their places are not.
    """
    chosen = spread(concept.pictured(split), 0 if whole else getattr(plan.config.raw.prompts, split))
    digest = hashlib.sha256(json.dumps([[p.sha256, p.caption] for p in chosen]).encode()).hexdigest()
    return Task(
        kind="generate",
        plugin="folder",
        version=FOLDER_VERSION,
        fields={"images": len(chosen), "sha256": digest},
        base=plan.base,
        label=label,
        pictures=chosen,
    )


def attacked(
    plan: Plan,
    concept: Concept,
    attack: Entry,
    prompts: tuple[Prompt, ...],
    split: Split,
    parents: dict[str, str],
    label: str,
    budget: int,
) -> Task:
    """A task that draws images after an attack, with the attacker's wording and start."""
    if split == "concept":
        prompts = plan.once((concept, attack, prompts), ("reworded",), lambda: reworded(prompts, attack, concept))
    task = draw(plan, prompts, split, parents, label, budget=budget)
    if attack.method.changes != "sampling":
        return task
    begin = {"use": attack.use, "version": attack.method.version, "fields": attack.fields}
    steps = plan.config.raw.sampling.steps
    passes = task.passes // steps * attack.method.trajectory(budget, steps)
    asked = task.fields["images"]
    images = attack.method.images(asked, budget)
    fields = {**task.fields, "images": images, "begin": begin}
    return replace(task, fields=fields, passes=passes // asked * images)


def asked(plan: Plan, concept: Concept, split: Split) -> tuple[Prompt, ...]:
    """The prompts of a split that the config asks for."""
    counts = plan.config.raw.prompts
    return plan.once(
        (concept,), (split, "asked"), lambda: spread(concept.of(split), getattr(counts, counted_as(split)))
    )


def reworded(prompts: tuple[Prompt, ...], attack: Entry, concept: Concept) -> tuple[Prompt, ...]:
    """The prompts as the attacker words them."""
    for who in filter(None, (attack.after, attack)):
        prompts = tuple(p.reworded(who.method.reword(p.text, concept)) for p in prompts)
    return prompts


def draw(
    plan: Plan,
    prompts: tuple[Prompt, ...],
    split: Split,
    parents: dict[str, str],
    label: str,
    *,
    budget: int = 0,
    stream: str = "",
) -> Task:
    """A task that draws images."""
    same = plan.once((prompts,), ("draw", split, budget, stream), lambda: drawing(plan, prompts, split, budget, stream))
    if (guard := plan.guards.get(parents.get("defense", ""))) is not None:
        same = {**same, "passes": round(same["passes"] * guard)}
    return Task(**same, parents=parents, label=label)


def drawing(plan: Plan, prompts: tuple[Prompt, ...], split: Split, budget: int, stream: str) -> dict[str, Any]:
    """What the tasks that draw images of these prompts have in common."""
    raw = plan.config.raw
    if stream:
        prompts = spread(prompts, getattr(raw.prompts, split))
    own = {"images": getattr(raw.images, counted_as(split)), "stream": stream} | ({"budget": budget} if budget else {})
    settings = raw.sampling.model_dump()
    if settings["scheduler"] == "ddim":
        del settings["scheduler"]  # what it was before there were others
    guided = 2 if raw.sampling.guidance != 1.0 else 1
    return {
        "kind": "generate",
        "plugin": "sampler",
        "version": SAMPLER_VERSION,
        "fields": {**settings, **own},
        "base": plan.base,
        "prompts": plan.once((prompts,), ("bare",), lambda: tuple(replace(p, label=None) for p in prompts)),
        "passes": len(prompts) * own["images"] * predictions(raw.sampling.scheduler, raw.sampling.steps) * guided,
    }


def counted_as(split: Split) -> Split:
    """The split whose counts of prompts and images hold: prompts of the other domain are counted as retained ones."""
    return "retained" if split == "cross" else split
