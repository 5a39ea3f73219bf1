"""A finished run without any computing: pictures and verdicts made up for every task of a plan, in the real format."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from benchmark.config import config
from benchmark.data import load_concept
from benchmark.plan import Plan, build
from benchmark.plan.task import Task
from benchmark.results import records
from benchmark.store import Store
from benchmark.store.artifacts import Gallery, save_images, save_numbers, save_scores
from leaderboards.board import Board
from leaderboards.board import build as build_board

Draw = Callable[[bool, float], Tensor]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]


def disk(is_present: bool, shade: float) -> Tensor:
    """A picture (3, 16, 16): with the concept it has a bright square."""
    image = torch.full((3, 16, 16), int(255 * shade), dtype=torch.uint8)
    if is_present:
        image[0, 4:12, 4:12] = 255
    return image


def card(folder: Path, name: str, **changes: Any) -> str:
    """A concept card with eight prompts in each split; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "concept": f"a {name} {{n}}",
        "retained": f"no {name}, a dog {{n}}",
        "safe": f"dog {{n}} without {name}",
        "attacker": f"{name}, {{n}}",
        "defender": f"{{n}} {name}",
        "benign": f"{name}less dog, {{n}}",
        "prior": f"{{n}} dog near {name}",
    }
    label = {"concept": name, "retained": "dog"}
    prompts = {s: [{"text": t, "label": label.get(s), "each": {"n": NUMBERS}}] for s, t in texts.items()}
    labels = {name: f"a {name}", "dog": "a dog", "something else": "something else"}
    values = {"name": name, "phrase": name, "kind": "object", "labels": labels, "prompts": prompts} | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def small_plan(folder: Path, *, concepts: tuple[str, ...] = ("cat",), kind: str = "object", **changes: Any) -> Plan:
    """A plan that a page can show; nothing in it is ever run."""
    raw = {
        "name": "made-up",
        "model": "mini",
        "concepts": [card(folder, name, kind=kind) for name in concepts],
        "budgets": [10, 50],
        "draws": 100,
        "defenses": ["none", "esd", {"use": "esd", "as": "weak", "lr": 1.0e-6}],
        "attacks": ["none", "lora"],
        "metrics": [{"use": "presence", "model": "mini:judge"}, {"use": "clip_score", "model": "mini:judge"}],
    } | changes
    parsed = config.parse(raw)
    return build(parsed, "base", [load_concept(name) for name in parsed.raw.concepts])


def share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def chance(plan: Plan) -> dict[str, float]:
    """How often the images of each key show the concept: always on the base; else it returns with the budget."""
    found = {}
    top = max(plan.config.raw.budgets)
    for cell in plan.cells:
        strength = 0.25 + 0.75 * share(cell.defense + cell.attack)
        before = 0.1 if cell.defense == "esd" else 0.4 * share(cell.defense)
        grown = before + (1 - before) * strength * (cell.budget / top) ** 0.6
        found[cell.images["concept"]] = 0.97 if cell.defense == "none" else grown
        for split, key in cell.images.items():
            found.setdefault(key, 0.95 - 0.1 * share(cell.defense) if split == "retained" else 0.0)
    return found


def fill(plan: Plan, root: Path, draw: Draw = disk, skip: Callable[[Task], bool] = lambda _: False) -> Store:
    """Put a result for every task that is not skipped."""
    store, often = Store(root).open(), chance(plan)
    for key, task in plan.tasks.items():
        if skip(task) or not all(store.has(parent) for parent in task.parents.values()):
            continue
        meta: dict[str, Any] = {"cost": {"seconds": 1.5, "unet_forward": task.passes, "peak_memory_mib": None}}
        meta |= {"flags": ["zero delta"] if task.kind == "attack" and "weak" in task.label else []}
        meta |= {"identity": task.fields.get("identity", ""), "n": 8}
        store.put(key, writer(plan, task, often, draw), meta)
    return store


def writer(plan: Plan, task: Task, often: dict[str, float], draw: Draw) -> Callable[[Path], None]:
    """What writes the payload of a task."""
    made = plan.tasks[task.parents["images"]] if task.kind == "score" else task
    pairs = [(prompt, i) for prompt in made.prompts for i in range(made.fields.get("images", 1))]
    lots = [share(f"{prompt.id}{i}") for prompt, i in pairs]
    seen = [lot < often.get(made.key, 1.0) for lot in lots]
    drawn = [draw(*pair) for pair in zip(seen, lots, strict=True)] if task.kind == "generate" else []
    gallery = Gallery(
        images=torch.stack(drawn) if drawn else torch.zeros(0),
        prompt_ids=tuple(prompt.id for prompt, _ in pairs),
        prompts=tuple(prompt.text for prompt, _ in pairs),
        numbers=tuple(i for _, i in pairs),
        seeds=tuple(range(len(pairs))),
    )
    if task.kind == "generate":
        return lambda folder: save_images(folder, gallery)
    if task.kind != "score":
        return lambda folder: None
    if not task.prompts:
        return lambda folder: save_numbers(folder, {"value": 1.0, "ci_low": 0.5, "ci_high": 1.5})
    clip = task.plugin == "clip_score"
    values = [30 + lot if clip else float(is_seen) for is_seen, lot in zip(seen, lots, strict=True)]
    return lambda folder: save_scores(folder, gallery, {"value": values})


def board_of(plan: Plan, store: Store) -> Board:
    """The tables of what is in the store."""
    frames = (records.scores(plan, store), records.cells(plan, store, {}, {}), records.costs(plan, store))
    return build_board(*frames, draws=100)


FACTS = {
    "identity": "0123456789abcdef",
    "base": "base",
    "config": {"name": "made-up"},
    "command": ["titer", "run", "made-up"],
    "versions": {"python": "3.11.0", "torch": "2.0"},
    "machine": {"system": "Linux"},
    "planned_passes": 1000,
    "spent": {"seconds": 12.5},
}
