"""Each pair of defenses on what both were measured on: the paired differences of presence, and Holm's correction.

Both sides of a pair keep only the (concept, attack, budget, attack seed, prompt) that both have in `ok` cells, and are
resampled alike, so the difference is taken inside each draw. The worst case is the maximum over the arms that both
have, so it may differ from the leaderboard's, which takes all arms a defense has. Where the worst arms of both were
drawn anew, it is the difference of these two, by their fresh images alone.

Two questions are asked of each difference: would it be there for other concepts (concepts are drawn, too), and is it
there for these concepts (they are not)? Rows of one board met the same concepts: the second is the one for ranks.

Holm's family is all pairs of one model and scenario in one number, attack and budget: it corrects for the number of
defenses, not for looking at many budgets. The control is a member of the pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from leaderboards.bootstrap import Drawn, Draws, FloatArray, Resampled, combine
from leaderboards.confirm import together
from leaderboards.evidence import Evidence, Key
from leaderboards.intervals import EQUAL, difference, holm, widest
from leaderboards.panel import Panel, assemble, axes_of
from leaderboards.row import Row

FAMILY = ["model", "scenario", "number", "attack", "budget"]
_Own = tuple[Panel, Resampled]
COLUMNS = [
    *["model", "scenario", "defense_a", "defense_b", "number", "attack", "budget"],
    *["value", "ci_low", "ci_high", "p", "p_holm", "detectable"],
    *["fixed_low", "fixed_high", "p_fixed", "p_fixed_holm", "detectable_fixed", "concepts", "prompts"],
]


def compare(evidence: Evidence, rows: Sequence[Row], bootstrap: Draws) -> pd.DataFrame:
    """One row for each pair of defenses of a model and scenario, in worst_presence and in presence at each arm.

    value: that of `defense_a` less that of `defense_b`. detectable: the smallest difference that a comparison of this
    size finds, see `intervals.difference`. Columns with `fixed` are about these concepts.
    """
    found: list[dict[str, Any]] = []
    named = {tuple(row.names.values()): row.named for row in rows}
    for names, panels in _panels(evidence, rows):
        anew = together(evidence, {defense: named[*names.values(), defense] for defense in panels})
        fresh = {defense: (panel, panel.draw_prompts(bootstrap)) for defense, panel in anew.items()}
        drawn = {defense: (panel, panel.draw_prompts(bootstrap)) for defense, panel in panels.items()}
        for a, b in combinations(panels, 2):
            pair = {"defense_a": a, "defense_b": b}
            lines = list(_pair(drawn[a], drawn[b], bootstrap))
            if a in fresh and b in fresh:
                lines = [*_pair(fresh[a], fresh[b], bootstrap)][:1] + lines[1:]
            found += [names | pair | line for line in lines]
    table = pd.DataFrame(found, columns=COLUMNS).astype({"budget": "Int64"})
    for _, family in table.groupby(FAMILY, dropna=False):
        for p in ("p", "p_fixed"):
            table.loc[family.index, f"{p}_holm"] = holm(family[p].to_numpy(dtype=np.float64))
    return table


def _panels(evidence: Evidence, rows: Sequence[Row]) -> Iterator[tuple[dict[str, str], dict[str, Panel]]]:
    """For each model and scenario, the `ok` cells of each defense on common axes."""
    groups: dict[tuple[str, str], dict[str, list[Key]]] = {}
    for row in rows:
        names = row.names
        groups.setdefault((names["model"], names["scenario"]), {})[names["defense"]] = row.keys("ok")
    for (model, scenario), keys in groups.items():
        axes = axes_of(evidence, [key for own in keys.values() for key in own])
        panels = {defense: assemble(evidence, own, axes) for defense, own in keys.items()}
        yield {"model": model, "scenario": scenario}, panels


def _pair(a: _Own, b: _Own, bootstrap: Draws) -> Iterator[dict[str, Any]]:
    common = a[0].known & b[0].known
    if not common.any():
        return
    drawn = combine(*(_on(common, own, bootstrap) for own in (a, b)))
    sides = a[0].only(common), b[0].only(common)
    yield {"number": "worst_presence", "attack": None, "budget": None} | _Pair(sides, drawn).worst()
    for i, (attack, budget) in enumerate(a[0].axes.arms):
        if common[:, i].any():
            yield {"number": "presence", "attack": attack, "budget": budget} | _Pair(sides, drawn).arm(i)


def _on(common: npt.NDArray[np.bool_], own: _Own, bootstrap: Draws) -> Resampled:
    panel, drawn = own
    return drawn if (panel.known == common).all() else panel.only(common).draw_prompts(bootstrap)


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two defenses on what both have: their panels, and their draws."""

    sides: tuple[Panel, Panel]
    drawn: list[Drawn]

    def worst(self) -> dict[str, Any]:
        """The line of the worst case; each side has its maximum, taken again in each draw."""
        arms = tuple(int(np.nanargmax(one.means)) for one in self.drawn)
        samples = [
            np.fmax.reduce(getattr(self.drawn[0], what), axis=1) - np.fmax.reduce(getattr(self.drawn[1], what), axis=1)
            for what in ("draws", "fixed")
        ]
        return self.line(arms, samples, np.logical_or.reduce(self.sides[0].known, axis=(1, 2)))

    def arm(self, i: int) -> dict[str, Any]:
        """The line of one arm."""
        one, other = self.drawn
        samples = [one.draws[:, i] - other.draws[:, i], one.fixed[:, i] - other.fixed[:, i]]
        return self.line((i, i), samples, np.logical_or.reduce(self.sides[0].known[:, i], axis=1))

    def line(self, arms: tuple[int, ...], samples: list[FloatArray], known: npt.NDArray[np.bool_]) -> dict[str, Any]:
        """Both intervals of a difference, concepts drawn and not; `known`: which (concepts, prompts) both have."""
        one, other = self.drawn
        concepts, prompts = int((known.sum(axis=1) > 0).sum()), int(known.sum())
        means = float(one.means[arms[0]]), float(other.means[arms[1]])
        of_concepts, of_prompts = self.differing(arms)
        units = of_concepts if concepts > 1 else of_prompts
        own = difference(*means, samples[1], prompts, one.fixed_freedom, differing=of_prompts)
        wide = widest(difference(*means, samples[0], prompts, one.freedom, differing=units), own)
        names = ("ci_low", "ci_high", "p", "detectable"), ("fixed_low", "fixed_high", "p_fixed", "detectable_fixed")
        numbers = dict(zip(names[0], wide[1:], strict=True)) | dict(zip(names[1], own[1:], strict=True))
        return {"value": own.value} | numbers | {"concepts": concepts, "prompts": prompts}

    def differing(self, arms: tuple[int, ...]) -> tuple[int, int]:
        """The concepts, and the prompts, in which the two differ."""
        hits = [_over_seeds(side.hits[:, arm]) for side, arm in zip(self.sides, arms, strict=True)]
        apart = hits[0] - hits[1]
        known = np.isfinite(apart)
        total, count = np.where(known, apart, 0.0).sum(axis=1), known.sum(axis=1)
        means = np.divide(total, count, out=np.zeros(len(apart)), where=count > 0)
        return int((np.abs(means) >= EQUAL).sum()), int((np.abs(apart[known]) >= EQUAL).sum())


def _over_seeds(hits: FloatArray) -> FloatArray:
    """Mean over the finite seeds of (concepts, seeds, prompts); NaN where there is none."""
    known = np.isfinite(hits)
    total, count = np.where(known, hits, 0.0).sum(axis=1), known.sum(axis=1)
    mean: FloatArray = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean
