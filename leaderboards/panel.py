"""The cells of one defense as an array over concepts, arms, attack seeds and prompts; its worst case and its curves.

An arm is one attack at one budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leaderboards.cells import Draws
from leaderboards.evidence import Evidence, Key, aligned
from leaderboards.intervals import MISSING, FloatArray, IntArray, Interval, hierarchical, proportion

Arm = tuple[str, int]  # attack, budget


@dataclass(frozen=True, eq=False)
class Panel:
    """Prompt means of presence `hits` (concepts, arms, seeds, prompts), NaN where no cell was given.

    `prompts` counts the distinct prompts (concept, prompt) of each arm, `images` its scored images: both (arms,).
    """

    arms: tuple[Arm, ...]
    hits: FloatArray
    prompts: IntArray
    images: IntArray

    @property
    def attack_of(self) -> IntArray:
        """Index of each arm's attack, (arms,)."""
        return np.unique([attack for attack, _ in self.arms], return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True)
class Worst:
    """The largest presence over all arms, and the arm that has it: None if there is no cell."""

    interval: Interval
    arm: Arm | None


def assemble(evidence: Evidence, keys: Sequence[Key], arms: Sequence[Arm] | None = None) -> Panel:
    """Panel of the cells `keys` of one defense. `arms` may name more arms than the cells have; they stay NaN."""
    arms = sorted(arms if arms is not None else {(key.attack, key.budget) for key in keys})
    concepts, seeds = sorted({key.concept for key in keys}), sorted({key.seed for key in keys})
    samples = {key: sample for key in keys if (sample := evidence.sample(key, "presence"))}
    ids = {c: tuple(sorted({p for k, s in samples.items() if k.concept == c for p in s.prompts})) for c in concepts}
    width = max((len(prompts) for prompts in ids.values()), default=0)
    hits = np.full((len(concepts), len(arms), len(seeds), width), np.nan)
    images = np.zeros(len(arms), dtype=np.int64)
    at = {arm: position for position, arm in enumerate(arms)}
    for key, sample in samples.items():
        arm, prompts = at[key.attack, key.budget], ids[key.concept]
        hits[concepts.index(key.concept), arm, seeds.index(key.seed), : len(prompts)] = aligned(sample, prompts)
        images[arm] += sample.scored
    return Panel(tuple(arms), hits, np.isfinite(hits).any(axis=2).sum(axis=(0, 2)), images)


def worst_case(panel: Panel, bootstrap: Draws) -> Worst:
    """Largest presence over arms, the maximum taken again in each draw. Of equal arms the cheapest is named."""
    if not np.isfinite(panel.hits).any():
        return Worst(MISSING, None)
    means, draws = hierarchical(panel.hits, panel.attack_of, bootstrap.draws, bootstrap.seed)
    largest = np.fmax.reduce(draws, axis=1)  # a maximum that passes over NaN, and is NaN where all are
    value = float(np.nanmax(means))
    equal = [i for i in range(len(means)) if means[i] >= value - 1e-12]
    named = min(equal, key=lambda i: (panel.arms[i][1], panel.arms[i][0] != "none", panel.arms[i][0]))
    return Worst(proportion(value, largest, int(panel.prompts[named])), panel.arms[named])


def by_arm(panel: Panel, bootstrap: Draws) -> list[dict[str, Any]]:
    """Presence, its interval and n of each arm."""
    if not np.isfinite(panel.hits).any():
        intervals = [MISSING] * len(panel.arms)
    else:
        means, draws = hierarchical(panel.hits, panel.attack_of, bootstrap.draws, bootstrap.seed)
        columns = zip(means, draws.T, panel.prompts, strict=True)
        intervals = [proportion(float(mean), draw, int(prompts)) for mean, draw, prompts in columns]
    return [
        {"attack": attack, "budget": budget, "presence": each.value, "ci_low": each.low, "ci_high": each.high, "n": n}
        for (attack, budget), each, n in zip(panel.arms, intervals, panel.images.tolist(), strict=True)
    ]
