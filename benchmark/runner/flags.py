"""Warning signs of an evaluation (after Carlini et al. 2019): a row that carries one is not to be trusted blindly."""

import math
from collections.abc import Sequence
from typing import Any

from benchmark.types import Snapshot

UNCONVERGED = "not converged"
CHOSEN = 0.5  # largest weight of a relaxed one-hot from which its word is a choice, and no guess


def flags_of(last: Snapshot, losses: Sequence[tuple[int, float]]) -> list[str]:
    """What looks wrong about a result and the losses `(step, loss)` on the way."""
    found = [UNCONVERGED] * bool(last.search and not evidence(last)["converged"])
    if last.delta.is_zero and not last.tokens and not last.prompts:
        found.append("zero delta")
    values = [loss for _, loss in losses]
    if values and all(math.isnan(value) for value in values):
        return found  # a method without a loss
    if not all(math.isfinite(value) for value in values):
        found.append("loss not finite")
    elif len(values) >= 20 and mean(values[-len(values) // 4 :]) >= mean(values[: len(values) // 4]):
        found.append("loss did not fall")
    return found


def evidence(snapshot: Snapshot) -> dict[str, Any]:
    """Means of what tells whether a search converged, the share of prompts whose loss fell, and the verdict.

    It converged if for at least half of the prompts the loss by which it chose fell, and a relaxed one-hot, where it
    has one, has chosen a word.
    """
    told = {name: mean(values) for name, values in snapshot.search.items()}
    pairs = list(zip(snapshot.search["loss_before"], snapshot.search["loss_after"], strict=True))
    moved = mean([after < before for before, after in pairs])
    chosen = mean([weight >= CHOSEN for weight in snapshot.search.get("largest_weight", (1.0,))])
    return {**told, "moved": moved, "converged": min(moved, chosen) >= 0.5}


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)
