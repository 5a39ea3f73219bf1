"""Config -> tasks and cells. Pure: it reads no weights and no store, and the same config gives the same plan.

A cell is concept x defense x attack x budget x seed. Cells share tasks: a defense is trained once for a concept, an
attack once for all its budgets, images are drawn once for all metrics. The undefended control is always planned,
because every cell needs its ceiling.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from benchmark.config import Adaptation, Config, Entry, entry
from benchmark.data import spread
from benchmark.errors import PlanError
from benchmark.task import Task
from benchmark.types import Concept, Prompt, Split

SAMPLER_VERSION, EMBEDDER_VERSION, SUBJECT_VERSION = 2, 1, 1
DEFENDER: dict[str, Split] = {"concept": "defender", "safe": "prior"}
ATTACKER: dict[str, Split] = {"concept": "attacker", "benign": "benign"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell: who, against whom, after how much, and the keys of its tasks."""

    concept: Concept
    defense: str
    attack: str
    budget: int
    seed: int
    kind: Literal["weights", "prompts", "sampling", "none"]
    defend: str | None
    images: dict[str, str]
    scores: dict[tuple[str, str], str]
    expected: int

    @property
    def name(self) -> str:
        """How people name it, and what must be unique."""
        return f"{self.concept.name}/{self.defense}/{self.attack}@{self.budget}#{self.seed}"


@dataclass(frozen=True)
class Skip:
    """A cell that makes no sense, with the reason."""

    concept: str
    scenario: str
    defense: str
    attack: str
    reason: str


@dataclass
class Plan:
    """Tasks by key, in an order in which parents come first, and the cells that read them."""

    config: Config
    base: str
    subject: Concept | None = None
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
        if task.kind in ("defend", "attack", "generate"):
            task = replace(task, precision=self.config.raw.precision)
        self.requested += task.passes
        self.tasks.setdefault(task.key, task)
        return task.key

    @property
    def passes(self) -> int:
        """Estimated samples through the U-Net, each task counted once."""
        return sum(task.passes for task in self.tasks.values())


def build(config: Config, base: str, concepts: Iterable[Concept], subject: Concept | None = None) -> Plan:
    """Cross everything; `base` is the hash of the base's weights, `subject` what benign adaptation teaches.

    Raises:
        PlanError: two cells have one name.
    """
    plan = Plan(config, base, subject)
    defenses = config.defenses
    if not any(d.use == "none" for d in defenses):
        defenses = (entry("defense", "none"), *defenses)
    for concept in concepts:
        for defense in defenses:
            defend = add_defense(plan, concept, defense)
            for attack in config.attacks:
                if attack.against and defense.method.fidelity != "control" and defense.label not in attack.against:
                    continue
                plan.cells += add_attack(plan, concept, defense, defend, attack)
    names = [cell.name for cell in plan.cells]
    if len(set(names)) < len(names):
        raise PlanError(f"expected different cells, got {max(names, key=names.count)} twice: rename with `as:`.")
    return plan


def add_defense(plan: Plan, concept: Concept, defense: Entry) -> str | None:
    """The task that trains a defense, after the one it builds on; None for the control, which is the base itself."""
    if defense.method.fidelity == "control":
        return None
    roles = {need: data_task(plan, concept, defense, DEFENDER[need]) for need in sorted(defense.method.needs)}
    below = add_defense(plan, concept, defense.after) if defense.after else None
    return plan.add(
        Task(
            kind="defend",
            plugin=defense.use,
            version=defense.method.version,
            fields=defense.fields,
            base=plan.base,
            concept=concept,
            parents={**roles, **({"defense": below} if below else {})},
            label=f"{defense.label} on {concept.name}",
            passes=defense.method.passes(),
        )
    )


def data_task(plan: Plan, concept: Concept, who: Entry, split: Split) -> str:
    """Training images that the undefended base draws, from prompts and seeds that no evaluation uses.

    Raises:
        PlanError: the concept card has no prompts for them.
    """
    if not concept.of(split):
        raise PlanError(
            f"expected prompts for the split {split!r} in the card {concept.name!r}, which {who.label} needs."
        )
    label = f"{concept.name}: images for the {split} split"
    if concept.drawn and split in ("attacker", "defender"):
        return plan.add(portrait(plan, concept, split, label))
    return plan.add(draw(plan, concept.of(split), split, {}, label, stream=f"train-{split}"))


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


def add_attack(plan: Plan, concept: Concept, defense: Entry, defend: str | None, attack: Entry) -> list[Cell]:
    """All cells of one attack on one defended model."""
    cells = []
    method = attack.method
    budgets = method.budgets(plan.config.raw.budgets) if method.changes != "none" else ()
    reason = method.objection(concept) or ("the config has no budgets" * (method.changes != "none" and not budgets))
    if reason:
        plan.skipped.append(Skip(concept.name, concept.scenario, defense.label, attack.label, reason))
        return []
    before = {"defense": defend} if defend else {}
    for seed in plan.config.raw.seeds:
        ran = {}
        if budgets and hasattr(method, "finetune" if method.changes == "weights" else "search"):
            ran = {"attack": attack_task(plan, concept, (defense, attack), before, budgets, seed)}
        for budget in (0, *budgets):
            parents = {**before, **(ran if budget else {})}
            cells.append(add_cell(plan, concept, (defense, attack), (budget, seed), parents))
    return cells


def attack_task(
    plan: Plan,
    concept: Concept,
    methods: tuple[Entry, Entry],
    before: dict[str, str],
    budgets: tuple[int, ...],
    seed: int,
) -> str:
    """The task that attacks; one run gives the snapshots of all budgets.

    An attack that reads the text encoder alone is run once, on the base's, and replayed on every defense.
    """
    defense, attack = methods
    roles = {need: data_task(plan, concept, attack, ATTACKER[need]) for need in sorted(attack.method.needs)}
    replayed = attack.method.access == "text encoder"
    label = f"{attack.label} on {'every defense' if replayed else defense.label}, {concept.name}, seed {seed}"
    return plan.add(
        Task(
            kind="attack",
            plugin=attack.use,
            version=attack.method.version,
            fields={**attack.fields, "budgets": list(budgets)},
            base=plan.base,
            concept=concept,
            seed=seed,
            parents={**({} if replayed else before), **roles},
            label=label,
            passes=attack.method.passes(max(budgets)),
        )
    )


def add_cell(
    plan: Plan, concept: Concept, methods: tuple[Entry, Entry], point: tuple[int, int], parents: dict[str, str]
) -> Cell:
    """The images and scores of one cell. Retained concepts are scored before the attack only.

    An attack that changes no weight leaves the safe images as they were.
    """
    (defense, attack), (budget, seed) = methods, point
    splits: tuple[Split, ...] = ("concept", "safe") if budget else ("concept", "retained", "safe")
    images, scores, expected = dict[str, str](), dict[tuple[str, str], str](), 0
    for split in splits:
        prompts = spread(concept.of(split), getattr(plan.config.raw.prompts, split))
        if not prompts:
            continue
        label = f"{split} images of {attack.label}@{budget} on {defense.label}, {concept.name}"
        if budget and (split == "concept" or attack.method.changes == "weights"):
            task = attacked(plan, concept, attack, prompts, split, parents, label, budget)
        else:
            task = draw(plan, prompts, split, {k: v for k, v in parents.items() if k == "defense"}, label)
        images[split] = plan.add(task)
        expected = len(prompts) * task.fields["images"] if split == "concept" else expected
        for metric in plan.config.metrics:
            if split in metric.method.splits and (metric.method.after_attack or not budget):
                scores[metric.label, split] = score(plan, concept, metric, images[split], prompts, split, label)
    if plan.config.adaptation and plan.subject and attack.method.changes == "none":
        taught = adapt(plan, plan.subject, defense, parents, plan.config.adaptation)
        images["adapted"], scores["presence", "adapted"] = taught
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


def adapt(
    plan: Plan, subject: Concept, defense: Entry, before: dict[str, str], adaptation: Adaptation
) -> tuple[str, str]:
    """The images and scores of an innocent subject that a defended model is taught: can it still learn?"""
    who, seed = adaptation.attack, plan.config.raw.seeds[0]
    ran = attack_task(plan, subject, (defense, who), before, (adaptation.budget,), seed)
    prompts = spread(subject.of("concept"), plan.config.raw.prompts.concept)
    label = f"images of {subject.name} taught to {defense.label} by {who.label}@{adaptation.budget}"
    parents = {**before, "attack": ran}
    images = plan.add(attacked(plan, subject, who, prompts, "concept", parents, label, adaptation.budget))
    return images, score(plan, subject, adaptation.judge, images, prompts, "concept", label)


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
        prompts = tuple(p.reworded(attack.method.reword(p.text, concept)) for p in prompts)
    task = draw(plan, prompts, split, parents, label, budget=budget)
    if attack.method.changes != "sampling":
        return task
    begin = {"use": attack.use, "version": attack.method.version, "fields": attack.fields}
    return replace(task, fields={**task.fields, "begin": begin})


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


def score(
    plan: Plan, concept: Concept, metric: Entry, images: str, prompts: tuple[Prompt, ...], split: Split, label: str
) -> str:
    """The task that scores images; paired metrics and distances read the undefended base's images too."""
    method, parents = metric.method, {"images": images}
    if method.per != "image":
        parents["reference"] = plan.add(draw(plan, prompts, split, {}, f"{split} images of the base, {concept.name}"))
    if method.per == "set":
        parents = {role: plan.add(embedded(plan, metric, key)) for role, key in parents.items()}
    return plan.add(
        Task(
            kind="score",
            plugin=metric.use,
            version=method.version,
            fields={**metric.fields, "identity": method.identity()},
            base=plan.base,
            concept=concept if method.reads_concept else None,
            prompts=() if method.per == "set" else prompts,
            parents=parents,
            label=f"{metric.label} of {label}",
        )
    )


def embedded(plan: Plan, metric: Entry, images: str) -> Task:
    """A task that embeds images; metrics with the same embedder share it."""
    return Task(
        kind="embed",
        plugin="embedder",
        version=EMBEDDER_VERSION,
        fields={"embedder": metric.method.embedder, "identity": metric.method.embedded_by()},
        base=plan.base,
        parents={"images": images},
        label=f"features of {plan.tasks[images].label}",
    )
