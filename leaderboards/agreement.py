"""Two judges on the same images: how often they differ, and Cohen's kappa.

    disagreement = share of images on which one judge sees the concept and the other does not
    kappa        = (o - e) / (1 - e),   o = 1 - disagreement,   e = p q + (1 - p)(1 - q)

p and q are the judges' shares of hits (Cohen 1960). Where both say the same of every image, e is 1 and kappa missing:
a defense that withstands everything has no kappa, whatever its judges are worth. A small disagreement says that the
numbers do not hang on the judge; it does not say that either is right.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from leaderboards.bootstrap import Draws, FloatArray, IntArray, weights
from leaderboards.evidence import JUDGE, Evidence, Images, Key
from leaderboards.intervals import MISSING, Interval, of_draws, proportion

DISAGREE = 0.1  # a larger share of images on which the judges differ is flagged
SECOND = f"{JUDGE}_second"
LOST_DRAWS = 0.05  # larger share of draws without a kappa: no interval
FLAG = "judges disagree"


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Images that both judges scored: the prompt of each, and whether it shows the concept to either, (N,)."""

    prompts: IntArray
    first: FloatArray
    second: FloatArray

    @property
    def count(self) -> int:
        """How many images."""
        return len(self.prompts)

    def by_prompt(self) -> FloatArray:
        """For each prompt: images, hits of the first, of the second, and images on which they differ: (P, 4)."""
        _, place = np.unique(self.prompts, return_inverse=True)
        columns = (np.ones(self.count), self.first, self.second, np.abs(self.first - self.second))
        return np.stack([np.bincount(place, column) for column in columns], axis=1).astype(np.float64)


def verdicts(first: Images, second: Images) -> Verdicts:
    """What two judges say of the images that both scored; half and more is a hit."""
    _, own, other = np.intersect1d(first.ids, second.ids, assume_unique=True, return_indices=True)
    hits = [(images.values[at] >= 0.5).astype(np.float64) for images, at in ((first, own), (second, other))]
    return Verdicts(first.prompts[own], *hits)


def names(others: Iterable[str]) -> dict[str, str]:
    """The further judges by label, and what follows the names of their numbers: nothing for the second judge."""
    found = sorted(others, key=lambda label: (label != SECOND, label))
    return {label: "" if at == 0 else label.removeprefix(JUDGE) for at, label in enumerate(found)}


def shares(sums: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Disagreement and kappa (N,) from sums (N, 4) over prompts; NaN where kappa is not defined."""
    n, first, second, differ = sums.T
    share = np.divide(differ, n, out=np.full(len(sums), np.nan), where=n > 0)
    p, q = (np.divide(hits, n, out=np.full(len(sums), np.nan), where=n > 0) for hits in (first, second))
    chance = p * q + (1 - p) * (1 - q)
    kappa = np.divide(1 - share - chance, 1 - chance, out=np.full(len(sums), np.nan), where=1 - chance > 1e-12)
    return share, kappa


def compare(found: Verdicts, bootstrap: Draws) -> tuple[Interval, Interval]:
    """Disagreement and kappa, each with its interval over prompts."""
    if not found.count:
        return MISSING, MISSING
    sums = found.by_prompt()
    prompts = len(sums)
    (share,), (kappa,) = shares(sums.sum(axis=0, keepdims=True))
    drawn_share, drawn_kappa = shares(weights(prompts, bootstrap)[1:] @ sums)
    is_known = prompts > 1 and np.isfinite(kappa) and np.isnan(drawn_kappa).mean() <= LOST_DRAWS
    interval = (
        of_draws(float(kappa), drawn_kappa, prompts - 1, (-1, 1)) if is_known else MISSING._replace(value=float(kappa))
    )
    return proportion(float(share), drawn_share, prompts, max(prompts - 1, 1)), interval


def pooled(evidence: Evidence, keys: Iterable[Key]) -> tuple[str, float, float] | None:
    """The second judge's identity, disagreement and kappa over the images of many cells; None without a second judge.

    Before the attack all cells of a concept have the same images, which are counted once.
    """
    parts: dict[Key, Verdicts] = {}
    identity = ""
    for key in keys:
        label = next(iter(names(evidence.others.get(key, {}))), None)
        if label is None or key not in evidence.images:
            continue
        once = key if key.budget else key._replace(attack="", seed=0)
        parts.setdefault(once, verdicts(evidence.images[key], evidence.others[key][label]))
        sample = evidence.sample(key, label)
        identity = sample.identity if sample else identity
    if not parts:
        return None
    sums = np.sum([part.by_prompt().sum(axis=0) for part in parts.values()], axis=0)
    (share,), (kappa,) = shares(sums[None])
    return identity, float(share), float(kappa)
