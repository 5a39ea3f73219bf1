"""Whether somebody else's weights erase their concept here: a change that was read wrongly does not.

A row of imported weights must lower the presence of its own concept before any attack, by the whole interval of the
paired difference, as a row must for its rank (see `leaderboards.ranks`). If it does not, its attacked cells say nothing
about its method: it may be another part's weights, another base's, or the base itself.
"""

import numpy as np

from leaderboards.bootstrap import Draws, weights
from leaderboards.evidence import Evidence, Key, aligned
from leaderboards.intervals import EQUAL, difference

UNERASED = "does not erase here"
UNRELEASED = "not released"  # of a concept for which nobody published weights


def unerased(evidence: Evidence, key: Key, bootstrap: Draws) -> str | None:
    """Why an attacked cell of imported weights is invalid; None if it is not, or if the scores to tell are missing."""
    if not key.budget or key.scenario != "relearn":
        return None
    own, base = (evidence.sample(k, "presence") for k in (evidence.before(key), evidence.untouched(key)))
    prompts = np.intersect1d(own.prompts, base.prompts) if own and base else np.array([])
    if own is None or base is None or not len(prompts):
        return None
    a, b = aligned(own, prompts), aligned(base, prompts)
    drawn = weights(len(prompts), bootstrap)[1:] @ (a - b)
    differing = int((np.abs(a - b) >= EQUAL).sum())
    means = float(a.mean()), float(b.mean())
    high = difference(*means, drawn, len(prompts), max(len(prompts) - 1, 1), differing=differing).high
    if high < 0:
        return None
    return f"{UNERASED}: presence {means[0]:.2f} before any attack, {means[1]:.2f} of the base"
