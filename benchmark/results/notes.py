"""What to mistrust in a cell beside its status: results of code that changed since, and prompts that were cut,
searches that did not converge."""

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from benchmark.config.imported import USE
from benchmark.plan import Cell, Plan
from benchmark.runner.code import Changed
from benchmark.runner.flags import UNCONVERGED
from benchmark.store import Store


def notes(
    plan: Plan,
    changed: Iterable[Changed],
    cut: Mapping[str, int],
    unconverged: Mapping[str, Collection[int]] = MappingProxyType({}),
) -> dict[str, str]:
    """A note for each cell that needs one, by the cell's name.

    Args:
        changed: what is not as it was when results were made.
        cut: prompts that are longer than the model reads.
        unconverged: the steps at which a search, by its task's key, had not converged.
    """
    stale: dict[str, set[str]] = {}
    for one in changed:
        for key in one.keys:
            stale.setdefault(key, set()).add(one.what)
    below: dict[str, frozenset[str]] = {}
    for key, task in plan.tasks.items():  # parents come first
        above = (below[parent] for parent in task.parents.values())
        below[key] = frozenset(stale.get(key, ())).union(*above)
    found = {}
    for cell in plan.cells:
        keys = (*cell.images.values(), *cell.scores.values())
        whose = sorted(set[str]().union(*(below[key] for key in keys)))
        said = [f"code changed since: {', '.join(whose)}"] if whose else []
        said += imported(plan, cell)
        said += [UNCONVERGED] if cell.budget and is_unconverged(plan, cell, unconverged) else []
        said += [f"{count} prompts cut"] if (count := cut_in(plan, cell, cut)) else []
        if said:
            found[cell.name] = ", ".join(said)
    return found


def unconverged(plan: Plan, store: Store) -> dict[str, tuple[int, ...]]:
    """The steps at which a search, by its task's key, had not converged."""
    metas = {k: store.meta(k) for k, task in plan.tasks.items() if task.kind == "attack" and store.has(k)}
    found = {key: meta.get("search", {}) for key, meta in metas.items()}
    return {k: steps for k, told in found.items() if (steps := tuple(int(s) for s in told if not told[s]["converged"]))}


def imported(plan: Plan, cell: Cell) -> list[str]:
    """What the import of a cell's weights mistrusted."""
    entries = [part for entry in plan.config.defenses if entry.label == cell.defense for part in entry.chain]
    changes = [part.method.changes.get(cell.concept.name) for part in entries if part.use == USE]
    return [warning for change in changes if change for warning in change.warnings]


def is_unconverged(plan: Plan, cell: Cell, unconverged: Mapping[str, Collection[int]]) -> bool:
    """Whether what was found for a cell comes from a search that had not converged by then."""
    drawn = plan.tasks[cell.images["concept"]]
    return drawn.fields.get("budget") in unconverged.get(drawn.parents.get("attack", ""), ())


def cut_in(plan: Plan, cell: Cell, cut: Mapping[str, int]) -> int:
    """How many of the prompts of a cell are longer than the model reads."""
    texts = {prompt.text for key in cell.images.values() for prompt in plan.tasks[key].prompts} if cut else set()
    return len(texts & cut.keys())
