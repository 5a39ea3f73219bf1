"""Two things timed in turn, and the ratio of their times with its interval."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Seconds(NamedTuple):
    """Of the wall clock, and of the processor: these leave out what other programs take, and count every thread."""

    wall: float
    processor: float

    def since(self, before: "Seconds") -> "Seconds":
        """What went by."""
        return Seconds(self.wall - before.wall, self.processor - before.processor)


Clock = Callable[[], Seconds]


def now() -> Seconds:
    """The time, both ways."""
    return Seconds(time.perf_counter(), time.process_time())


@dataclass(frozen=True)
class Ratio:
    """theirs / ours: above 1, ours is faster. `low` and `high` hold the middle 95 % of the bootstrap over pairs.

    `processor` is the same ratio of processor seconds, `ours` and `theirs` are median wall seconds.
    """

    value: float
    low: float
    high: float
    processor: float
    ours: float
    theirs: float
    pairs: int


def ratio(ours: Sequence[Seconds], theirs: Sequence[Seconds], *, block: int = 1, draws: int = 2000) -> Ratio:
    """The median over pairs of theirs / ours; `block` neighbours are added up to one pair first.

    Raises:
        ValueError: the times are not in pairs, or there is no whole block.
    """
    if len(ours) != len(theirs) or len(ours) < block:
        raise ValueError(f"expected pairs, {block} or more, got {len(ours)} and {len(theirs)} times: measure longer.")
    whole = len(ours) // block * block
    a, b = (np.asarray(times[:whole], dtype=float).reshape(-1, block, 2).sum(1) for times in (ours, theirs))
    each, processor = b[:, 0] / a[:, 0], b[:, 1] / np.maximum(a[:, 1], 1e-9)
    chosen = np.random.default_rng(0).integers(len(each), size=(draws, len(each)))
    low, high = np.quantile(np.median(each[chosen], axis=1), [0.025, 0.975])
    return Ratio(
        value=float(np.median(each)),
        low=float(low),
        high=float(high),
        processor=float(np.median(processor)),
        ours=float(np.median(a[:, 0])),
        theirs=float(np.median(b[:, 0])),
        pairs=len(each),
    )


def alternate(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int, *, clock: Clock = now
) -> tuple[list[Seconds], list[Seconds]]:
    """Times of each in `rounds` rounds A B A B ..., after one round that is not counted."""
    times: tuple[list[Seconds], list[Seconds]] = ([], [])
    for _ in range(rounds + 1):
        for kept, call in zip(times, (ours, theirs), strict=True):
            started = clock()
            call()
            kept.append(clock().since(started))
    return times[0][1:], times[1][1:]


class Turns:
    """A report that gives another loop its turn after each step of a method, and times both: A B A B, step by step.

    The first `skip` steps are not counted: the method's own preparation is in the first.

    Attributes:
        losses: of both, step by step: the same where both minimise the same from the same random numbers.
    """

    def __init__(self, other: Iterator[float], *, skip: int = 2, clock: Clock = now) -> None:
        self.other, self.skip, self.clock = other, skip, clock
        self.ours, self.theirs = list[Seconds](), list[Seconds]()
        self.losses = list[tuple[float, float]]()
        self.resumed = clock()

    def __call__(self, *, step: int, total: int, loss: float) -> None:
        """The method made a step: note its time, then let the other make one."""
        paused = self.clock()
        theirs = next(self.other)
        ended = self.clock()
        if len(self.losses) >= self.skip:
            self.ours.append(paused.since(self.resumed))
            self.theirs.append(ended.since(paused))
        self.losses.append((loss, theirs))
        self.resumed = self.clock()

    def apart(self, steps: int = 3) -> float:
        """The largest relative difference between the losses of the first steps."""
        return max(abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in self.losses[:steps])
