"""Draw only what decides: which attacks of a defense may still be its worst, and when a defense needs no more images.

A unit is (concept, attack run, prompt, number of the image), the same noise for every defense and attack. They are
drawn in looks at 20, 40, 80, 160, 320 units. After each look, of each defense:

drop      An arm whose units fall short of the leading arm's, in pairs, by more than z standard errors cannot be the
          worst. With D the differences of the units that both have, and m their mean,

              s^2 = (sum over clusters of (sum of D - m)^2 + 1) / n^2,        dropped if m > z s

          clusters are prompts, and attack runs where there are FEW_RUNS or more: s is the larger. The 1 keeps few
          units that all agree from deciding.
decide    A pair of defenses by the paired difference of their largest arms, at the levels of `boundary`.
stop      A defense all of whose pairs are decided; or of which one arm is left that is known to +- `precision`.

All of it is a function of the scores so far and of the config.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from leaderboards.bootstrap import Draws, FloatArray, hierarchical
from leaderboards.intervals import Difference, difference

LOOKS = (20, 40, 80, 160, 320)
Z_DROP = 2.5  # docs/statistics.md: what it costs, simulated
FEW_RUNS = 4  # the spread between fewer attack runs says too little
BoolArray = npt.NDArray[np.bool_]


def looks(blocks: int, units: int) -> tuple[int, ...]:
    """How many units each of `blocks` (concept, attack run) has after each look; the last is all it has, `units`.

    A look is rounded up to whole blocks. One that has no more than the one before is left out.
    """
    planned = sorted({min(-(-look // blocks), units) for look in LOOKS})
    return (*(n for n in planned if n < units), units)


def drop(hits: FloatArray, clusters: Sequence[npt.NDArray[np.int64]], z: float = Z_DROP) -> BoolArray:
    """Which arms cannot be the worst, (arms,).

    Args:
        hits: (units, arms) in {0, 1}, NaN where an arm lacks a unit.
        clusters: of the units (units,), by prompt and by attack run.
        z: standard errors that a gap must exceed.
    """
    dropped = np.zeros(hits.shape[1], dtype=bool)
    known = np.isfinite(hits)
    if not known.any():
        return dropped
    counts = known.sum(axis=0)
    means = np.divide(np.where(known, hits, 0.0).sum(axis=0), counts, out=np.full(len(counts), -1.0), where=counts > 0)
    leader = int(np.argmax(means))
    for arm in np.flatnonzero(counts > 0):
        both = known[:, leader] & known[:, arm]
        apart = hits[both, leader] - hits[both, arm]
        if arm != leader and len(apart):
            error = max(standard_error(apart, groups[both]) for groups in clusters)
            dropped[arm] = float(apart.mean()) > z * error
    return dropped


def standard_error(apart: FloatArray, groups: npt.NDArray[np.int64]) -> float:
    """s of the module's docstring for differences (n,) in clusters (n,)."""
    _, place = np.unique(groups, return_inverse=True)
    sums = np.bincount(place, apart - apart.mean())
    return float(np.sqrt((sums**2).sum() + 1) / len(apart))


def worst_gap(
    sides: tuple[FloatArray, FloatArray],
    attacks: tuple[Sequence[str], Sequence[str]],
    concepts: Sequence[str],
    bootstrap: Draws,
) -> Difference:
    """The difference of the largest arms of two defenses, each over its own arms, for these concepts.

    The maximum is taken again in each draw; prompts, and the runs of an attack that both have, are drawn alike.

    Args:
        sides: prompt means (concepts, arms, runs, prompts) of each, NaN where nothing was drawn.
        attacks: the attack of each arm.
        concepts: their names.
    """
    drawn = [hierarchical(hits, own, concepts, bootstrap) for hits, own in zip(sides, attacks, strict=True)]
    arms = [int(np.nanargmax(one.means)) for one in drawn]
    values = [float(one.means[arm]) for one, arm in zip(drawn, arms, strict=True)]
    largest = [np.fmax.reduce(one.fixed, axis=1) for one in drawn]
    hits = [_over_runs(side[:, arm]) for side, arm in zip(sides, arms, strict=True)]
    both = np.isfinite(hits[0]) & np.isfinite(hits[1])
    differing = int((np.abs(hits[0][both] - hits[1][both]) > 1e-9).sum())
    freedom = min(one.fixed_freedom for one in drawn)
    sample = largest[0] - largest[1]
    return difference(values[0], values[1], sample, int(both.sum()), freedom, differing=differing)


def _over_runs(hits: FloatArray) -> FloatArray:
    """Mean over the finite runs of (concepts, runs, prompts)."""
    known = np.isfinite(hits)
    count = known.sum(axis=1)
    total = np.where(known, hits, 0.0).sum(axis=1)
    mean: FloatArray = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean
