"""What makes presence vary: the defense, the attack, its seed, the prompt, or the image's seed.

Method of moments for the balanced random-effects model, concept by concept,

    y[d,a,s,p] = m + D[d] + A[a] + DA[d,a] + S[d,a,s] + P[p] + e[d,a,s,p]      (prompt means over I images)

with attack seeds s nested in (defense, attack) and prompts p crossed with all. Mean squares MS estimate

    E MS_e = v_e                            v_e = v_cell + v_image / I
    E MS_P = v_e + (d a s) v_P
    E MS_S = v_e + p v_S
    E MS_DA = v_e + p v_S + (s p) v_DA
    E MS_D = E MS_DA + (a s p) v_D          E MS_A = E MS_DA + (d s p) v_A

and the components v follow by subtraction, 0 where that is negative. v_image is the variance of the images of one
prompt in one cell, v_cell what prompts do differently in different cells. An attack is taken at its largest budget.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from leaderboards.bootstrap import FloatArray, IntArray
from leaderboards.evidence import Evidence, Images, Key, aligned
from leaderboards.row import Row

CONTROL = "none"
SOURCES = ("defense", "attack", "defense x attack", "attack seed", "prompt", "prompt x cell", "image seed")
COLUMNS = ["model", "scenario", "concept", "source", "variance", "share"]
Names = tuple[str, str, tuple[int, int]]  # defense, attack, run
Parts = dict[str, float]  # variance by source


def split(evidence: Evidence, rows: Sequence[Row]) -> pd.DataFrame:
    """For each model, scenario and concept, and for `all` (the mean over concepts), the variance of each source.

    share: of the sum of the known variances. A variance is missing where there is one level, which says nothing of it;
    with one image for each prompt, `image seed` holds `prompt x cell` too. The control is left out: it is no defense.
    Levels that lack `ok` cells are dropped until each remaining defense, attack and seed has all others.
    """
    groups: dict[tuple[str, str], dict[str, list[Key]]] = {}
    for key in (key for row in rows for key in row.keys("ok")):
        if key.defense != CONTROL and key.budget > 0:
            groups.setdefault((key.model, key.scenario), {}).setdefault(key.concept, []).append(key)
    lines = []
    for (model, scenario), concepts in groups.items():
        found = {concept: parts for concept, keys in concepts.items() if (parts := _concept(evidence, keys))}
        lines += [{"model": model, "scenario": scenario} | line for line in _lines(found)]
    return pd.DataFrame(lines, columns=COLUMNS)


def _lines(concepts: dict[str, Parts]) -> Iterator[dict[str, Any]]:
    every = {source: [parts[source] for parts in concepts.values()] for source in SOURCES}
    mean = {source: float(np.mean(known)) for source, own in every.items() if (known := [v for v in own if v == v])}
    for concept, parts in [*concepts.items(), *([("all", mean)] if concepts else [])]:
        total = sum(variance for variance in parts.values() if np.isfinite(variance))
        for source in SOURCES:
            variance = parts.get(source, float("nan"))
            share = variance / total if total > 0 else float("nan")
            yield {"concept": concept, "source": source, "variance": variance, "share": share}


def _concept(evidence: Evidence, keys: Sequence[Key]) -> Parts:
    """Variance by source from the attacked `ok` cells of one concept; empty if nothing is complete."""
    last = {key.attack: key.budget for key in sorted(keys, key=lambda key: key.budget)}
    cells = {(key.defense, key.attack, key.run): key for key in keys if key.budget == last[key.attack]}
    levels = complete(set(cells))
    block = [cells[names] for names in product(*levels)]
    if not block:
        return {}
    samples = [evidence.sample(key, "presence") for key in block]
    prompts: IntArray = reduce(np.intersect1d, [sample.prompts for sample in samples if sample])
    if not len(prompts):
        return {}
    means = np.stack([aligned(sample, prompts) for sample in samples])
    shape = tuple(len(names) for names in levels)
    within = [part for key in block for part in _by_prompt(evidence.images[key], prompts)]
    return components(means.reshape(*shape, len(prompts)), within)


def complete(cells: set[Names]) -> tuple[list[str], list[str], list[tuple[int, int]]]:
    """Defenses, attacks and seeds of which `cells` has each combination; what lacks the most is dropped first."""
    levels: tuple[list[Any], ...] = tuple(sorted({cell[i] for cell in cells}) for i in range(3))
    while missing := [names for names in product(*levels) if names not in cells]:
        lost = {
            (axis, level): sum(names[axis] == level for names in missing) * len(levels[axis])
            for axis in range(3)
            for level in levels[axis]
        }  # times the axis' length: the share of the level's combinations that are missing
        axis, level = max(lost, key=lambda at: (lost[at], at[0], str(at[1])))
        levels[axis].remove(level)
    defenses, attacks, seeds = levels
    return defenses, attacks, seeds


def _by_prompt(images: Images, prompts: IntArray) -> Iterator[FloatArray]:
    """The values of the images of each prompt."""
    ends = np.searchsorted(images.prompts, prompts, side="right")
    for start, end in zip(np.searchsorted(images.prompts, prompts), ends, strict=True):
        yield images.values[start:end]


def components(y: FloatArray, within: Sequence[FloatArray]) -> Parts:
    """Variances by source, NaN where they cannot be told.

    Args:
        y: prompt means (defenses, attacks, seeds, prompts).
        within: for each of them, the values of its images.
    """
    D, A, S, P = y.shape
    m, m_d, m_a, m_p = y.mean(), y.mean((1, 2, 3)), y.mean((0, 2, 3)), y.mean((0, 1, 2))
    m_da, m_das = y.mean((2, 3)), y.mean(3)
    ms_e = _mean_square(y - m_das[..., None] - m_p + m, 1, (D * A * S - 1) * (P - 1))
    ms_p = _mean_square(m_p - m, D * A * S, P - 1)
    ms_s = _mean_square(m_das - m_da[..., None], P, D * A * (S - 1))
    ms_da = _mean_square(m_da - m_d[:, None] - m_a + m, S * P, (D - 1) * (A - 1))
    ms_d, ms_a = _mean_square(m_d - m, A * S * P, D - 1), _mean_square(m_a - m, D * S * P, A - 1)
    below_da = ms_e if np.isnan(ms_s) else ms_s  # an unknown source cannot be told from the next larger one
    below = below_da if np.isnan(ms_da) else ms_da
    image, cell = _image_and_cell(ms_e, within)
    found = {
        "defense": (ms_d - below) / (A * S * P),
        "attack": (ms_a - below) / (D * S * P),
        "defense x attack": (ms_da - below_da) / (S * P),
        "attack seed": (ms_s - ms_e) / P,
        "prompt": (ms_p - ms_e) / (D * A * S),
        "prompt x cell": cell,
        "image seed": image,
    }
    return {
        source: max(float(variance), 0.0) if variance == variance else float("nan")
        for source, variance in found.items()
    }


def _mean_square(deviations: FloatArray, repeats: int, freedom: int) -> float:
    return repeats * float((deviations**2).sum()) / freedom if freedom > 0 else float("nan")


def _image_and_cell(ms_e: float, within: Sequence[FloatArray]) -> tuple[float, float]:
    """v_image and v_cell; both together, and NaN, if no prompt has two images."""
    freedom = sum(len(values) - 1 for values in within)
    if freedom == 0:
        return ms_e, float("nan")
    image = sum(float(((values - values.mean()) ** 2).sum()) for values in within) / freedom
    return image, ms_e - image * float(np.mean([1 / len(values) for values in within]))
