"""The control of every defense that lives in one part: just that part is put back from the public base.

Nobody who has the weights and the base would train against such a defense. So the plan adds a cell, whatever attacks
the config has: a decoder, a text encoder or the layers that read the text come from the base again, and a guard is left
out. It is no attack: it enters no rank, and the leaderboard has it beside them (`removable`, `presence_removed`).
"""

from benchmark.config.entries import Entry, entry
from benchmark.plan.images import asked, attacked, draw
from benchmark.plan.matrix import Cell, Plan
from benchmark.plan.methods import attack_task, under_guard
from benchmark.plan.scores import score
from benchmark.types import Concept

LABEL = "removal"
JUDGE = "presence"  # how the labels of judges begin, see `leaderboards.evidence`


def removable(defense: Entry) -> str | None:
    """The part that is put back: a guard, or else what the last part of a composed defense lives in."""
    if defense.is_guard:
        return "guard"
    found: str | None = defense.method.removable
    return found


def add_removal(plan: Plan, concept: Concept, defense: Entry, defend: str) -> list[Cell]:
    """The cell of one defended model; none if it lives in no part of its own, or nobody judges."""
    part, prompts = removable(defense), asked(plan, concept, "concept")
    judges = [m for m in plan.config.metrics if m.label.startswith(JUDGE) and m.method.takes("concept", concept)]
    if part is None or not judges or not prompts:
        return []
    label = f"concept images of {LABEL} on {defense.label}, {concept.called}"
    seed = plan.config.raw.seeds[0]
    if part == "guard":
        task = draw(plan, prompts, "concept", under_guard(plan, defend), label)
    else:
        swap = entry("attack", {"use": "component_swap", "part": part, "as": LABEL})
        parents = {"defense": defend}
        parents["attack"] = attack_task(plan, concept, (defense, swap), parents, (1,), seed)
        task = attacked(plan, concept, swap, prompts, "concept", parents, label, 1)
    images = plan.add(task)
    return [
        Cell(
            concept=concept,
            defense=defense.label,
            attack=LABEL,
            budget=1,
            seed=seed,
            kind=LABEL,
            defend=defend,
            images={"concept": images},
            scores={
                plan.place(m.label, "concept"): score(plan, concept, m, images, prompts, "concept", label)
                for m in judges
            },
            expected=len(prompts) * task.fields["images"],
        )
    ]
