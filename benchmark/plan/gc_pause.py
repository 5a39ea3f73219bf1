"""The collector of cyclic garbage, put off while something large without cycles is made or read.

It would look through all that there is, again and again: a quarter of the time of a plan of 100,000 cells.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside, cyclic garbage waits."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
