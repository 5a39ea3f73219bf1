"""Config -> tasks and cells. Pure: it reads no weights and no store, and the same config gives the same plan.

A cell is concept x defense x attack x budget x seed. Cells share tasks: a defense is trained once for a concept, an
attack once for all its budgets, images are drawn once for all metrics. The undefended control is always planned,
because every cell needs its ceiling.

In: a `Config` and the cards that it names. Out: a `Plan`. Task keys and seeds are made here; all that computes or reads
results imports it.
"""

from benchmark.plan.build import build
from benchmark.plan.matrix import Cell, Plan, Skip

__all__ = ["Cell", "Plan", "Skip", "build"]
