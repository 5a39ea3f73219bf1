"""Do two models put the same defenses in the same order? Pairs of defenses, as both models compared them.

    tau-b = (C - D) / sqrt((C + D + T_a) (C + D + T_b))

C and D are the pairs that both models put in the same or in the opposite order by presence, T_a and T_b those that the
first or the second alone calls equal (Kendall 1945). A pair that both call equal counts nowhere. `decided` pairs are
those that each model told apart for these concepts at 5 % by Holm: orders that differ by chance have hardly one that is
opposed.
"""

from itertools import combinations
from math import sqrt
from typing import Any

import numpy as np
import pandas as pd

from leaderboards.intervals import EQUAL

ON = ["scenario", "number", "attack", "budget"]
PAIR = ["defense_a", "defense_b"]
COLUMNS = [
    *["model_a", "model_b", *ON, "defenses", "pairs", "same", "opposed", "tau"],
    *["decided", "decided_same", "decided_opposed"],
]
ALPHA = 0.05


def orders(comparisons: pd.DataFrame) -> pd.DataFrame:
    """One row for each two models and each number, attack and budget in which both compared defenses; maybe none.

    Args:
        comparisons: the table of `leaderboards.comparisons`, over several models.
    """
    lines = list[dict[str, Any]]()
    for a, b in combinations(sorted(set(comparisons["model"])), 2):
        one, other = (comparisons[comparisons["model"] == model] for model in (a, b))
        both = one.merge(other, on=[*ON, *PAIR], suffixes=("_a", "_b"))
        both = both[both["value_a"].notna() & both["value_b"].notna()]
        for names, pairs in both.groupby(ON, dropna=False, sort=False):
            lines.append({"model_a": a, "model_b": b} | dict(zip(ON, names, strict=True)) | agreement(pairs))
    return pd.DataFrame(lines, columns=COLUMNS).astype({"budget": "Int64"})


def agreement(pairs: pd.DataFrame) -> dict[str, Any]:
    """The counts of one row, and tau-b; missing where a model tells no pair apart."""
    first, second = (sign(pairs[f"value_{side}"].to_numpy(dtype=np.float64)) for side in "ab")
    same, opposed = int((first * second > 0).sum()), int((first * second < 0).sum())
    ties = [int(((own == 0) & (else_ != 0)).sum()) for own, else_ in ((first, second), (second, first))]
    scale = sqrt((same + opposed + ties[0]) * (same + opposed + ties[1]))
    is_decided = ((pairs["p_fixed_holm_a"] < ALPHA) & (pairs["p_fixed_holm_b"] < ALPHA)).to_numpy()
    product = (first * second)[is_decided]
    return {
        "defenses": len(set(pairs["defense_a"]) | set(pairs["defense_b"])),
        "pairs": len(pairs),
        "same": same,
        "opposed": opposed,
        "tau": (same - opposed) / scale if scale else float("nan"),
        "decided": int(is_decided.sum()),
        "decided_same": int((product > 0).sum()),
        "decided_opposed": int((product < 0).sum()),
    }


def sign(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """-1, 0 or 1; differences of rounding are none."""
    return np.where(np.abs(values) <= EQUAL, 0, np.sign(values))
