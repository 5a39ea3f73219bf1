"""A finished board of 5 concepts x 8 defenses x 5 attacks x 5 budgets, 200 scored images a cell: scores, no images."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from benchmark.config import config
from benchmark.data import load_concept
from benchmark.plan import Plan, build
from benchmark.plan.task import Task
from benchmark.store import Store
from benchmark.store.artifacts import Gallery, save_scores
from benchmark.store.files import describe
from benchmark.store.marker import digest
from benchmark.store.store import MARKER
from benchmark.types import Concept, Prompt, Split

PROMPTS, IMAGES = 50, 4
SPLITS: dict[Split, str | None] = {"concept": "cigarette", "retained": "dog", "safe": None, "attacker": None}


def card(number: int) -> Concept:
    """A concept with 50 prompts of its own in each split."""
    first = load_concept("cigarette")
    prompts = [
        Prompt(text=f"{split} {i} of {number}", split=split, label=label)
        for split, label in SPLITS.items()
        for i in range(PROMPTS)
    ]
    return replace(first, name=f"c{number}", prompts=tuple(prompts))


def plan(concepts: int = 5, defenses: int = 8, attacks: int = 5) -> Plan:
    """The plan of such a board; by default 1,000 cells."""
    raw = {
        "name": "large",
        "model": "mini",
        "concepts": [f"c{i}" for i in range(concepts)],
        "budgets": [10, 50, 100, 200],
        "images": {"concept": IMAGES, "retained": IMAGES, "safe": IMAGES},
        "draws": 2000,
        "defenses": ["none", *({"use": "esd", "as": f"esd{i}", "lr": 1e-6 * i} for i in range(1, defenses))],
        "attacks": [{"use": "lora", "as": f"lora{i}", "rank": i + 1} for i in range(attacks)],
        "metrics": [
            {"use": "presence", "model": "mini:judge"},
            {"use": "presence", "as": "presence_second", "model": "mini:second"},
            {"use": "clip_score", "model": "mini:judge"},
        ],
    }
    return build(config.parse(raw), "base", [card(i) for i in range(concepts)])


def fill(made: Plan, root: Path) -> Store:
    """A result for every task, as `Store.put` leaves it, without waiting for the disk; scores have real columns."""
    store = Store(root).open()
    for key, task in made.tasks.items():
        folder = store.path(key)
        folder.mkdir(parents=True)
        if task.kind == "score":
            save_scores(folder, gallery(made.tasks[task.parents["images"]].prompts), dict(columns(task)))
        cost = {"seconds": 1.0, "unet_forward": task.passes, "unet_backward": 0, "peak_memory_mib": None}
        meta = {"cost": cost, "label": task.label, "identity": task.fields.get("identity", ""), "flags": []}
        marker = {**meta, "identity_of": task.identity(), "files": describe(folder)}
        (folder / MARKER).write_text(json.dumps(marker | {"sha256": digest(marker)}, sort_keys=True))
    return store


@cache
def gallery(prompts: tuple[Prompt, ...]) -> Gallery:
    """The names of a cell's images."""
    ids = tuple(prompt.id for prompt in prompts for _ in range(IMAGES))
    return Gallery(
        images=torch.zeros(0), prompt_ids=ids, prompts=(), numbers=(*range(IMAGES),) * len(prompts), seeds=()
    )


def columns(task: Task) -> Iterator[tuple[str, list[float]]]:
    """What a judge keeps of each image: as many columns as the card has labels."""
    raw = np.random.default_rng(int(task.key[-8:], 16)).random(PROMPTS * IMAGES)
    yield "value", (raw if task.plugin == "clip_score" else (raw >= 0.5).astype(float)).tolist()
    if task.plugin == "presence":
        yield "p", raw.tolist()
        yield from ((f"p[{label}]", raw.tolist()) for label in (task.concept.labels if task.concept else ()))
