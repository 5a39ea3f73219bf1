"""More images of cells that are planned already: what stored scores ask for, once they are there.

A round's tasks are those of the cell's own images and judges with other numbers of images, so whatever makes the cell
makes them, too: the same weights, words and start. Their image seeds are those of a stream of their own, so that no
image of a round is one that was drawn before.
"""

from collections.abc import Mapping
from dataclasses import replace

from benchmark.plan.matrix import Cell, Plan, Round
from benchmark.plan.seeds import CONFIRM
from benchmark.plan.task import Task

JUDGE = "presence"  # how the labels of judges begin, see `leaderboards.evidence`
Row = tuple[str, str]  # scenario, defense
Arm = tuple[str, int]  # attack, budget


def confirm(plan: Plan, worst: Mapping[Row, Arm]) -> Plan:
    """The plan with fresh images of each row's worst arm; `plan` stays as it is."""
    images = plan.config.raw.confirm
    found = replace(plan, tasks=dict(plan.tasks), cells=[])
    for cell in plan.cells:
        is_worst = worst.get((cell.concept.scenario, cell.defense)) == (cell.attack, cell.budget)
        found.cells.append(anew(found, cell, images) if images and is_worst and is_judged(cell) else cell)
    return found


def is_judged(cell: Cell) -> bool:
    """Whether a judge looks at the cell's images of the concept."""
    return any(split == "concept" and metric.startswith(JUDGE) for metric, split in cell.scores)


def anew(plan: Plan, cell: Cell, images: int) -> Cell:
    """A cell with a round of fresh images, `images` of each prompt, for all of its judges."""
    task = fresh(plan.tasks[cell.images["concept"]], images)
    key = plan.add(task)
    judges = {metric: at for (metric, split), at in cell.scores.items() if split == "concept"}
    scores = {
        metric: plan.add(judged(plan.tasks[at], key)) for metric, at in judges.items() if metric.startswith(JUDGE)
    }
    return replace(cell, rounds=(*cell.rounds, Round(split=CONFIRM, images=key, scores=scores)))


def fresh(task: Task, images: int) -> Task:
    """The task that draws `images` of each prompt with seeds of their own.

    An attack that draws a prompt more than once does so here as often for each image.
    """
    fields = {**task.fields, "images": images, "stream": CONFIRM}
    passes = round(task.passes * images / task.fields["images"])
    return replace(task, fields=fields, passes=passes, label=f"fresh {task.label}")


def judged(task: Task, images: str) -> Task:
    """The task that judges other images as this one does."""
    return replace(task, parents={**task.parents, "images": images}, label=f"{task.label}, drawn anew")


def most(plan: Plan) -> int:
    """The U-Net passes that fresh images cost at most: each row's dearest arm."""
    images, rows = plan.config.raw.confirm, dict[Row, dict[Arm, dict[str, int]]]()
    for cell in plan.cells if images else ():
        if is_judged(cell):
            key = cell.images["concept"]
            arms = rows.setdefault((cell.concept.scenario, cell.defense), {})
            arms.setdefault((cell.attack, cell.budget), {})[key] = fresh(plan.tasks[key], images).passes
    return sum(max(sum(keys.values()) for keys in arms.values()) for arms in rows.values())
