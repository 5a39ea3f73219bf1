"""What a tuned attack tries: a grid of settings, or points spread over ranges."""

from itertools import product
from math import prod
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from benchmark.errors import ConfigError, shown

LARGEST = 64  # settings


class Range(BaseModel):
    """A range to search, for a field that is a number."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool = False


class Space(BaseModel):
    """How a tuned attack searches: every combination of the listed values, or `trials` points of the ranges."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    develop: str
    grid: dict[str, Range | list[Any]] = Field(min_length=1)
    trials: int = Field(0, ge=0, le=LARGEST)


def points(space: Space) -> list[dict[str, Any]]:
    """The settings to try: all combinations, or, with a range among them, a Halton sequence over the space.

    Raises:
        ConfigError: there are too many combinations, an empty list or range, or a range and no number of trials.
    """
    ranges = {name: value for name, value in space.grid.items() if isinstance(value, Range)}
    lists = {name: value for name, value in space.grid.items() if isinstance(value, list)}
    for name, value in space.grid.items():
        if value == [] or (isinstance(value, Range) and not (value.high > value.low > (0 if value.log else -1e308))):
            raise ConfigError(
                f"expected values to try for {shown(name)}, got {shown(value)}: give a list, or low < high."
            )
    count = prod(map(len, lists.values()))
    if count > LARGEST or (space.trials and not ranges):
        raise ConfigError(
            f"expected a grid of at most {LARGEST} settings and no `trials:`, got {count:,}: "
            "every one is tried. Give ranges {low, high, log} and `trials:` for a larger space."
        )
    combinations = [dict(zip(lists, chosen, strict=True)) for chosen in product(*lists.values())]
    if not ranges:
        return combinations
    if not space.trials:
        raise ConfigError(f"expected `trials:` with the range of {min(ranges)!r}, got none: say how many to try.")
    from scipy.stats import qmc  # evenly spread, and the same for every prefix of the trials

    unit = qmc.Halton(len(ranges), scramble=False).random(space.trials + 1)[1:]
    found = []
    for number, place in enumerate(unit.tolist()):
        point = {name: within(ranges[name], x) for name, x in zip(ranges, place, strict=True)}
        found.append({**combinations[number % len(combinations)], **point})
    return found


def within(range_: Range, x: float) -> float:
    """The point of a range at x in [0, 1], to four digits."""
    found = range_.low * (range_.high / range_.low) ** x if range_.log else range_.low + x * (range_.high - range_.low)
    return float(f"{found:.4g}")
