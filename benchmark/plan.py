"""Config -> tasks and cells. Pure: it reads no weights and no store, and the same config gives the same plan.

A cell is concept x defense x attack x budget x seed. Cells share tasks: a defense is trained once for a concept, an
attack once for all its budgets, images are drawn once for all metrics. The undefended control is always planned,
because every cell needs its ceiling.
"""

import hashlib
import json
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmark.config import Adaptation, Config
from benchmark.data import spread
from benchmark.entries import Entry, entry
from benchmark.errors import ConfigError, PlanError
from benchmark.garbage import uncollected
from benchmark.task import Made, Once, Task
from benchmark.types import Concept, Prompt, Split

SAMPLER_VERSION, EMBEDDER_VERSION, SUBJECT_VERSION, FOLDER_VERSION = 2, 1, 1, 1
DEFENDER: dict[str, Split] = {"concept": "defender", "safe": "prior"}
ATTACKER: dict[str, Split] = {"concept": "attacker", "benign": "benign"}
Start = tuple[dict[str, str], dict[tuple[str, str], str], int, int]  # images, scores, expected images, passes
VERBS = {"weights": "finetune", "prompts": "search"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell: who, against whom, after how much, and the keys of its tasks."""

    concept: Concept
    defense: str
    attack: str
    budget: int
    seed: int
    kind: str
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
    development: Mapping[str, Concept] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    requested: int = 0
    starts: dict[tuple[str, str], Start] = field(default_factory=dict, repr=False)
    made: Once = field(default_factory=Once, repr=False)

    def once(self, things: tuple[object, ...], names: tuple[Hashable, ...], make: Callable[[], Made]) -> Made:
        """What `make` gives for these things and names, made once for all cells."""
        return self.made.of(things, names, make)

    def place(self, metric: str, split: str) -> tuple[str, str]:
        """What a score is called within its cell."""
        return self.made.of((), ("place", metric, split), lambda: (metric, split))

    def add(self, task: Task) -> str:
        """Put a task in, or share the one that is there; return its key.

        Raises:
            PlanError: a parent is not in the plan.
        """
        for role, parent in task.parents.items():
            if parent not in self.tasks:
                raise PlanError(f"expected the parent {role} of {task.label} in the plan, got {parent}: add it first.")
        if task.kind in ("defend", "attack", "generate") and task.precision != self.config.raw.precision:
            task = replace(task, precision=self.config.raw.precision)
        self.requested += task.passes
        key = task.key
        if key in self.tasks:
            return self.tasks[key].key  # one text for all who name it
        self.tasks[key] = task
        return key

    @property
    def passes(self) -> int:
        """Estimated samples through the U-Net, each task counted once."""
        return sum(task.passes for task in self.tasks.values())


@uncollected()
def build(
    config: Config,
    base: str,
    concepts: Iterable[Concept],
    subject: Concept | None = None,
    development: Mapping[str, Concept] | None = None,
) -> Plan:
    """Cross everything.

    Args:
        config: what to cross.
        base: hash of the base's weights.
        concepts: the config's.
        subject: what benign adaptation teaches.
        development: the concepts on which tuned attacks choose their settings, as the config names them.

    Raises:
        PlanError: two cells have one name.
    """
    plan = Plan(config, base, subject, development or {})
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
    hide(plan)
    return plan


def hide(plan: Plan) -> None:
    """Mark what an NSFW suite draws and what attacks it: neither is kept once it is scored, see `withhold`."""
    suites = [cell for cell in plan.cells if cell.concept.kind == "nsfw"]
    todo = [key for cell in suites for key in (*cell.images.values(), *cell.scores.values())]
    todo += [key for key, task in plan.tasks.items() if task.concept and task.concept.kind == "nsfw"]
    seen = set[str]()
    for key in todo:  # it grows
        if key not in seen:
            seen.add(key)
            todo += plan.tasks[key].parents.values()
    for key in seen:
        task = plan.tasks[key]
        if task.kind == "attack" or task.plugin == "sampler":
            plan.tasks[key] = replace(task, is_private=True)


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
    """Training images: the user's own, or drawn by the base from prompts and seeds that no evaluation uses.

    Raises:
        PlanError: the concept card has no prompts for them.
    """
    if not any(prompt.split == split for prompt in concept.prompts):
        raise PlanError(
            f"expected prompts for the split {split!r} in the card {concept.name!r}, which {who.label} needs."
        )
    return plan.add(plan.once((concept,), (split, "data"), lambda: training_images(plan, concept, split)))


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


def add_attack(plan: Plan, concept: Concept, defense: Entry, defend: str | None, attack: Entry) -> list[Cell]:
    """All cells of one attack on one defended model."""
    cells = []
    budgets = attack.method.budgets(plan.config.raw.budgets) if attack.changes != "none" else ()
    idle = attack.changes != "none" and not budgets
    reason = attack.method.objection(concept) or "the config has no budgets" * idle
    if reason:
        plan.skipped.append(Skip(concept.name, concept.scenario, defense.label, attack.label, reason))
        return []
    before = {"defense": defend} if defend else {}
    for seed in plan.config.raw.seeds:
        ran = {}
        if budgets and (attack.after or hasattr(attack.method, VERBS.get(attack.method.changes, ""))):
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

    An attack that reads the text encoder alone is run once, on the base's, and replayed on every defense. One that
    follows a weight attack starts from that attack's snapshot; a tuned one reads how its trials did.
    """
    defense, attack = methods
    fields = plan.once((attack,), ("ran", budgets), lambda: {**attack.fields, "budgets": list(budgets)})
    roles = {need: data_task(plan, concept, attack, ATTACKER[need]) for need in sorted(attack.method.needs)}
    if attack.after:
        start, roles["attack"] = first_attack(plan, concept, (defense, attack), before, seed)
        fields = {**fields, "start": start}
    if attack.trials:
        fields = {"trials": [trial.fields for trial in attack.trials], "budgets": list(budgets)}
        roles |= trials(plan, defense, attack, budgets)
    replayed = attack.method.access == "text encoder" and not attack.after
    label = f"{attack.label} on {'every defense' if replayed else defense.label}, {concept.name}, seed {seed}"
    return plan.add(
        Task(
            kind="attack",
            plugin=attack.use,
            version=attack.method.version,
            fields=fields,
            base=plan.base,
            concept=concept,
            seed=seed,
            parents={**({} if replayed else before), **roles},
            label=label,
            passes=max(which.method.passes(max(budgets)) for which in attack.trials or (attack,)),
        )
    )


def first_attack(
    plan: Plan, concept: Concept, methods: tuple[Entry, Entry], before: dict[str, str], seed: int
) -> tuple[int, str]:
    """For an attack that follows another: the steps of the snapshot it starts from, and the task that makes it.

    Raises:
        PlanError: the first attack has no such snapshot, or makes no sense for the concept.
    """
    defense, attack = methods
    assert attack.after is not None
    budgets = attack.after.method.budgets(plan.config.raw.budgets)
    start = attack.at or min(budgets)
    reason = attack.after.method.objection(concept) or f"its budgets are {list(budgets)}" * (start not in budgets)
    if reason:
        raise PlanError(
            f"expected {attack.label!r} to start from {attack.after.label!r} after {start} steps, got none: {reason}."
        )
    return start, attack_task(plan, concept, (defense, attack.after), before, budgets, seed)


def trials(plan: Plan, defense: Entry, attack: Entry, budgets: tuple[int, ...]) -> dict[str, str]:
    """For a tuned attack: what the judge sees after each of its trials on the development concept.

    Raises:
        PlanError: there is no judge, or the attack makes no sense for that concept.
    """
    concept, seed = plan.development[attack.develop], plan.config.raw.seeds[0]
    judges = [metric for metric in plan.config.tuned_by or plan.config.metrics if metric.use == "presence"]
    reason = attack.method.objection(concept) or "the config has no presence metric" * (not judges)
    if reason:
        raise PlanError(f"expected {attack.label!r} to choose its settings on {concept.name!r}, got none: {reason}.")
    defend = add_defense(plan, concept, defense)
    before = {"defense": defend} if defend else {}
    prompts = spread(concept.of("concept"), plan.config.raw.prompts.concept)
    found = {}
    for number, trial in enumerate(attack.trials):
        parents = {**before, "attack": attack_task(plan, concept, (defense, trial), before, budgets, seed)}
        for budget in budgets:
            label = f"concept images of {trial.label}@{budget} on {defense.label}, {concept.name}"
            images = plan.add(attacked(plan, concept, trial, prompts, "concept", parents, label, budget))
            found[f"trial{number}@{budget}"] = score(plan, concept, judges[0], images, prompts, "concept", label)
    return found


def add_cell(
    plan: Plan, concept: Concept, methods: tuple[Entry, Entry], point: tuple[int, int], parents: dict[str, str]
) -> Cell:
    """One cell. Before any attack it has the images and scores of every other such cell of its defense."""
    (defense, attack), (budget, seed) = methods, point
    start = (concept.name, defense.label)
    if budget or start not in plan.starts:
        before = plan.requested
        images, scores, expected = evaluated(plan, concept, methods, budget, parents)
        if not budget:
            plan.starts[start] = (images, scores, expected, plan.requested - before)
    else:
        images, scores, expected, passes = plan.starts[start]
        plan.requested += passes
    if plan.config.adaptation and plan.subject and attack.changes == "none":
        taught = adapt(plan, plan.subject, defense, parents, plan.config.adaptation)
        images, scores = images | {"adapted": taught[0]}, scores | {("presence", "adapted"): taught[1]}
    return Cell(
        concept=concept,
        defense=defense.label,
        attack=attack.label,
        budget=budget + (plan.tasks[parents["attack"]].fields.get("start", 0) if "attack" in parents else 0),
        seed=seed,
        kind=attack.changes,
        defend=parents.get("defense"),
        images=images,
        scores=scores,
        expected=expected,
    )


def evaluated(
    plan: Plan, concept: Concept, methods: tuple[Entry, Entry], budget: int, parents: dict[str, str]
) -> tuple[dict[str, str], dict[tuple[str, str], str], int]:
    """The images of a cell, their scores, and how many images of the concept there are to be.

    Retained concepts are scored before the attack only. An attack that changes no weight leaves the safe images as
    they were.
    """
    defense, attack = methods
    splits: tuple[Split, ...] = ("concept", "safe") if budget else ("concept", "retained", "cross", "safe")
    images, scores, expected = dict[str, str](), dict[tuple[str, str], str](), 0
    for split in splits:
        prompts = asked(plan, concept, split)
        if not prompts:
            continue
        label = f"{split} images of {attack.label}@{budget} on {defense.label}, {concept.name}"
        if budget and (split == "concept" or attack.changes == "weights"):
            task = attacked(plan, concept, attack, prompts, split, parents, label, budget)
        else:
            task = draw(plan, prompts, split, {k: v for k, v in parents.items() if k == "defense"}, label)
        images[split] = plan.add(task)
        expected = len(prompts) * task.fields["images"] if split == "concept" else expected
        for metric in plan.config.metrics:
            if metric.method.takes(split, concept) and (metric.method.after_attack or not budget):
                place = plan.place(metric.label, split)
                scores[place] = score(plan, concept, metric, images[split], prompts, split, label)
    return images, scores, expected


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
        prompts = plan.once((concept, attack, prompts), ("reworded",), lambda: reworded(prompts, attack, concept))
    task = draw(plan, prompts, split, parents, label, budget=budget)
    if attack.method.changes != "sampling":
        return task
    begin = {"use": attack.use, "version": attack.method.version, "fields": attack.fields}
    steps = plan.config.raw.sampling.steps
    passes = task.passes // steps * attack.method.trajectory(budget, steps)
    return replace(task, fields={**task.fields, "begin": begin}, passes=passes)


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
    return Task(**same, parents=parents, label=label)


def drawing(plan: Plan, prompts: tuple[Prompt, ...], split: Split, budget: int, stream: str) -> dict[str, Any]:
    """What the tasks that draw images of these prompts have in common."""
    raw = plan.config.raw
    if stream:
        prompts = spread(prompts, getattr(raw.prompts, split))
    own = {"images": getattr(raw.images, counted_as(split)), "stream": stream} | ({"budget": budget} if budget else {})
    guided = 2 if raw.sampling.guidance != 1.0 else 1
    return {
        "kind": "generate",
        "plugin": "sampler",
        "version": SAMPLER_VERSION,
        "fields": {**raw.sampling.model_dump(), **own},
        "base": plan.base,
        "prompts": plan.once((prompts,), ("bare",), lambda: tuple(replace(p, label=None) for p in prompts)),
        "passes": len(prompts) * own["images"] * raw.sampling.steps * guided,
    }


def score(
    plan: Plan, concept: Concept, metric: Entry, images: str, prompts: tuple[Prompt, ...], split: Split, label: str
) -> str:
    """The task that scores images. Paired metrics read the undefended base's images too; distances do so unless the
    card has real images of the split.
    """
    given = metric
    metric, card, identity, places = plan.once(
        (given, concept), ("judge", split), lambda: judging(given, concept, split)
    )
    method, parents = metric.method, {"images": images}
    if method.per == "set" and concept.pictures and concept.pictured(split):
        called = f"{concept.name}: real images of the {split} split"
        real = plan.once((concept,), ("real", split), lambda: photographed(plan, concept, split, called, whole=True))
        parents["reference"], identity = plan.add(real), f"{identity}, to real images {real.fields['sha256'][:12]}"
    elif method.per == "reference":
        parents["reference"] = data_task(plan, concept, metric, ATTACKER["concept"])
    elif method.per != "image":
        label_of = f"{split} images of the base, {concept.name}"
        parents["reference"] = plan.add(
            plan.once((prompts, concept), ("base", split), lambda: draw(plan, prompts, split, {}, label_of))
        )
    if method.per == "set":
        parents = {role: plan.add(embedded(plan, metric, key)) for role, key in parents.items()}
    return plan.add(
        Task(
            kind="score",
            plugin=metric.use,
            version=method.version,
            fields=plan.once(
                (metric,),
                ("scored", identity),
                lambda: {**metric.fields, **dict.fromkeys(places, identity), "identity": identity},
            ),
            base=plan.base,
            concept=card,
            prompts=() if method.per == "set" else prompts,
            parents=parents,
            places=places,
            label=f"{metric.label} of {label}",
        )
    )


def judging(metric: Entry, concept: Concept, split: Split) -> tuple[Entry, Concept | None, str, Mapping[str, str]]:
    """A metric for a concept's images of a split: the entry, the card it reads, who it is, and where its files are.

    Raises:
        ConfigError: it names a judge or an embedder that does not exist.
    """
    card = concept.judged_on(split) if metric.method.reads_concept else None
    try:
        method = metric.method.for_card(concept)
        return replace(metric, method=method), card, method.identity(), method.places()
    except ValueError as error:
        raise ConfigError(f"metric {metric.label!r}: {error}") from error


def counted_as(split: Split) -> Split:
    """The split whose counts of prompts and images hold: prompts of the other domain are counted as retained ones."""
    return "retained" if split == "cross" else split


def embedded(plan: Plan, metric: Entry, images: str) -> Task:
    """A task that embeds images; metrics with the same embedder share it."""
    return Task(
        kind="embed",
        plugin="embedder",
        version=EMBEDDER_VERSION,
        fields=plan.once(
            (metric,),
            ("embedder",),
            lambda: {"embedder": metric.method.embedder, "identity": metric.method.embedded_by()},
        ),
        base=plan.base,
        parents={"images": images},
        label=f"features of {plan.tasks[images].label}",
    )
