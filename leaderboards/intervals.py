"""Intervals, p-values and Holm's correction, from a number and its bootstrap draws.

How often 95 % intervals hold is simulated in the tests; docs/statistics.md says in which worlds they do not.
"""

from typing import NamedTuple

import numpy as np

from leaderboards.bootstrap import Drawn, Draws, FloatArray, weights
from leaderboards.student import NORMAL, normal_tail, t_quantile, t_tail

LEVEL = 0.95
POWER = 0.8
Z = NORMAL.inv_cdf((1 + LEVEL) / 2)
DEGENERATE = 1e-12  # narrower intervals are those of draws that do not vary
EQUAL = 1e-9  # smaller differences are those of rounding
FEW = 10  # fewer draws beyond 0 give no share to speak of
FEW_FREEDOM = 4  # under it, as with two to four concepts, the percentiles that t asks for lie beyond the draws
SHARE = (0.0, 1.0)
ANY = (-np.inf, np.inf)


class Interval(NamedTuple):
    """A number with its two-sided interval; NaN where it is missing."""

    value: float
    low: float
    high: float


class Both(NamedTuple):
    """Intervals of one number for concepts in general, and for these concepts."""

    general: Interval
    fixed: Interval


class Difference(NamedTuple):
    """A paired difference a - b, its interval, two-sided p-value in (0, 1], and the smallest difference in reach."""

    value: float
    low: float
    high: float
    p: float
    detectable: float


MISSING = Interval(float("nan"), float("nan"), float("nan"))
UNKNOWN = Difference(*MISSING, float("nan"), float("nan"))


def wilson(hits: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson (1927) score interval of the proportion hits / n, in [0, 1]; `hits` may be fractional."""
    if n <= 0:
        return float("nan"), float("nan")
    z = NORMAL.inv_cdf((1 + level) / 2)
    share = hits / n
    centre = share + z * z / (2 * n)
    half = z * float(np.sqrt(max(share * (1 - share), 0.0) / n + z * z / (4 * n * n)))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def of_draws(value: float, sample: FloatArray, freedom: float = np.inf, bounds: tuple[float, float] = ANY) -> Interval:
    """The interval of `value`, which lies in `bounds`, from the finite draws `sample` (draws,).

    Percentiles; with fewer than four degrees of freedom value +- t s, cut to the bounds, s the standard deviation of
    the draws. The smallest and the largest of a thousand draws is all that percentiles could say there.
    """
    finite = sample[np.isfinite(sample)]
    if freedom >= FEW_FREEDOM:
        return percentile(value, finite, freedom)
    if not np.isfinite(value) or not len(finite):
        return Interval(value, float("nan"), float("nan"))
    half = t_quantile((1 + LEVEL) / 2, freedom) * float(finite.std())
    return Interval(value, max(bounds[0], value - half), min(bounds[1], value + half))


def percentile(value: float, sample: FloatArray, freedom: float = np.inf) -> Interval:
    """Percentile interval from the finite draws `sample` (draws,), widened to hold `value`.

    The percentiles are those at which Student's t with `freedom` degrees has its 95 % (Hesterberg 2015, "What teachers
    should know about the bootstrap", expanded percentiles): draws of few units are too narrow by that.
    A maximum taken in each draw is biased upwards, and so could leave the point estimate outside.
    """
    ordered = np.sort(sample)  # NaN sorts last
    finite = len(ordered) - int(np.isnan(ordered).sum())
    if not np.isfinite(value) or finite == 0:
        return Interval(value, float("nan"), float("nan"))
    tail = normal_tail(t_quantile((1 + LEVEL) / 2, freedom))
    low, high = (_quantile(ordered[:finite], share) for share in (tail, 1 - tail))
    return Interval(value, min(low, value), max(high, value))


def _quantile(ordered: FloatArray, share: float) -> float:
    """numpy's linear quantile of sorted numbers, without what makes it slow on few."""
    at = share * (len(ordered) - 1)
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (at - below) * (ordered[above] - ordered[below]))


def proportion(value: float, sample: FloatArray, prompts: int, freedom: float = np.inf) -> Interval:
    """Interval of a share in [0, 1]; Wilson on the number of prompts where the draws do not vary."""
    interval = of_draws(value, sample, freedom, SHARE)
    if np.isfinite(value) and interval.high - interval.low < DEGENERATE:
        return Interval(value, *wilson(value * prompts, prompts))
    return interval


def proportions(value: float, drawn: Drawn, general: FloatArray, fixed: FloatArray, prompts: int) -> Both:
    """Intervals of a share for concepts in general and for these, from draws (draws,) of each kind.

    The first is never narrower than the second: few concepts may agree by luck.
    """
    own = proportion(value, fixed, prompts, drawn.fixed_freedom)
    wide = of_draws(value, general, drawn.freedom, SHARE)
    return Both(Interval(value, min(own.low, wide.low), max(own.high, wide.high)), own)


def prompt_mean(means: FloatArray, bootstrap: Draws, *, is_share: bool) -> Interval:
    """Mean over prompts of the prompt means (P,). The interval of a score (not a share) of one prompt is missing."""
    prompts = len(means)
    if prompts == 0:
        return MISSING
    value = float(means.mean())
    if prompts == 1 and not is_share:
        return Interval(value, float("nan"), float("nan"))
    sample, freedom = weights(prompts, bootstrap)[1:] @ means, max(prompts - 1, 1)
    return proportion(value, sample, prompts, freedom) if is_share else of_draws(value, sample, freedom)


def difference(
    a: float, b: float, sample: FloatArray, prompts: int, freedom: float = np.inf, *, differing: int
) -> Difference:
    """The difference a - b of two shares from draws `sample` of it, in which both had the same `prompts`.

    Where the draws do not vary, the interval is Newcombe's (1998) square-and-add interval from the Wilson intervals of
    a and b on the number of prompts, which leaves out their correlation. The smallest detectable difference is what a
    test at 5 % finds with a power of 80 %, before Holm's correction: (t.975 + t.8) s, s the standard deviation of the
    draws. Of the units that are drawn, `differing` differ between the two; see `p_value`.
    """
    value = a - b if abs(a - b) >= EQUAL else 0.0 * (a - b)  # NaN stays NaN
    finite = sample[np.isfinite(sample)]
    if not np.isfinite(value) or not len(finite):
        return UNKNOWN
    finite = np.where(np.abs(finite) < EQUAL, 0.0, finite)
    interval, spread = of_draws(value, finite, freedom, (-1.0, 1.0)), float(finite.std())
    if spread < DEGENERATE:
        (low_a, high_a), (low_b, high_b) = wilson(a * prompts, prompts), wilson(b * prompts, prompts)
        down, up = np.hypot(a - low_a, high_b - b), np.hypot(high_a - a, b - low_b)
        interval = Interval(value, max(-1.0, value - float(down)), min(1.0, value + float(up)))
        spread = (interval.high - interval.low) / 2 / Z
    detectable = (t_quantile((1 + LEVEL) / 2, freedom) + t_quantile(POWER, freedom)) * spread
    return Difference(*interval, p_value(value, finite, differing, freedom), detectable)


def widest(one: Difference, other: Difference) -> Difference:
    """The difference that says less: of two intervals both, the larger p, and the larger difference in reach."""
    low, high = min(one.low, other.low), max(one.high, other.high)
    return Difference(one.value, low, high, max(one.p, other.p), max(one.detectable, other.detectable))


def p_value(value: float, sample: FloatArray, differing: int, freedom: float = np.inf) -> float:
    """Two-sided bootstrap p-value of a difference from its draws.

    It is twice the smaller share of draws on either side of 0, one draw added to each. Holm's correction multiplies
    p, so a share of almost no draws will not do: with fewer than ten, p is twice the normal tail beyond the value in
    standard deviations of the draws, and so it is with fewer than four degrees of freedom, as for the interval. All
    are read as values of Student's t with `freedom` degrees.

    It is never smaller than what flipping the signs of the units that are drawn could give, 2^(1 - differing): units
    that do not differ, prompts that show the concept on both sides or on none, say nothing. Of no difference p is 1.
    """
    finite = sample[np.isfinite(sample)]
    if abs(value) < EQUAL:
        return 1.0
    tail, spread = min(int((finite <= 0).sum()), int((finite >= 0).sum())), float(finite.std())
    beyond = abs(value) / spread if spread > DEGENERATE else np.inf
    z = beyond
    if freedom >= FEW_FREEDOM:
        few = max(_z_of_share(FEW, len(finite)), beyond)
        z = few if tail < FEW else _z_of_share(tail, len(finite))
    return min(1.0, max(2 * t_tail(z, freedom), 2.0 ** (1 - differing)))


def _z_of_share(tail: int, draws: int) -> float:
    """Where the normal distribution has the share of `tail` draws and one more beyond it; 0 for a half and more."""
    return -NORMAL.inv_cdf(min((tail + 1) / (draws + 1), 0.5))


def holm(p: FloatArray) -> FloatArray:
    """Holm (1979) adjusted p-values (N,) of a family; NaN stays NaN and is not part of the family."""
    adjusted = np.full(len(p), np.nan)
    order = np.argsort(p)[: int(np.isfinite(p).sum())]  # NaN sorts last
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted
