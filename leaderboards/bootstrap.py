"""Bootstrap draws: who is drawn how often, and the mean over prompts, attack seeds and concepts in each draw.

Units are nested as concept > attack seed > prompt > image, with prompts crossed with seeds. Images of one prompt are
not independent, so nothing here pools them: callers pass prompt means, and prompts are the smallest unit drawn.

A draw is a vector of weights: n - 1 of n units with replacement, whose variance of the mean is unbiased also with few
units (Rao and Wu 1988, "Resampling inference with complex survey data"); n of n would be too narrow by (n - 1) / n.

The spread s2 between units already holds what is below them, v, which is drawn too: with both, intervals would be too
wide. So weights of seeds and of concepts are pulled to their mean by a factor k with k^2 = (s2 - v) / (s2 + v), from
which the variance of a mean of n units is s2 / n in all (v / n if s2 < v, which is then noise).

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


@dataclass(frozen=True, eq=False)
class Drawn:
    """The means (arms,), the same in each draw (draws, arms), and the degrees of freedom of what varies most."""

    means: FloatArray
    draws: FloatArray
    freedom: float


@dataclass(frozen=True, eq=False)
class Block:
    """One concept under one attack with its prompts drawn: values (1 + draws, seeds, own arms); row 0 is not drawn."""

    concept: int
    arms: npt.NDArray[np.bool_]
    values: FloatArray
    by_seed: FloatArray


@dataclass(frozen=True, eq=False)
class Resampled:
    """A panel whose prompts are drawn, but no seeds and concepts yet. `prompts` is their number in all."""

    blocks: tuple[Block, ...]
    shape: tuple[int, int, int]  # 1 + draws, concepts, arms
    by_concept: FloatArray
    prompts: int


def resample(units: int, draws: int, rng: np.random.Generator) -> FloatArray:
    """Weights of bootstrap draws, (draws, units), integers >= 0. One unit is not resampled: its weight is 1."""
    if units < 2:
        return np.ones((draws, units))
    return rng.multinomial(units - 1, np.full(units, 1 / units), size=draws).astype(np.float64)


@lru_cache(maxsize=256)
def weights(units: int, bootstrap: Draws, stream: str = "") -> FloatArray:
    """Read-only weights (1 + draws, units) of `stream`; each row sums to 1, and the first has equal weights."""
    rng = np.random.default_rng([bootstrap.seed, zlib.crc32(stream.encode())])
    drawn = resample(units, bootstrap.draws, rng) / max(units - 1, 1)
    rows = np.vstack([np.full((1, units), 1 / max(units, 1)), drawn])
    rows.flags.writeable = False
    return rows


def hierarchical(
    hits: FloatArray, attacks: Sequence[str], concepts: Sequence[str], bootstrap: Draws, prompts: str = "prompts"
) -> Drawn:
    """Mean over prompts, then attack seeds, then concepts of each arm, and the same in each bootstrap draw.

    Arguments as in `draw_prompts`. An arm that was not measured is NaN.
    """
    return combine(draw_prompts(hits, attacks, concepts, bootstrap, prompts))[0]


def draw_prompts(
    hits: FloatArray, attacks: Sequence[str], concepts: Sequence[str], bootstrap: Draws, prompts: str = "prompts"
) -> Resampled:
    """Draw the prompts of each concept; seeds and arms share them, so that a maximum may be taken inside a draw.

    Args:
        hits: prompt means (concepts, arms, seeds, prompts), NaN where nothing was measured. An arm is one
            (attack, budget); position p is the same prompt in each arm and seed of a concept.
        attacks: the attack of each arm: its arms share resampled seeds, since they are one run's snapshots.
        concepts: the concepts' names.
        prompts: what names the stream of the prompts.
    """
    known = [i for i in range(len(hits)) if np.isfinite(hits[i]).any()]
    names, blocks, total = np.asarray(attacks), [], 0
    for at, i in enumerate(known):
        hit = hits[i][:, :, np.isfinite(hits[i]).any(axis=(0, 1))]
        stream = f"{prompts}/{concepts[i]}"
        by_prompt = weights(hit.shape[2], bootstrap, stream)
        total += hit.shape[2]
        for attack in sorted(set(attacks)):
            own = names == attack
            part = hit[own]
            part = part[:, np.isfinite(part).any(axis=(0, 2))]  # the seeds this attack ran with
            if part.shape[1]:
                by_seed = weights(part.shape[1], bootstrap, f"seeds of {attack}/{stream}")
                blocks.append(Block(at, own, _prompt_means(part, by_prompt), by_seed))
    shape = (1 + bootstrap.draws, len(known), hits.shape[1])
    return Resampled(tuple(blocks), shape, weights(len(known), bootstrap, "concepts"), total)


def combine(*panels: Resampled) -> list[Drawn]:
    """Draw seeds and concepts. Several panels must have the same blocks: they are drawn to be compared with each other.

    What they share then cancels in their difference, and so counts for nothing in how far weights are pulled.
    """
    blocks = list(zip(*(panel.blocks for panel in panels), strict=True))
    pull = _pull([_contrast([block.values for block in same]) for same in blocks])
    by_concept = [np.full(panel.shape, np.nan) for panel in panels]
    for same in blocks:
        for block, into in zip(same, by_concept, strict=True):
            into[:, block.concept, block.arms] = _mean(block.values, block.by_seed, pull)
    pull_concepts = _pull([_contrast(by_concept)])
    found = [_mean(v, panel.by_concept, pull_concepts) for v, panel in zip(by_concept, panels, strict=True)]
    freedom = _freedom(blocks, _contrast(found), panels[0])
    return [Drawn(rows[0], rows[1:], freedom) for rows in found]


def _contrast(values: Sequence[FloatArray]) -> FloatArray:
    return values[0] if len(values) == 1 else values[0] - values[1]


def _pull(blocks: Sequence[FloatArray]) -> float:
    """k of the module's docstring, from the arms (1 + draws, units, arms) that all units of a block have."""
    between = below = 0.0
    for values in blocks:
        units = values.shape[1]
        values = values[:, :, np.isfinite(values).all(axis=(0, 1))]
        if units > 1 and values.shape[2]:
            apart = values - values.mean(axis=1, keepdims=True)
            between += float(values[0].var(axis=0, ddof=1).sum())
            below += float(apart[1:].var(axis=0).sum()) / (units - 1)
    if between + below == 0:
        return 1.0
    return float(np.sqrt(max(between - below, 0.0) / (between + below)))


def _freedom(blocks: Sequence[tuple[Block, ...]], found: FloatArray, panel: Resampled) -> float:
    """Concepts - 1; of one concept, Satterthwaite's from its seeds and prompts."""
    concepts = panel.shape[1]
    if concepts != 1:
        return max(float(concepts - 1), 1.0)
    seeds = max(same[0].values.shape[1] for same in blocks)
    prompts_only = 0.0
    for same in blocks:
        means = _contrast([_mean(block.values, block.by_seed, 0.0) for block in same])
        prompts_only += _spread(means)
    total = _spread(found)
    share = min(max(1 - prompts_only / total, 0.0), 1.0) if total > 0 else 0.0
    parts = [share**2 / (seeds - 1)] if seeds > 1 else []
    parts += [(1 - share) ** 2 / (panel.prompts - 1)] if panel.prompts > 1 else []
    return 1 / sum(parts) if sum(parts) > 0 else 1.0


def _spread(rows: FloatArray) -> float:
    known = rows[1:, np.isfinite(rows).all(axis=0)]
    return float(known.var(axis=0).sum())


def _prompt_means(part: FloatArray, by_prompt: FloatArray) -> FloatArray:
    """Weighted means over the prompts of `part` (arms, seeds, prompts) -> (1 + draws, seeds, arms)."""
    flat = part.transpose(1, 0, 2).reshape(-1, part.shape[2])  # (seeds * arms, prompts)
    known = np.isfinite(flat)
    total = by_prompt @ np.where(known, flat, 0.0).T  # NaN has weight 0 below: it leaves the mean, it does not count
    mean = total if known.all() else _divide(total, by_prompt @ known.T.astype(np.float64))
    return mean.reshape(len(by_prompt), part.shape[1], part.shape[0])


def _mean(values: FloatArray, by_unit: FloatArray, pull: float) -> FloatArray:
    """Mean over axis 1 of (rows, units, arms), finite values only; weights (rows, units) are pulled to their mean."""
    if values.shape[1] < 2:
        return values[:, 0] if values.shape[1] else np.full((len(values), values.shape[2]), np.nan)
    pulled = pull * by_unit + (1 - pull) / by_unit.shape[1]
    known = np.isfinite(values)
    if known.all():
        mean: FloatArray = np.matmul(pulled[:, None], values)[:, 0]
        return mean
    total = np.matmul(pulled[:, None], np.where(known, values, 0.0))[:, 0]
    return _divide(total, np.matmul(pulled[:, None], known.astype(np.float64))[:, 0])


def _divide(total: FloatArray, count: FloatArray) -> FloatArray:
    """total / count, NaN where count is 0."""
    mean: FloatArray = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean
