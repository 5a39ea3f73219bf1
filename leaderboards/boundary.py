"""When to stop looking: O'Brien and Fleming's boundary, within Holm's step-down over the pairs of a family.

Of K looks at shares t_1 < ... < t_K = 1 of all that may be drawn, a difference is decided at the first with

    |Z_k| >= c / sqrt(t_k),        P(some |Z_k| >= c / sqrt(t_k)) = alpha where there is no difference

(O'Brien and Fleming 1979). With S_k = sqrt(t_k) Z_k, a sum of independent normal steps, that is |S_k| >= c, and the
probability follows by integrating its density from look to look (Armitage, McPherson and Rowe 1969). Early looks ask
for much, so that the last loses little: c is 2.04 for five looks at equal distances, where one look has 1.96.

Several pairs: one is decided at alpha / m, the next at alpha / (m - 1), ..., each with the boundary of its level, as in
Holm's correction (Maurer and Bretz 2013, "Multiple testing in group sequential trials using graphical approaches").
With one look it is Holm's correction.
"""

from functools import lru_cache
from itertools import pairwise

import numpy as np

from leaderboards.bootstrap import FloatArray, IntArray
from leaderboards.student import NORMAL, normal_tail

NODES = 96  # of Gauss and Legendre's rule: eight digits where the first look is at 1/16
NEVER = -1


@lru_cache(maxsize=512)
def constant(shares: tuple[float, ...], alpha: float) -> float:
    """c of the module's docstring for looks at `shares`, which rise to 1, and a two-sided level in (0, 1).

    Raises:
        ValueError: the shares do not rise from above 0 to 1.
    """
    if shares[-1:] != (1.0,) or not all(low < high for low, high in zip((0.0, *shares), shares, strict=False)):
        raise ValueError(f"expected shares of all units that rise from above 0 to 1, got {shares}.")
    low, high = -NORMAL.inv_cdf(alpha / 2), -NORMAL.inv_cdf(alpha / 2 / len(shares))  # one look; Bonferroni over looks
    while high - low > 1e-8:
        middle = (low + high) / 2
        low, high = (middle, high) if crossing(shares, middle) > alpha else (low, middle)
    return (low + high) / 2


def crossing(shares: tuple[float, ...], c: float) -> float:
    """The probability that |S_k| >= c at one of the looks at least, where there is no difference."""
    nodes, widths = np.polynomial.legendre.leggauss(NODES)
    at, by = c * nodes, c * widths
    density = _normal(at, shares[0])
    for before, share in pairwise(shares):
        density = _normal(at[:, None] - at[None, :], share - before) @ (by * density)
    return 1 - float(by @ density)


def levels(shares: tuple[float, ...], alpha: float) -> tuple[float, ...]:
    """The two-sided p at or under which each look decides."""
    c = constant(shares, alpha)
    return tuple(2 * normal_tail(c / share**0.5) for share in shares)


def step_down(p: FloatArray, shares: tuple[float, ...], alpha: float) -> IntArray:
    """The look at which each pair is decided, NEVER where none did: (pairs,).

    Args:
        p: two-sided p-values (looks so far, pairs); NaN where a pair was not looked at.
        shares: of all planned looks.
        alpha: level of the family, which is all pairs of `p`.
    """
    found = np.full(p.shape[1], NEVER, dtype=np.int64)
    for look, row in enumerate(p):
        while (open_ := np.flatnonzero((found == NEVER) & np.isfinite(row))).size:
            smallest = open_[np.argmin(row[open_])]
            if row[smallest] > levels(shares, alpha / int((found == NEVER).sum()))[look]:
                break
            found[smallest] = look
    return found


def _normal(x: FloatArray, variance: float) -> FloatArray:
    density: FloatArray = np.exp(-(x**2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    return density
