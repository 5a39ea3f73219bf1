"""Warning signs of an evaluation (after Carlini et al. 2019): a row that carries one is not to be trusted blindly."""

import math
from collections.abc import Sequence

from benchmark.types import Snapshot


def flags_of(last: Snapshot, losses: Sequence[tuple[int, float]]) -> list[str]:
    """What looks wrong about a result and the losses `(step, loss)` on the way."""
    found = []
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


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)
