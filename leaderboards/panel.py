"""Cells as arrays over concepts, arms, attack seeds and prompts; their worst case and their curves.

An arm is one attack at one budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from leaderboards.bootstrap import Drawn, Draws, FloatArray, IntArray, Resampled, combine, draw_prompts
from leaderboards.evidence import Evidence, Key, aligned
from leaderboards.intervals import MISSING, Interval, proportions

Arm = tuple[str, int]  # attack, budget


@dataclass(frozen=True, eq=False)
class Axes:
    """What the entries of a panel are. `prompts` has the ids (P,) for each concept, in ascending order.

    seeds: the runs, each the seed of the defense's training and that of the attack.
    """

    concepts: tuple[str, ...]
    arms: tuple[Arm, ...]
    seeds: tuple[tuple[int, int], ...]
    prompts: dict[str, IntArray]


@dataclass(frozen=True, eq=False)
class Panel:
    """Prompt means `hits` (concepts, arms, seeds, prompts) of one defense, NaN where no cell was given."""

    axes: Axes
    hits: FloatArray

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Where something was measured, in the shape of `hits`."""
        return np.isfinite(self.hits)

    @property
    def prompts(self) -> IntArray:
        """Distinct (concept, prompt) of each arm, (arms,)."""
        return self.known.any(axis=2).sum(axis=(0, 2)).astype(np.int64)

    def only(self, known: npt.NDArray[np.bool_]) -> "Panel":
        """This panel without what is not `known`."""
        return replace(self, hits=np.where(known, self.hits, np.nan))

    def draw_prompts(self, bootstrap: Draws, prompts: str = "prompts") -> Resampled:
        """The panel with its prompts drawn, for `bootstrap.combine`."""
        attacks = [attack for attack, _ in self.axes.arms]
        return draw_prompts(self.hits, attacks, self.axes.concepts, bootstrap, prompts)

    def bootstrap(self, bootstrap: Draws, prompts: str = "prompts") -> Drawn:
        """Means and draws of the arms."""
        return combine(self.draw_prompts(bootstrap, prompts))[0]


@dataclass(frozen=True)
class Worst:
    """The largest presence over all arms, the arm that has it (None if there is no cell), and its draws (draws,).

    fixed: the same number with the interval for these concepts. fresh: the images that the number is of, where it is
    that of the named arm drawn anew (see `leaderboards.confirm`).
    """

    interval: Interval
    arm: Arm | None
    draws: FloatArray
    fixed: Interval = MISSING
    fresh: Panel | None = None


def axes_of(evidence: Evidence, keys: Sequence[Key], column: str = "presence") -> Axes:
    """Axes on which the cells `keys` of one model and scenario fit."""
    concepts, seeds = sorted({key.concept for key in keys}), sorted({key.run for key in keys})
    ids: dict[str, list[IntArray]] = {concept: [] for concept in concepts}
    for key in keys:
        if sample := evidence.sample(key, column):
            ids[key.concept].append(sample.prompts)
    empty = np.array([], dtype=np.int64)
    prompts = {concept: np.unique(np.concatenate([empty, *found])) for concept, found in ids.items()}
    return Axes(tuple(concepts), tuple(sorted({(key.attack, key.budget) for key in keys})), tuple(seeds), prompts)


def assemble(evidence: Evidence, keys: Sequence[Key], axes: Axes | None = None, column: str = "presence") -> Panel:
    """Panel of the cells `keys` of one defense, on `axes` or their own. Arms without a cell stay NaN."""
    axes = axes or axes_of(evidence, keys, column)
    shape = len(axes.concepts), len(axes.arms), len(axes.seeds), max(map(len, axes.prompts.values()), default=0)
    hits = np.full(shape, np.nan)
    for key in keys:
        if sample := evidence.sample(key, column):
            arm, prompts = axes.arms.index((key.attack, key.budget)), axes.prompts[key.concept]
            at = axes.concepts.index(key.concept), arm, axes.seeds.index(key.run)
            hits[at][: len(prompts)] = aligned(sample, prompts)
    return Panel(axes, hits)


def worst_case(panel: Panel, bootstrap: Draws) -> Worst:
    """Largest presence over arms, the maximum taken again in each draw. Of equal arms the cheapest is named."""
    if not panel.known.any():
        return Worst(MISSING, None, np.full(bootstrap.draws, np.nan))
    drawn = panel.bootstrap(bootstrap)
    means = drawn.means
    # a maximum that passes over NaN, and is NaN where all are
    largest, held = (np.fmax.reduce(draws, axis=1) for draws in (drawn.draws, drawn.fixed))
    value = float(np.nanmax(means))
    arms = panel.axes.arms
    equal = [i for i in range(len(means)) if means[i] >= value - 1e-12]
    named = min(equal, key=lambda i: (arms[i][1], arms[i][0] != "none", arms[i][0]))
    prompts = int(panel.prompts[named])
    both = proportions(value, drawn, largest, held, prompts)
    return Worst(both.general, arms[named], largest, both.fixed)


def by_arm(panel: Panel, bootstrap: Draws) -> list[dict[str, Any]]:
    """Presence of each arm, its interval, and that for these concepts."""
    found = []
    drawn = panel.bootstrap(bootstrap) if panel.known.any() else None
    for i, ((attack, budget), prompts) in enumerate(zip(panel.axes.arms, panel.prompts.tolist(), strict=True)):
        each = fixed = MISSING
        if drawn:
            each, fixed = proportions(float(drawn.means[i]), drawn, drawn.draws[:, i], drawn.fixed[:, i], prompts)
        ends = {"ci_low": each.low, "ci_high": each.high, "fixed_low": fixed.low, "fixed_high": fixed.high}
        found.append({"attack": attack, "budget": budget, "presence": each.value} | ends)
    return found
