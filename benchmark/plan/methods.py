"""Tasks that train: defenses, attacks, attacks that follow another, and the trials of tuned ones."""

from dataclasses import replace

from benchmark.config.entries import Entry
from benchmark.config.imported import USE
from benchmark.data.cards import spread
from benchmark.errors import PlanError
from benchmark.plan.images import asked, attacked, data_task, reworded, searched_images
from benchmark.plan.matrix import Plan
from benchmark.plan.scores import score
from benchmark.plan.task import GUIDANCE, Task
from benchmark.types import Concept, Prompt, Split

DEFENDER: dict[str, Split] = {"concept": "defender", "safe": "prior"}
ATTACKER: dict[str, Split] = {"concept": "attacker", "benign": "benign"}


def add_defense(plan: Plan, concept: Concept, defense: Entry) -> str | None:
    """The task that trains a defense, after the one it builds on; None for the control, which is the base itself.

    A concept that is erased together with others is erased with them.
    """
    concept = plan.groups.get(concept.together, concept)
    if defense.method.fidelity == "control":
        return None
    if defense.use == USE:
        return imported(plan, concept, defense)
    roles = {need: data_task(plan, concept, defense, DEFENDER[need]) for need in sorted(defense.method.needed)}
    below = add_defense(plan, concept, defense.after) if defense.after else None
    key = plan.add(
        Task(
            kind="defend",
            plugin=defense.use,
            version=defense.method.version,
            fields=defense.fields,
            base=plan.base,
            concept=concept,
            prompts=tuple(replace(p, label=None) for split in defense.method.reads for p in concept.of(split)),
            parents={**roles, **({"defense": below} if below else {})},
            label=f"{defense.label} on {concept.name}",
            passes=defense.method.passes(),
        )
    )
    scale = plan.config.raw.sampling.guidance
    if hasattr(defense.method, "guard"):
        plan.guards[key] = defense.method.guided_passes(scale) / (1 if scale == 1.0 else 2)
    return key


def under_guard(plan: Plan, guard: str) -> dict[str, str]:
    """The defended model's parents for who has its weights in his hands: a guard, a task's key, is no part of them."""
    parents = plan.tasks[guard].parents
    return {"defense": parents["defense"]} if "defense" in parents else {}


def imported(plan: Plan, concept: Concept, defense: Entry) -> str:
    """The task that takes over somebody else's change. Its hash and the base are its key, and nothing else."""
    change = defense.method.changes[concept.name]
    return plan.add(
        Task(
            kind="defend",
            plugin=USE,
            version=defense.method.version,
            fields={"sha256": change.sha256},
            base=plan.base,
            places={"folder": change.folder},
            label=f"{defense.label} for {concept.name}, imported",
        )
    )


def attack_task(
    plan: Plan,
    concept: Concept,
    methods: tuple[Entry, Entry],
    before: dict[str, str],
    budgets: tuple[int, ...],
    seed: int,
) -> str:
    """The task that attacks; one run gives the snapshots of all budgets.

    An attack that reads the text encoder alone, or the base, is run once, on that, and replayed on every defense. One
    that follows a weight attack starts from that attack's snapshot; a tuned one reads how its trials did. Who trains
    weights does so without a guard; who searches prompts meets it. (Of the latter's passes the plan knows the most.)
    A search that attacks the evaluation prompts has them in its key.
    """
    defense, attack = methods
    fields = plan.once((attack,), ("ran", budgets), lambda: {**attack.fields, "budgets": list(budgets)})
    prompts = searched(plan, concept, attack)
    roles = {need: data_task(plan, concept, attack, ATTACKER[need]) for need in attacker_needs(attack, prompts)}
    if prompts and "concept" in attack.method.needs:
        roles["concept"] = searched_images(plan, concept, attack)
    if attack.after:
        start, roles["attack"] = first_attack(plan, concept, (defense, attack), before, seed)
        fields = {**fields, "start": start}
    if attack.trials:
        fields = {"trials": [trial.fields for trial in attack.trials], "budgets": list(budgets)}
        roles |= trials(plan, defense, attack, budgets)
    passes = max(which.method.passes(max(budgets)) for which in attack.trials or (attack,)) * max(len(prompts), 1)
    if defense.is_guard and attack.method.changes == "weights":
        before = under_guard(plan, before["defense"])
    replayed = (attack.method.access == "text encoder" or attack.method.replayed) and not attack.after
    if defense.is_guard and attack.method.changes == "prompts" and not replayed:
        scale = plan.config.raw.sampling.guidance
        fields = {**fields, GUIDANCE: scale}
        passes = round(passes * (plan.guards[before["defense"]] * (1 if scale == 1.0 else 2) + (scale != 1.0)))
    label = f"{attack.label} on {'every defense' if replayed else defense.label}, {concept.name}, seed {seed}"
    return plan.add(
        Task(
            kind="attack",
            plugin=attack.use,
            version=attack.method.version,
            fields=fields,
            base=plan.base,
            concept=concept,
            prompts=prompts,
            seed=seed,
            parents={**({} if replayed else before), **roles},
            label=label,
            passes=passes,
        )
    )


def searched(plan: Plan, concept: Concept, attack: Entry) -> tuple[Prompt, ...]:
    """The evaluation prompts that a search attacks, as an attack before it words them; none if it reads others."""
    if "concept" not in attack.method.reads:
        return ()
    given = asked(plan, concept, "concept")
    worded = plan.once((concept, attack, given), ("reworded",), lambda: reworded(given, attack, concept))
    return plan.once((worded,), ("bare",), lambda: tuple(replace(p, label=None) for p in worded))


def attacker_needs(attack: Entry, prompts: tuple[Prompt, ...]) -> list[str]:
    """The images that it needs of the attacker's splits: a search of evaluation prompts looks at images of these."""
    return sorted(need for need in attack.method.needs if need != "concept" or not prompts)


def first_attack(
    plan: Plan, concept: Concept, methods: tuple[Entry, Entry], before: dict[str, str], seed: int
) -> tuple[int, str]:
    """For an attack that follows another: the steps of the snapshot it starts from, and the task that makes it.

    Raises:
        PlanError: the first attack has no such snapshot, or makes no sense for the concept.
    """
    defense, attack = methods
    assert attack.after is not None
    budgets = attack.after.budgets(plan.config.raw.budgets)
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
