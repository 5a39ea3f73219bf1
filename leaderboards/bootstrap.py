"""Bootstrap draws: who is drawn how often, and the mean over prompts, attack seeds and concepts in each draw.

Units are nested as concept > attack seed > prompt > image, with prompts crossed with seeds. Images of one prompt are
not independent, so nothing here pools them: callers pass prompt means, and prompts are the smallest unit drawn.

A draw is a vector of weights: n - 1 of n units with replacement, whose variance of the mean is unbiased also with few
units (Rao and Wu 1988, "Resampling inference with complex survey data"); n of n would be too narrow by (n - 1) / n.

The spread s2 between units already holds what is below them, v, which is drawn too: with both, intervals would be too
wide. So weights of seeds and of concepts are pulled to their mean by a factor k with k^2 = (s2 - v) / (s2 + v), from
which the variance of a mean of n units is s2 / n in all (v / n if s2 < v, which is then noise). Each arm has a k of its
own: an arm whose concepts differ is no better known for standing beside arms whose concepts agree. Where concepts
happen to differ by less than v, deviations are made smaller by sqrt(s2 / v), so that the variance is s2 / n there, too:
with few concepts it is Student's t that makes up for that, and s2 / n is what it asks for.

The same draws are also combined without drawing concepts: what is known of these concepts, not of concepts in general.

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
    """The means (arms,), the same in each draw (draws, arms), and the degrees of freedom of what varies most.

    fixed: the draws (draws, arms) in which the concepts stay as they are, with their degrees of freedom.
    """

    means: FloatArray
    draws: FloatArray
    freedom: float
    fixed: FloatArray
    fixed_freedom: float


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
    concepts, arms = panels[0].shape[1:]
    pull, _ = _pull([(_contrast([block.values for block in same]), same[0].arms) for same in blocks], arms)
    by_concept = [np.full(panel.shape, np.nan) for panel in panels]
    for same in blocks:
        for block, into in zip(same, by_concept, strict=True):
            into[:, block.concept, block.arms] = _mean(block.values, block.by_seed, pull[block.arms])
    every = np.ones(arms, dtype=bool)
    pull, scale = _pull([(_contrast(by_concept), every)], arms)
    drawn = [_mean(v, panel.by_concept, pull) for v, panel in zip(by_concept, panels, strict=True)]
    drawn = [rows[:1] + scale * (rows - rows[:1]) for rows in drawn]
    held = [_mean(v, panel.by_concept, np.zeros(arms)) for v, panel in zip(by_concept, panels, strict=True)]
    within = _freedom(blocks, _contrast(held), panels[0])
    freedom = within if concepts == 1 else max(float(concepts - 1), 1.0)
    return [Drawn(rows[0], rows[1:], freedom, own[1:], within) for rows, own in zip(drawn, held, strict=True)]


def _contrast(values: Sequence[FloatArray]) -> FloatArray:
    return values[0] if len(values) == 1 else values[0] - values[1]


def _pull(blocks: Sequence[tuple[FloatArray, npt.NDArray[np.bool_]]], arms: int) -> tuple[FloatArray, FloatArray]:
    """k of the module's docstring for each arm (arms,), and sqrt(s2 / v) where that is below 1, else 1, from blocks
    (1 + draws, units, own arms) and which arms these are.

    Where nothing varies k is 1; where an arm has one unit, 0.
    """
    between, below, is_drawn = np.zeros(arms), np.zeros(arms), np.zeros(arms, dtype=bool)
    for values, own in blocks:
        known = np.isfinite(values).all(axis=0)  # (units, own arms)
        units = known.sum(axis=0)
        several = np.maximum(units, 2)
        apart = np.where(known, values - _divide(np.where(known, values, 0.0).sum(axis=1), units)[:, None], 0.0)
        spread = (apart[0] ** 2).sum(axis=0) / (several - 1)
        noise = apart[1:].var(axis=0).sum(axis=0) / (several - 1)
        at = np.flatnonzero(own)[units > 1]
        between[at] += spread[units > 1]
        below[at] += noise[units > 1]
        is_drawn[at] = True
    total = between + below
    share = np.divide(np.maximum(between - below, 0.0), total, out=np.ones(arms), where=total > 0)
    less = np.divide(between, below, out=np.ones(arms), where=(below > 0) & is_drawn)
    pull: FloatArray = np.where(is_drawn, np.sqrt(share), 0.0)
    return pull, np.sqrt(less.clip(max=1.0))


def _freedom(blocks: Sequence[tuple[Block, ...]], found: FloatArray, panel: Resampled) -> float:
    """Satterthwaite's degrees of freedom from the seeds and prompts of the concepts, which are not drawn themselves."""
    arms = panel.shape[2]
    prompts_only = np.full((panel.shape[0], panel.shape[1], arms), np.nan)
    seeds = np.zeros(panel.shape[1], dtype=np.int64)
    for same in blocks:
        block = same[0]
        means = _contrast([_mean(each.values, each.by_seed, np.zeros(int(each.arms.sum()))) for each in same])
        prompts_only[:, block.concept, block.arms] = means
        seeds[block.concept] = max(seeds[block.concept], block.values.shape[1])
    still = _mean(prompts_only, panel.by_concept, np.zeros(arms))
    total, freedom = _spread(found), int((seeds - 1).clip(min=0).sum())
    share = min(max(1 - _spread(still) / total, 0.0), 1.0) if total > 0 else 0.0
    parts = [share**2 / freedom] if freedom > 0 else []
    prompts = panel.prompts - panel.shape[1]
    parts += [(1 - share) ** 2 / prompts] if prompts > 0 else []
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


def _mean(values: FloatArray, by_unit: FloatArray, pull: FloatArray) -> FloatArray:
    """Mean over axis 1 of (rows, units, arms), finite values only; weights (rows, units) are pulled to their mean.

    `pull` (arms,): 1 for the weights as they are, 0 for equal ones.
    """
    units = values.shape[1]
    if units < 2:
        return values[:, 0] if units else np.full((len(values), values.shape[2]), np.nan)
    known = np.isfinite(values)
    if known.all():
        return _weighted(values, by_unit, pull)
    return _divide(
        _weighted(np.where(known, values, 0.0), by_unit, pull), _weighted(known.astype(np.float64), by_unit, pull)
    )


def _weighted(values: FloatArray, by_unit: FloatArray, pull: FloatArray) -> FloatArray:
    """Sum over axis 1 of (rows, units, arms), with weights (rows, units) of which each arm takes the share `pull`."""
    level = values.mean(axis=1)
    if not pull.any():
        return level
    drawn: FloatArray = np.matmul(by_unit[:, None], values)[:, 0]
    return pull * drawn + (1 - pull) * level


def _divide(total: FloatArray, count: FloatArray) -> FloatArray:
    """total / count, NaN where count is 0."""
    mean: FloatArray = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean
