"""Who is not dominated in worst_presence (smaller is better) and retained_accuracy (larger is better).

A defense is dominated by one that is no worse in both and better in one. This depends on which other rows there are,
so it has a table of its own: the leaderboard's rows do not. The control takes part, for a defense that it dominates
is of no use.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from leaderboards.bootstrap import FloatArray
from leaderboards.row import Row, over_concepts

COLUMNS = ["model", "scenario", "defense", "worst_presence", "retained_accuracy", "non_dominated", "pareto"]
TOLERANCE = 1e-9  # equal up to rounding is not better


def membership(rows: Sequence[Row]) -> pd.DataFrame:
    """One row for each row of the leaderboard.

    non_dominated: of the values themselves. pareto: share of bootstrap draws in which the row is not dominated by
    another of its model and scenario. Both are missing where one of the two numbers is, and such a row dominates none.
    """
    lines = []
    for row in rows:
        accuracy = over_concepts(row.start, "retained_accuracy")
        lines.append(row.names | {"worst_presence": row.worst.interval.value, "retained_accuracy": accuracy})
    table = pd.DataFrame(lines, columns=COLUMNS[:-2])
    table["non_dominated"], table["pareto"] = pd.Series(pd.NA, table.index, dtype="boolean"), np.nan
    known = table[table[["worst_presence", "retained_accuracy"]].notna().all(axis=1)]
    for _, part in known.groupby(["model", "scenario"]):
        values = np.stack([part["worst_presence"], 1 - part["retained_accuracy"]], axis=-1).astype(np.float64)
        draws = np.stack([_draws(rows[i]) for i in part.index], axis=1)
        table.loc[part.index, "non_dominated"] = non_dominated(values[None])[0]
        table.loc[part.index, "pareto"] = non_dominated(draws).mean(axis=0)
    return table


def _draws(row: Row) -> FloatArray:
    """What is lost in each draw, (draws, 2)."""
    return np.stack([row.worst.draws, 1 - row.retained_draws()], axis=-1)


def non_dominated(losses: FloatArray) -> npt.NDArray[np.bool_]:
    """(draws, rows): no other row is at most as large in all `losses` (draws, rows, numbers) and smaller in one."""
    free = np.ones(losses.shape[:2], dtype=bool)
    for i in range(losses.shape[1]):
        own = losses[:, i : i + 1]
        no_worse = np.all(losses <= own + TOLERANCE, axis=2)
        better = np.any(losses < own - TOLERANCE, axis=2)
        free[:, i] = ~np.any(no_worse & better, axis=1)
    return free
