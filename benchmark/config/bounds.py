"""What the numbers among a method's fields may be. One rule by their names for every plug-in, ours or another's.

lr                                                    above 0
steps, batch, rank and other counts, see COUNTS       1 to LARGEST; of shares, the last
other names of steps and rates: d1_steps, adapt_lr    from 0: such a stage may be left out
weight_decay and the like                             from 0
threshold                                             -1 to 1: a share, or a cosine
percent                                               1 to 100
every other number                                    finite, of 64 bits
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from math import isfinite
from typing import Any

from benchmark.errors import shown

LARGEST = 1_000_000
COUNTS = re.compile(
    r"steps|ddim_steps|timesteps|(\w+_)?batch(es)?|rank|alpha|tokens|count|inner|outer|features|population|rows|top|side|"
    r"held_out|every"
)
FROM_ZERO = re.compile(r"\w+_steps|\w+_lr|lr_\w+|(\w+_)?decay")


def fault(method: Any, given: Mapping[str, Any]) -> str:
    """The first field with a number that cannot be meant: what was expected, what was got; empty if there is none."""
    for field in fields(method):
        value = getattr(method, field.name)
        is_count = COUNTS.fullmatch(field.name) and not isinstance(field.default, float)
        wanted = expected(field.name, value, is_count=bool(is_count))
        if isinstance(given.get(field.name), bool) and is_number(value):
            wanted = "a number"
        if wanted:
            return f"at {field.name!r}: expected {wanted}, got {shown(given.get(field.name, value))}: change it."
    return ""


def expected(name: str, value: Any, *, is_count: bool) -> str:
    """What a field of this name should hold; empty if it does."""
    for number in numbers(value):
        if isinstance(number, float) and not isfinite(number):
            return "a finite number"
        if name == "lr" and number <= 0:
            return "a number above 0"
        if is_count and not 1 <= number <= LARGEST:
            return f"a number from 1 to {LARGEST:,}"
        if FROM_ZERO.fullmatch(name) and not 0 <= number <= LARGEST:
            return f"a number from 0 to {LARGEST:,}"
        if name == "threshold" and not -1 <= number <= 1:
            return "a number from -1 to 1"
        if name == "percent" and not 1 <= number <= 100:
            return "numbers from 1 to 100"
        if abs(number) >= 2**63 and isinstance(number, int):
            return "a number of 64 bits"
    return ""


def numbers(value: Any) -> Iterator[int | float]:
    """The numbers in a value, those in lists and mappings too."""
    if is_number(value):
        yield value
    elif isinstance(value, Mapping):
        yield from (number for part in value.values() for number in numbers(part))
    elif isinstance(value, list | tuple | set | frozenset):
        yield from (number for part in value for number in numbers(part))


def is_number(value: Any) -> bool:
    """Whether it is one; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
