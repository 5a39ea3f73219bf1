"""Presence as it would be seen by a judge without faults (Rogan and Gladen 1978).

    corrected = (presence - FPR) / (TPR - FPR),     each concept by its own rates, then the mean over concepts

The interval is that of presence, with the rates drawn, too: from their Beta posteriors under Jeffreys' prior, by how
many pictures the calibration card is based on,

    rate ~ Beta(k + 1/2, n - k + 1/2),     k of n pictures

What the draws of the rates add is taken at the presence that was measured; both parts are independent. Value and ends
are cut to [0, 1]. Where TPR - FPR is under SHARP the raw number says little, and the row carries a flag. The rates are
those of the card's pictures, which are not images of attacked models.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from leaderboards.bootstrap import Draws, FloatArray
from leaderboards.intervals import MISSING, SHARE, Interval, of_draws
from leaderboards.panel import Panel

SHARP = 0.9
BLUNT = "judge's TPR - FPR under 0.9"


@dataclass(frozen=True)
class Rates:
    """A judge's true and false positive rate for a concept, and of how many pictures each is the share."""

    tpr: float
    fpr: float
    positives: int
    negatives: int

    @property
    def sharpness(self) -> float:
        """TPR - FPR: 1 without faults, 0 for a judge that guesses."""
        return self.tpr - self.fpr

    def drawn(self, draws: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Draws (draws,) of both."""
        pairs = ((self.tpr, self.positives), (self.fpr, self.negatives))
        one, other = (rng.beta(rate * n + 0.5, (1 - rate) * n + 0.5, size=draws) for rate, n in pairs)
        return one, other


def corrected(panel: Panel, rates: Mapping[str, Rates], bootstrap: Draws) -> Interval:
    """The corrected presence of a panel of one arm, by the rates of each of its concepts.

    Missing where a concept has no rates, or the judge does not tell it from anything else (TPR <= FPR).
    """
    names = [name for i, name in enumerate(panel.axes.concepts) if panel.known[i].any()]
    if not names or not all(name in rates and rates[name].sharpness > 0 for name in names):
        return MISSING
    at = [panel.axes.concepts.index(name) for name in names]
    fpr, sharp = (np.array([getattr(rates[name], what) for name in names]) for what in ("fpr", "sharpness"))
    hits = panel.hits.copy()
    hits[at] = (panel.hits[at] - fpr[:, None, None, None]) / sharp[:, None, None, None]
    drawn = Panel(panel.axes, hits).bootstrap(bootstrap)
    level = np.array([np.nanmean(panel.hits[i, 0][np.isfinite(panel.hits[i, 0])]) for i in at])
    sample = drawn.draws[:, 0] + _of_rates(level, [rates[name] for name in names], bootstrap)
    found = of_draws(float(drawn.means[0]), sample, drawn.freedom, SHARE)
    return Interval(*(float(np.clip(number, *SHARE)) for number in found))


def _of_rates(level: FloatArray, rates: list[Rates], bootstrap: Draws) -> FloatArray:
    """What draws of the rates add to the mean over concepts of the corrected `level` (concepts,): (draws,)."""
    rng, total = np.random.default_rng([bootstrap.seed, 1]), np.zeros(bootstrap.draws)
    for presence, own in zip(level, rates, strict=True):
        tpr, fpr = own.drawn(bootstrap.draws, rng)
        sharp = np.maximum(tpr - fpr, own.sharpness / 4)  # a draw that nearly guesses says nothing
        total += (presence - fpr) / sharp - (presence - own.fpr) / own.sharpness
    added: FloatArray = total / len(rates)
    return added
