"""Bootstrap draws: who is drawn how often, and the mean over prompts, attack seeds and concepts in each draw.

Units are nested as concept > attack seed > prompt > image. Images of one prompt are not independent,
so nothing here pools them: callers pass prompt means, and prompts are what is resampled.

Draws are weights: n - 1 of n units with replacement, whose variance of the mean is unbiased also with few units
(Rao and Wu 1988, "Resampling inference with complex survey data"); n of n would be too narrow by (n - 1) / n.
Each kind of unit has a stream of its own, named by what is drawn: the prompts of a concept are drawn alike for each
defense and attack, so that whatever is compared is compared inside a draw, and nothing depends on what else is there.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Draws:
    """Number and seed of the draws."""

    draws: int
    seed: int


def resample(units: int, draws: int, rng: np.random.Generator) -> FloatArray:
    """Weights of bootstrap draws, (draws, units), integers >= 0. One unit is not resampled: its weight is 1."""
    if units == 1:
        return np.ones((draws, 1))
    return rng.multinomial(units - 1, np.full(units, 1 / units), size=draws).astype(np.float64)


@lru_cache(maxsize=256)
def weights(units: int, bootstrap: Draws, stream: str = "") -> FloatArray:
    """Read-only weights (draws, units) of `stream`; each draw sums to 1."""
    rng = np.random.default_rng([bootstrap.seed, zlib.crc32(stream.encode())])
    drawn = resample(units, bootstrap.draws, rng) / max(units - 1, 1)
    drawn.flags.writeable = False
    return drawn


def hierarchical(
    hits: FloatArray, attacks: Sequence[str], concepts: Sequence[str], bootstrap: Draws, prompts: str = "prompts"
) -> tuple[FloatArray, FloatArray]:
    """Mean over prompts, then attack seeds, then concepts of each arm, and the same in each bootstrap draw.

    Args:
        hits: prompt means (concepts, arms, seeds, prompts), NaN where nothing was measured. An arm is one
            (attack, budget); position p is the same prompt in each arm and seed of a concept.
        attacks: the attack of each arm: its arms share resampled seeds, since they are one run's snapshots.
        concepts: the concepts' names.
        prompts: what names the stream of the prompts.

    Returns:
        means (arms,) and draws (draws, arms). Concepts, the seeds of each attack and the prompts of each concept are
        resampled; prompts are shared by seeds and arms (they are crossed with seeds: the same prompts are drawn for
        each), so that a maximum over arms may be taken inside a draw.
    """
    known = [i for i in range(len(hits)) if np.isfinite(hits[i]).any()]
    if not known:
        return np.full(hits.shape[1], np.nan), np.full((bootstrap.draws, hits.shape[1]), np.nan)
    blocks = [(hits[i], concepts[i]) for i in known]
    once = np.stack([_concept(block, attacks, None, "") for block, _ in blocks], axis=1)
    each = np.stack([_concept(block, attacks, bootstrap, f"{prompts}/{name}") for block, name in blocks], axis=1)
    by_concept = weights(len(known), bootstrap, "concepts")
    return _weighted_mean(once, np.ones((1, len(known))))[0], _weighted_mean(each, by_concept)


def _concept(block: FloatArray, attacks: Sequence[str], bootstrap: Draws | None, stream: str) -> FloatArray:
    """Means (draws, arms) of one concept's `block` (arms, seeds, prompts); one, with equal weights, if not drawn."""
    block = block[:, :, np.isfinite(block).any(axis=(0, 1))]
    by_prompt = _weights(block.shape[2], bootstrap, stream)
    means = np.full((len(by_prompt), len(block)), np.nan)
    names = np.asarray(attacks)
    for attack in sorted(set(attacks)):
        own = names == attack
        part = block[own]
        part = part[:, np.isfinite(part).any(axis=(0, 2))]  # the seeds this attack ran with
        if part.shape[1]:
            by_seed = _weights(part.shape[1], bootstrap, f"seeds of {attack}/{stream}")
            means[:, own] = _weighted_mean(_prompt_means(part, by_prompt), by_seed)
    return means


def _weights(units: int, bootstrap: Draws | None, stream: str) -> FloatArray:
    return weights(units, bootstrap, stream) if bootstrap else np.ones((1, units))


def _prompt_means(part: FloatArray, by_prompt: FloatArray) -> FloatArray:
    """Weighted means over the prompts of `part` (arms, seeds, prompts) -> (draws, seeds, arms)."""
    flat = part.transpose(1, 0, 2).reshape(-1, part.shape[2])  # (seeds * arms, prompts)
    known = np.isfinite(flat)
    total = by_prompt @ np.where(known, flat, 0.0).T  # NaN has weight 0 below: it leaves the mean, it does not count
    count = by_prompt.sum(axis=1, keepdims=True) if known.all() else by_prompt @ known.T.astype(np.float64)
    return _divide(total, count).reshape(len(by_prompt), part.shape[1], part.shape[0])


def _weighted_mean(values: FloatArray, by_unit: FloatArray) -> FloatArray:
    """Mean over axis 1 of (draws, units, arms) with weights (draws, units), over the finite values only."""
    known = np.isfinite(values)
    total = np.einsum("dua,du->da", np.where(known, values, 0.0), by_unit)
    return _divide(total, np.einsum("dua,du->da", known.astype(np.float64), by_unit))


def _divide(total: FloatArray, count: FloatArray) -> FloatArray:
    """total / count, NaN where count is 0."""
    count = np.broadcast_to(count, total.shape)
    mean: FloatArray = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean
