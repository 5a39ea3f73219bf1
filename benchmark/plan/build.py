"""The cross product: every cell, and the tasks that it needs."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product

from benchmark.config import Config
from benchmark.config.config import Adaptation
from benchmark.config.entries import Entry, entry
from benchmark.data.cards import spread
from benchmark.errors import PlanError
from benchmark.plan.gc_pause import uncollected
from benchmark.plan.images import asked, attacked, draw
from benchmark.plan.matrix import Cell, Plan, Skip
from benchmark.plan.methods import add_defense, attack_task
from benchmark.plan.removal import add_removal
from benchmark.plan.scores import score
from benchmark.plan.suite import check
from benchmark.types import Concept, Split

UNRELEASED = "not released"  # as `leaderboards.erasure` reads it
VERBS = {"weights": "finetune", "prompts": "search"}


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
        plan.groups |= {one.together: concept for one in concept.members}
        for defense in defenses:
            unfit = UNRELEASED if defense.unreleased(concept.name) else alone(concept, defense)
            defend = None if unfit else add_defense(plan, concept, defense)
            for one, attack in product(concept.each, config.attacks):
                if attack.against and defense.method.fidelity != "control" and defense.label not in attack.against:
                    continue
                if unfit:
                    plan.skipped.append(Skip(one.called, one.scenario, defense.label, attack.label, unfit))
                    continue
                plan.cells += add_attack(plan, one, defense, defend, attack)
            for one in concept.each if defend else ():
                plan.cells += add_removal(plan, one, defense, str(defend))
    names = [cell.name for cell in plan.cells]
    if len(set(names)) < len(names):
        raise PlanError(f"expected different cells, got {max(names, key=names.count)} twice: rename with `as:`.")
    hide(plan)
    return plan


def alone(concept: Concept, defense: Entry) -> str:
    """Why a defense cannot erase a concept that is several; empty if it is one, or it can."""
    single = [part.use for part in defense.chain if not part.method.takes_several]
    return f"{single[0]} erases one concept at a time" if concept.members and single else ""


def hide(plan: Plan) -> None:
    """Mark what belongs to an NSFW suite, and of it the images and the attacks: see `withhold`.

    Raises:
        ConfigError: a text of it may not be drawn or read, or a judge says that there are more such suites.
    """
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
        is_private = task.kind == "attack" or task.plugin in ("sampler", "folder")
        plan.tasks[key] = replace(task, is_private=is_private, is_sexual=True)
    check(plan, seen)


def add_attack(plan: Plan, concept: Concept, defense: Entry, defend: str | None, attack: Entry) -> list[Cell]:
    """All cells of one attack on one defended model."""
    cells = []
    budgets = fitting(plan, concept, defense, attack) if attack.changes != "none" else ()
    idle = attack.changes != "none" and not budgets
    if attack.trials and defense.unreleased(attack.develop):
        reason = f"not released for {attack.develop}, on which it chooses its settings"
    else:
        reason = attack.method.objection(concept) or ""
    reason = reason or "the config has no budgets" * (idle and attack.changes != "sampling")
    if reason:
        plan.skipped.append(Skip(concept.called, concept.scenario, defense.label, attack.label, reason))
    if reason or idle:
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


def fitting(plan: Plan, concept: Concept, defense: Entry, attack: Entry) -> tuple[int, ...]:
    """The budgets of an attack; one that the run's sampling steps have no room for is skipped, with the reason."""
    budgets = attack.budgets(plan.config.raw.budgets)
    if attack.changes != "sampling":
        return budgets
    unfit = {budget: attack.method.misfit(budget, plan.config.raw.sampling.steps) for budget in budgets}
    for budget, reason in unfit.items():
        if reason:
            plan.skipped.append(Skip(concept.called, concept.scenario, defense.label, attack.label, reason, budget))
    return tuple(budget for budget, reason in unfit.items() if not reason)


def add_cell(
    plan: Plan, concept: Concept, methods: tuple[Entry, Entry], point: tuple[int, int], parents: dict[str, str]
) -> Cell:
    """One cell. Before any attack it has the images and scores of every other such cell of its defense."""
    (defense, attack), (budget, seed) = methods, point
    start = (concept.called, defense.label)
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
        kind=attack.kind,
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
    they were: before it, or, where it follows one that does, after that one.
    """
    defense, attack = methods
    trained = trained_by(plan, attack, budget, parents)
    splits: tuple[Split, ...] = ("concept", "safe") if budget else ("concept", "retained", "cross", "safe")
    images, scores, expected = dict[str, str](), dict[tuple[str, str], str](), 0
    for split in splits:
        prompts = asked(plan, concept, split)
        if not prompts:
            continue
        label = f"{split} images of {attack.label}@{budget} on {defense.label}, {concept.called}"
        if budget and split == "concept":
            task = attacked(plan, concept, attack, prompts, split, parents, label, budget)
        elif budget and trained:
            who, steps, ran = trained
            task = attacked(plan, concept, who, prompts, split, {**parents, "attack": ran}, label, steps)
        else:
            task = draw(plan, prompts, split, {k: v for k, v in parents.items() if k == "defense"}, label)
        images[split] = plan.add(task)
        expected = len(prompts) * task.fields["images"] if split == "concept" else expected
        for metric in plan.config.metrics:
            if metric.method.takes(split, concept) and (metric.method.after_attack or not budget):
                place = plan.place(metric.label, split)
                scores[place] = score(plan, concept, metric, images[split], prompts, split, label)
    return images, scores, expected


def trained_by(plan: Plan, attack: Entry, budget: int, parents: dict[str, str]) -> tuple[Entry, int, str] | None:
    """What trained the weights of a cell: the attack, after how many steps, and its task; None if nothing did."""
    if attack.changes != "weights" or "attack" not in parents:
        return None
    ran = plan.tasks[parents["attack"]]
    return (attack.after, ran.fields["start"], ran.parents["attack"]) if attack.after else (attack, budget, ran.key)


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
