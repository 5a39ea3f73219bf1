"""Config -> tasks and cells. Pure: it reads no weights and no store, and the same config gives the same plan.

A cell is concept x defense x attack x budget x seed. Cells share tasks: a defense is trained once for a concept, an
attack once for all its budgets, images are drawn once for all metrics. The undefended control is always planned,
because every cell needs its ceiling.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from benchmark.config import Config, Entry, entry
from benchmark.data import spread
from benchmark.errors import PlanError
from benchmark.task import Task
from benchmark.types import Concept, Prompt, Split

SAMPLER_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell: who, against whom, after how much, and the keys of its tasks."""

    concept: Concept
    defense: str
    attack: str
    budget: int
    seed: int
    kind: Literal["weights", "prompts", "none"]
    defend: str | None
    images: dict[Split, str]
    scores: dict[tuple[str, Split], str]
    expected: int

    @property
    def name(self) -> str:
        """How people name it, and what must be unique."""
        return f"{self.concept.name}/{self.defense}/{self.attack}@{self.budget}#{self.seed}"


@dataclass(frozen=True)
class Skip:
    """A cell that makes no sense, with the reason."""

    concept: str
    defense: str
    attack: str
    reason: str


@dataclass
class Plan:
    """Tasks by key, in an order in which parents come first, and the cells that read them."""

    config: Config
    base: str
    tasks: dict[str, Task] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    requested: int = 0

    def add(self, task: Task) -> str:
        """Put a task in, or share the one that is there; return its key.

        Raises:
            PlanError: a parent is not in the plan.
        """
        for role, parent in task.parents.items():
            if parent not in self.tasks:
                raise PlanError(f"expected the parent {role} of {task.label} in the plan, got {parent}: add it first.")
        self.requested += task.passes
        self.tasks.setdefault(task.key, task)
        return task.key

    @property
    def passes(self) -> int:
        """Estimated samples through the U-Net, each task counted once."""
        return sum(task.passes for task in self.tasks.values())


def build(config: Config, base: str, concepts: Iterable[Concept]) -> Plan:
    """Cross everything; `base` is the hash of the base's weights.

    Raises:
        PlanError: two cells have one name.
    """
    plan = Plan(config, base)
    defenses = config.defenses
    if not any(d.use == "none" for d in defenses):
        defenses = (entry("defense", "none"), *defenses)
    for concept in concepts:
        for defense in defenses:
            defend = add_defense(plan, concept, defense)
            for attack in config.attacks:
                plan.cells += add_attack(plan, concept, defense, defend, attack)
    names = [cell.name for cell in plan.cells]
    if len(set(names)) < len(names):
        raise PlanError(f"expected different cells, got {max(names, key=names.count)} twice: rename with `as:`.")
    return plan


def add_defense(plan: Plan, concept: Concept, defense: Entry) -> str | None:
    """The task that trains a defense; None for the control, which is the base itself."""
    if defense.method.fidelity == "control":
        return None
    roles = {
        need: data_task(plan, concept, "defender" if need == "concept" else "safe")
        for need in sorted(defense.method.needs)
    }
    return plan.add(
        Task(
            kind="defend",
            plugin=defense.use,
            version=defense.method.version,
            fields=defense.fields,
            base=plan.base,
            concept=concept,
            parents=roles,
            label=f"{defense.label} on {concept.name}",
            passes=defense.method.passes(),
        )
    )


def data_task(plan: Plan, concept: Concept, split: Split) -> str:
    """Training images that the undefended base draws, from prompts and seeds that no evaluation uses."""
    label = f"{concept.name}: images for the {split}"
    return plan.add(draw(plan, concept.of(split), split, {}, label, stream=f"train-{split}"))


def add_attack(plan: Plan, concept: Concept, defense: Entry, defend: str | None, attack: Entry) -> list[Cell]:
    """All cells of one attack on one defended model."""
    cells = []
    kind = attack.method.changes
    budgets = plan.config.raw.budgets if kind != "none" else ()
    if kind != "none" and not budgets:
        plan.skipped.append(Skip(concept.name, defense.label, attack.label, "the config has no budgets"))
        return []
    before = {"defense": defend} if defend else {}
    for seed in plan.config.raw.seeds:
        label = f"{attack.label} on {defense.label}, {concept.name}, seed {seed}"
        ran = attack_task(plan, concept, defense, before, attack, seed, label) if budgets else None
        for budget in (0, *budgets):
            parents = {"attack": ran} if ran and budget else {}
            cells.append(add_cell(plan, concept, (defense, attack), (budget, seed), {**before, **parents}))
    return cells


def attack_task(
    plan: Plan, concept: Concept, defense: Entry, before: dict[str, str], attack: Entry, seed: int, label: str
) -> str:
    """The task that attacks; one run gives the snapshots of all budgets."""
    budgets = list(plan.config.raw.budgets)
    roles = {need: data_task(plan, concept, "attacker") for need in sorted(attack.method.needs)}
    return plan.add(
        Task(
            kind="attack",
            plugin=attack.use,
            version=attack.method.version,
            fields={**attack.fields, "budgets": budgets},
            base=plan.base,
            concept=concept,
            seed=seed,
            parents={**before, **roles},
            label=label,
            passes=attack.method.passes(max(budgets)),
        )
    )


def add_cell(
    plan: Plan, concept: Concept, methods: tuple[Entry, Entry], point: tuple[int, int], parents: dict[str, str]
) -> Cell:
    """The images and scores of one cell. Retained concepts are scored before the attack only."""
    (defense, attack), (budget, seed) = methods, point
    splits: tuple[Split, ...] = ("concept", "safe") if budget else ("concept", "retained", "safe")
    images, scores, expected = {}, {}, 0
    for split in splits:
        prompts = spread(concept.of(split), getattr(plan.config.raw.prompts, split))
        if not prompts:
            continue
        label = f"{split} images of {attack.label}@{budget} on {defense.label}, {concept.name}"
        task = draw(plan, prompts, split, parents, label, budget=budget)
        images[split] = plan.add(task)
        expected = len(prompts) * task.fields["images"] if split == "concept" else expected
        for metric in plan.config.metrics:
            if split in metric.method.splits:
                scores[metric.label, split] = plan.add(score(plan, concept, metric, images[split], prompts, label))
    return Cell(
        concept=concept,
        defense=defense.label,
        attack=attack.label,
        budget=budget,
        seed=seed,
        kind=attack.method.changes,
        defend=parents.get("defense"),
        images=images,
        scores=scores,
        expected=expected,
    )


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
    raw = plan.config.raw
    if stream:
        prompts = spread(prompts, getattr(raw.prompts, split))
    fields: dict[str, Any] = {**raw.sampling.model_dump(), "images": getattr(raw.images, split), "stream": stream}
    if budget:
        fields["budget"] = budget
    count = len(prompts) * fields["images"]
    passes = count * raw.sampling.steps * (2 if raw.sampling.guidance != 1.0 else 1)
    return Task(
        kind="generate",
        plugin="sampler",
        version=SAMPLER_VERSION,
        fields=fields,
        base=plan.base,
        prompts=tuple(replace(p, label=None) for p in prompts),
        parents=parents,
        label=label,
        passes=passes,
    )


def score(plan: Plan, concept: Concept, metric: Entry, images: str, prompts: tuple[Prompt, ...], label: str) -> Task:
    """A task that scores images."""
    return Task(
        kind="score",
        plugin=metric.use,
        version=metric.method.version,
        fields={**metric.fields, "identity": metric.method.identity()},
        base=plan.base,
        concept=concept if metric.method.reads_concept else None,
        prompts=prompts,
        parents={"images": images},
        label=f"{metric.label} of {label}",
    )
