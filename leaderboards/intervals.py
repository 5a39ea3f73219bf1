"""Intervals, p-values and Holm's correction, from a number and its bootstrap draws.

In simulations 95 % intervals hold in 94-98 % of runs with five or more concepts, or with one concept, fifty prompts and
attack seeds that agree. They hold in fewer with six prompts (90 %), with two or three concepts that differ much more
than their prompts do (87 %), and with three attack seeds of one concept that do (88 %): there, add units.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from leaderboards.bootstrap import Draws, FloatArray, weights

LEVEL = 0.95
POWER = 0.8
NORMAL = NormalDist()
Z = NORMAL.inv_cdf((1 + LEVEL) / 2)
DEGENERATE = 1e-12  # narrower intervals are those of draws that do not vary
FEW = 10  # fewer draws beyond 0 give no share to speak of


class Interval(NamedTuple):
    """A number with its two-sided interval; NaN where it is missing."""

    value: float
    low: float
    high: float


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
    tail = NORMAL.cdf(-t_of_z(Z, freedom))
    low, high = (_quantile(ordered[:finite], share) for share in (tail, 1 - tail))
    return Interval(value, min(low, value), max(high, value))


def t_of_z(z: float, freedom: float) -> float:
    """Quantile of Student's t at the share where the normal distribution has `z` (Wallace 1959, inverted)."""
    if freedom > 1e6:
        return z
    scaled = z * (8 * freedom + 3) / (8 * freedom + 1)
    return math.copysign(math.sqrt(freedom * math.expm1(min(scaled**2 / freedom, 700.0))), z)


def z_of_t(t: float, freedom: float) -> float:
    """Inverse of `t_of_z`."""
    if freedom > 1e6:
        return t
    scaled = math.sqrt(freedom * math.log1p(t * t / freedom))
    return math.copysign(scaled * (8 * freedom + 1) / (8 * freedom + 3), t)


def _quantile(ordered: FloatArray, share: float) -> float:
    """numpy's linear quantile of sorted numbers, without what makes it slow on few."""
    at = share * (len(ordered) - 1)
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (at - below) * (ordered[above] - ordered[below]))


def proportion(value: float, sample: FloatArray, prompts: int, freedom: float = np.inf) -> Interval:
    """Percentile interval of a share in [0, 1]; Wilson on the number of prompts where the draws do not vary."""
    interval = percentile(value, sample, freedom)
    if np.isfinite(value) and interval.high - interval.low < DEGENERATE:
        return Interval(value, *wilson(value * prompts, prompts))
    return interval


def prompt_mean(means: FloatArray, bootstrap: Draws, *, is_share: bool) -> Interval:
    """Mean over prompts of the prompt means (P,). The interval of a score (not a share) of one prompt is missing."""
    prompts = len(means)
    if prompts == 0:
        return MISSING
    value = float(means.mean())
    if prompts == 1 and not is_share:
        return Interval(value, float("nan"), float("nan"))
    sample, freedom = weights(prompts, bootstrap)[1:] @ means, max(prompts - 1, 1)
    return proportion(value, sample, prompts, freedom) if is_share else percentile(value, sample, freedom)


def difference(a: float, b: float, sample: FloatArray, prompts: int, freedom: float = np.inf) -> Difference:
    """The difference a - b of two shares from draws `sample` of it, in which both had the same `prompts`.

    The interval is the percentile interval. Where the draws do not vary it is Newcombe's (1998) square-and-add
    interval from the Wilson intervals of a and b on the number of prompts, which leaves out their correlation.
    The smallest detectable difference is what a test at 5 % finds with a power of 80 %, before Holm's correction:
    (z.975 + z.8) / z.975 times half the interval.
    """
    value = a - b
    if not np.isfinite(value) or not np.isfinite(sample).any():
        return UNKNOWN
    interval = percentile(value, sample, freedom)
    if interval.high - interval.low < DEGENERATE:
        (low_a, high_a), (low_b, high_b) = wilson(a * prompts, prompts), wilson(b * prompts, prompts)
        down, up = np.hypot(a - low_a, high_b - b), np.hypot(high_a - a, b - low_b)
        interval = Interval(value, max(-1.0, value - float(down)), min(1.0, value + float(up)))
    detectable = (interval.high - interval.low) / 2 * (Z + NORMAL.inv_cdf(POWER)) / Z
    return Difference(*interval, p_value(value, sample, prompts, freedom), detectable)


def p_value(value: float, sample: FloatArray, units: int, freedom: float = np.inf) -> float:
    """Two-sided bootstrap p-value of a difference from its draws.

    It is twice the smaller share of draws on either side of 0, one draw added to each. Holm's correction multiplies
    p, so a share of almost no draws will not do: with fewer than ten, p is twice the normal tail beyond the value in
    standard deviations of the draws. As for the interval, this is then read as a value of Student's t with `freedom`
    degrees. It is never smaller than a sign test on `units` prompts could give, 2^(1 - units).
    """
    finite = sample[np.isfinite(sample)]
    tail = min(int((finite <= 0).sum()), int((finite >= 0).sum()))
    p = 2 * (tail + 1) / (len(finite) + 1)
    if tail < FEW:
        spread = float(finite.std())
        beyond = 2 * NORMAL.cdf(-abs(value) / spread) if spread > DEGENERATE else 0.0
        p = min(2 * (FEW + 1) / (len(finite) + 1), beyond)
    if 0 < p < 1:
        p = 2 * NORMAL.cdf(-z_of_t(-NORMAL.inv_cdf(p / 2), freedom))
    return min(1.0, max(p, 2.0 ** (1 - units)))


def holm(p: FloatArray) -> FloatArray:
    """Holm (1979) adjusted p-values (N,) of a family; NaN stays NaN and is not part of the family."""
    adjusted = np.full(len(p), np.nan)
    order = np.argsort(p)[: int(np.isfinite(p).sum())]  # NaN sorts last
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted
