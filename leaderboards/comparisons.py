"""Each pair of defenses on what both were measured on: the paired differences of presence, and Holm's correction.

Both sides of a pair keep only the (concept, attack, budget, attack seed, prompt) that both have in `ok` cells, and are
resampled alike, so the difference is taken inside each draw. The worst case is the maximum over the arms that both
have, so it may differ from the leaderboard's, which takes all arms a defense has.

Holm's family is all pairs of one model and scenario in one number, attack and budget: it corrects for the number of
defenses, not for looking at many budgets. The control is a member of the pairs.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from leaderboards.bootstrap import Draws, FloatArray, Resampled, combine
from leaderboards.evidence import Evidence, Key
from leaderboards.intervals import difference, holm
from leaderboards.panel import Panel, assemble, axes_of
from leaderboards.row import Row

FAMILY = ["model", "scenario", "number", "attack", "budget"]
_Own = tuple[Panel, Resampled]
COLUMNS = [
    *["model", "scenario", "defense_a", "defense_b", "number", "attack", "budget"],
    *["value", "ci_low", "ci_high", "p", "p_holm", "detectable", "concepts", "prompts"],
]


def compare(evidence: Evidence, rows: Sequence[Row], bootstrap: Draws) -> pd.DataFrame:
    """One row for each pair of defenses of a model and scenario, in worst_presence and in presence at each arm.

    value: that of `defense_a` less that of `defense_b`. detectable: the smallest difference that a comparison of this
    size finds, see `intervals.difference`.
    """
    found: list[dict[str, Any]] = []
    for names, panels in _panels(evidence, rows):
        drawn = {defense: (panel, panel.draw_prompts(bootstrap)) for defense, panel in panels.items()}
        for a, b in combinations(panels, 2):
            pair = {"defense_a": a, "defense_b": b}
            found += [names | pair | line for line in _pair(drawn[a], drawn[b], bootstrap)]
    table = pd.DataFrame(found, columns=COLUMNS).astype({"budget": "Int64"})
    for _, family in table.groupby(FAMILY, dropna=False):
        table.loc[family.index, "p_holm"] = holm(family["p"].to_numpy(dtype=np.float64))
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
    one, other = combine(*(_on(common, own, bootstrap) for own in (a, b)))
    freedom = one.freedom
    concepts, prompts = common.any(axis=(2, 3)).sum(axis=0), a[0].only(common).prompts
    worst = float(np.nanmax(one.means)), float(np.nanmax(other.means))
    sample = np.fmax.reduce(one.draws, axis=1) - np.fmax.reduce(other.draws, axis=1)
    size = int(common.any(axis=(1, 2, 3)).sum()), int(common.any(axis=(1, 2)).sum())
    yield {"number": "worst_presence", "attack": None, "budget": None} | _line(worst, sample, size, freedom)
    for i, (attack, budget) in enumerate(a[0].axes.arms):
        if prompts[i]:
            means, size = (float(one.means[i]), float(other.means[i])), (int(concepts[i]), int(prompts[i]))
            line = _line(means, one.draws[:, i] - other.draws[:, i], size, freedom)
            yield {"number": "presence", "attack": attack, "budget": budget} | line


def _on(common: npt.NDArray[np.bool_], own: _Own, bootstrap: Draws) -> Resampled:
    panel, drawn = own
    return drawn if (panel.known == common).all() else panel.only(common).draw_prompts(bootstrap)


def _line(means: tuple[float, float], sample: FloatArray, size: tuple[int, int], freedom: float) -> dict[str, Any]:
    concepts, prompts = size
    value, low, high, p, detectable = difference(*means, sample, prompts, freedom)
    numbers = {"value": value, "ci_low": low, "ci_high": high, "p": p, "detectable": detectable}
    return numbers | {"concepts": concepts, "prompts": prompts}
