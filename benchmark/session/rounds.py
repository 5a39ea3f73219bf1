"""The rounds of a run: plan -> run -> decide -> plan -> run.

What later rounds draw is a function of the stored scores of the first and of the config alone, never of the order or of
when a run was killed: the same scores ask for the same images.
"""

from dataclasses import replace
from typing import Any

from benchmark.plan import Plan
from benchmark.plan.rounds import Arm, Row, confirm
from benchmark.results import records
from benchmark.store import Store
from benchmark.store.frozen import FrozenStore
from leaderboards.decide import worst_arms


def decided(first: Plan, store: Store) -> Plan:
    """The plan with what the scores that are there ask for; `first` where it asks for no more, or nothing is there.

    Scores that are missing decide nothing. So what an unfinished first round asks for is only what it says so far: a
    run looks again when that round is done.
    """
    if not first.config.raw.confirm:
        return first
    scores = {key for cell in first.cells for key in cell.scores.values()}
    seen = FrozenStore(store, scores | {cell.images["concept"] for cell in first.cells})
    found = records.scores(first, seen)
    if not len(found):
        return first
    settings: dict[str, Any] = {"draws": first.config.raw.draws, "yes_or_no": records.yes_or_no(first)}
    arms = worst_arms(found, records.cells(first, seen, {}, {}), **settings)
    worst: dict[Row, Arm] = {(scenario, defense): arm for (_, scenario, defense), arm in arms.items()}
    return confirm(first, worst)


def added(first: Plan, plan: Plan) -> Plan:
    """The part of a plan that `first` lacks, with all that it is made from."""
    needed = {key: None for key in plan.tasks if key not in first.tasks}
    todo = list(needed)
    for key in todo:  # it grows
        for parent in plan.tasks[key].parents.values():
            if parent not in needed:
                needed[parent] = None
                todo.append(parent)
    return replace(plan, tasks={key: task for key, task in plan.tasks.items() if key in needed})
