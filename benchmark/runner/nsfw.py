"""What an NSFW suite leaves on the disk: scores. Its images stay in memory, its attacks go once they are scored.

images    drawn, scored and forgotten; a judge's error is no reason to keep one, so none is kept, flagged or not.
          Their result in the store is a marker without pictures. Who needs them again draws them again, in memory:
          the same seeds give the same images (`stages.images`).
attacks   weights, words and prompts are needed until the images of every budget are scored; then they are deleted,
          and a marker and the loss curve stay.

Nothing is computed twice for it: a result without its files counts as done, unless something made from it is missing,
as after a metric was added. Then it is computed again.
`plan.build` says which tasks are private; harmless suites have none and keep everything.
"""

from typing import Any

from benchmark.plan import Plan
from benchmark.plan.task import Task
from benchmark.store import Store
from benchmark.store.leftovers import KEPT


def children_of(plan: Plan) -> dict[str, list[str]]:
    """The keys of the tasks that read each task."""
    found: dict[str, list[str]] = {key: [] for key in plan.tasks}
    for key, task in plan.tasks.items():
        for parent in set(task.parents.values()):
            found[parent].append(key)
    return found


def is_needed(plan: Plan, store: Store, key: str, children: dict[str, list[str]]) -> bool:
    """True while something that is made from a finished attack is missing.

    What begins at a budget that the attack never reached is not waited for.
    """
    reached = store.meta(key).get("budgets", {})
    steps = {child: plan.tasks[child].fields for child in children[key]}
    todo = [child for child, f in steps.items() if str(f.get("budget", f.get("start", ""))) in reached]
    for child in todo:  # it grows
        if not store.has(child):
            return True
        todo += children[child]
    return False


def withheld(plan: Plan, store: Store) -> list[str]:
    """The attacks of the plan that were deleted after scoring and are needed again."""
    private = [key for key, task in plan.tasks.items() if is_private_attack(task) and store.has(key)]
    gone = [key for key in private if store.meta(key).get("withheld")]
    children = children_of(plan) if gone else {}
    return [key for key in gone if is_needed(plan, store, key, children)]


def images(plan: Plan, store: Store) -> set[str]:
    """The finished images of the plan that were not kept: to look at them again is to draw them again."""
    private = [key for key, task in plan.tasks.items() if task.is_private and task.kind == "generate"]
    return {key for key in private if store.has(key) and store.meta(key).get("withheld")}


def reopen(plan: Plan, store: Store) -> None:
    """Make the store forget the attacks that are needed again, so that a run computes them."""
    for key in withheld(plan, store):
        store.remove(store.path(key))


def sweep(plan: Plan, store: Store, keys: list[str] | None = None) -> None:
    """Delete what private attacks, all or those of `keys`, have found, where everything made from it is there."""
    private = [key for key in keys or plan.tasks if is_private_attack(plan.tasks[key]) and store.has(key)]
    children = children_of(plan) if private else {}
    for key in private:
        if not is_needed(plan, store, key, children):
            with store.lock(key) as ours:
                if ours:
                    store.shrink(key, KEPT, withheld=True)


def is_private_attack(task: Task) -> bool:
    """True for an attack whose weights and prompts are not kept."""
    return task.is_private and task.kind == "attack"


class Sweeping:
    """Events that pass on to others and delete an attack as soon as the last of its images is scored."""

    def __init__(self, onward: Any, plan: Plan, store: Store) -> None:
        self.onward, self.plan, self.store = onward, plan, store

    def started(self, task: Task) -> None:
        """A task begins."""
        self.onward.started(task)

    def step(self, *, step: int, total: int, loss: float) -> None:
        """The task at hand moved on."""
        self.onward.step(step=step, total=total, loss=loss)

    def finished(self, task: Task, outcome: str) -> None:
        """A task ended: ran, found, failed or skipped."""
        self.onward.finished(task, outcome)
        if outcome == "ran" and task.kind == "score":
            attacks = [key for key in self.above(task) if is_private_attack(self.plan.tasks[key])]
            if attacks:
                sweep(self.plan, self.store, attacks)

    def above(self, task: Task) -> set[str]:
        """The keys of all that a task was made from."""
        found, todo = set[str](), list(task.parents.values())
        for key in todo:  # it grows
            if key not in found:
                found.add(key)
                todo += self.plan.tasks[key].parents.values()
        return found
