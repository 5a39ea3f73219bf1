"""Intervals and comparisons.

Units are nested as concept > attack seed > prompt > image. Images of one prompt are not independent,
so nothing here pools them: callers pass prompt means, and prompts are what is resampled.

Bootstrap draws are weights: n - 1 of n units with replacement, whose variance of the mean is unbiased also with few
units (Rao and Wu 1988, "Resampling inference with complex survey data"); n of n would be too narrow by (n - 1) / n.
"""

from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

LEVEL = 0.95


class Interval(NamedTuple):
    """A number with its two-sided interval; NaN where it is missing."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A paired difference a - b, its interval and its two-sided bootstrap p-value in (0, 1]."""

    value: float
    low: float
    high: float
    p: float


MISSING = Interval(float("nan"), float("nan"), float("nan"))


def wilson(hits: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson (1927) score interval of the proportion hits / n, in [0, 1]; `hits` may be fractional."""
    if n <= 0:
        return float("nan"), float("nan")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = hits / n
    centre = share + z * z / (2 * n)
    half = z * float(np.sqrt(max(share * (1 - share), 0.0) / n + z * z / (4 * n * n)))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def resample(units: int, draws: int, rng: np.random.Generator) -> FloatArray:
    """Weights of bootstrap draws, (draws, units), integers >= 0. One unit is not resampled: its weight is 1."""
    if units == 1:
        return np.ones((draws, 1))
    return rng.multinomial(units - 1, np.full(units, 1 / units), size=draws).astype(np.float64)


@lru_cache(maxsize=64)
def prompt_weights(prompts: int, draws: int, seed: int) -> FloatArray:
    """Read-only weights (draws, prompts), the same for each cell with as many prompts, so that cells stay paired."""
    weights = resample(prompts, draws, np.random.default_rng(seed))
    weights.flags.writeable = False
    return weights


def percentile(value: float, sample: FloatArray, level: float = LEVEL) -> Interval:
    """Percentile interval from the finite draws `sample` (draws,), widened to hold `value`.

    A maximum taken in each draw is biased upwards, and so could leave the point estimate outside.
    """
    finite = sample[np.isfinite(sample)]
    if not np.isfinite(value) or finite.size == 0:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, min(float(low), value), max(float(high), value))


def proportion(value: float, sample: FloatArray, prompts: int) -> Interval:
    """Percentile interval of a share in [0, 1]; Wilson on the number of prompts where the draws do not vary."""
    interval = percentile(value, sample)
    if np.isfinite(value) and interval.high - interval.low < 1e-12:
        return Interval(value, *wilson(value * prompts, prompts))
    return interval


def prompt_mean(means: FloatArray, draws: int, seed: int, *, is_share: bool) -> Interval:
    """Mean over prompts of the prompt means (P,). The interval of a score (not a share) of one prompt is missing."""
    prompts = len(means)
    if prompts == 0:
        return MISSING
    value = float(means.mean())
    if prompts == 1 and not is_share:
        return Interval(value, float("nan"), float("nan"))
    weights = prompt_weights(prompts, draws, seed)
    sample = weights @ means / weights.sum(axis=1)
    return proportion(value, sample, prompts) if is_share else percentile(value, sample)


def hierarchical(hits: FloatArray, attack_of: IntArray, draws: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Mean over prompts, then attack seeds, then concepts of each arm, and the same in each bootstrap draw.

    Args:
        hits: prompt means (concepts, arms, seeds, prompts), NaN where nothing was measured. An arm is one
            (attack, budget); position p is the same prompt in each arm and seed of a concept.
        attack_of: (arms,), the attack of an arm: its arms share resampled seeds, since they are one run's snapshots.

    Returns:
        means (arms,) and draws (draws, arms). Concepts, the seeds of each attack and the prompts of each concept are
        resampled; prompts are shared by seeds and arms (they are crossed with seeds: the same prompts are drawn for
        each), so that a maximum over arms may be taken inside a draw.
    """
    rng = np.random.default_rng(seed)
    once = np.stack([_concept_means(block, attack_of, 1, None) for block in hits], axis=1)
    each = np.stack([_concept_means(block, attack_of, draws, rng) for block in hits], axis=1)
    weights = resample(len(hits), draws, rng)
    return _weighted_mean(once, np.ones((1, len(hits), 1)))[0], _weighted_mean(each, weights[:, :, None])


def _concept_means(block: FloatArray, attack_of: IntArray, draws: int, rng: np.random.Generator | None) -> FloatArray:
    """Means (draws, arms) of one concept's `block` (arms, seeds, prompts); all weights are 1 without `rng`."""
    block = block[:, :, np.isfinite(block).any(axis=(0, 1))]
    arms, _, prompts = block.shape
    means = np.full((draws, arms), np.nan)
    if prompts == 0:
        return means
    by_prompt = resample(prompts, draws, rng) if rng else np.ones((draws, prompts))
    for attack in np.unique(attack_of):
        own = attack_of == attack
        part = block[own]
        part = part[:, np.isfinite(part).any(axis=(0, 2))]  # the seeds this attack ran with
        seeds = part.shape[1]
        if seeds:
            by_seed = resample(seeds, draws, rng) if rng else np.ones((draws, seeds))
            means[:, own] = _weighted_mean(_prompt_means(part, by_prompt), by_seed[:, :, None])
    return means


def _prompt_means(part: FloatArray, by_prompt: FloatArray) -> FloatArray:
    """Weighted means over the prompts of `part` (arms, seeds, prompts) -> (draws, seeds, arms)."""
    flat = part.transpose(1, 0, 2).reshape(-1, part.shape[2])  # (seeds * arms, prompts)
    total = by_prompt @ np.nan_to_num(flat).T  # NaN has weight 0 below: it leaves the mean, it does not count as 0
    count = by_prompt @ np.isfinite(flat).T
    return _divide(total, count).reshape(len(by_prompt), part.shape[1], part.shape[0])


def _weighted_mean(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Mean over axis 1 of (draws, units, arms) with weights (draws, units, 1), over the finite values only."""
    total = (np.nan_to_num(values) * weights).sum(axis=1)
    return _divide(total, (np.isfinite(values) * weights).sum(axis=1))


def _divide(total: FloatArray, count: FloatArray) -> FloatArray:
    """total / count, NaN where count is 0."""
    mean: FloatArray = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def paired_difference(a: FloatArray, b: FloatArray, draws: int = 1000, seed: int = 0) -> Difference:
    """Mean of a - b over the prompts (P,) that both have, by paired prompt bootstrap.

    p is twice the smaller share of draws on either side of 0, with one draw added to each so that it is never 0.
    """
    gap = a - b
    gap = gap[np.isfinite(gap)]
    if len(gap) < 2:
        value = float(gap.mean()) if len(gap) else float("nan")
        return Difference(value, float("nan"), float("nan"), float("nan"))
    weights = prompt_weights(len(gap), draws, seed)
    sample = weights @ gap / weights.sum(axis=1)
    tail = min(int((sample <= 0).sum()), int((sample >= 0).sum()))
    return Difference(*percentile(float(gap.mean()), sample), min(1.0, 2 * (tail + 1) / (draws + 1)))


def holm(p: FloatArray) -> FloatArray:
    """Holm (1979) adjusted p-values (N,) of a family; NaN stays NaN and is not part of the family."""
    adjusted = np.full(len(p), np.nan)
    order = np.argsort(p)[: int(np.isfinite(p).sum())]  # NaN sorts last
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted
