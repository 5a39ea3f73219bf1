"""Work in a process of its own: its time and its memory, which the rest of the bench does not touch."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.paired import Seconds, now
from tests.bench.table import Row, number

TITER = [sys.executable, "-c", "from benchmark.cli import main; main()"]


@dataclass(frozen=True)
class Spent:
    """What a call gave, its time, and the largest memory of its process in MB."""

    result: Any
    seconds: Seconds
    megabytes: float


def alone(function: Callable[..., Any], *arguments: Any) -> Spent:
    """Call a function of a module in a fresh process; importing that module is not counted."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measured, function, arguments).result()


def measured(function: Callable[..., Any], arguments: Sequence[Any]) -> Spent:
    """Call it here."""
    started = now()
    result = function(*arguments)
    return Spent(result, now().since(started), peak())


def peak() -> float:
    """The largest resident memory of this process so far, in MB (10^6 bytes)."""
    status = Path("/proc/self/status")
    if status.is_file():  # of this program alone; getrusage remembers the one that started it
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def timed(what: str, seconds: Seconds, target: str, note: str = "") -> Row:
    """The row of one call's time."""
    note = "; ".join(filter(None, (note, f"processor {number(seconds.processor)} s")))
    return Row(what=what, value=seconds.wall, unit="s", target=target, note=note, more=seconds._asdict())


def command(words: Sequence[object], *, expect: str = "") -> tuple[float, float]:
    """Wall and processor seconds of one `titer` command.

    Raises:
        RuntimeError: it fails, or does not print what is expected.
    """
    before, started = os.times(), time.perf_counter()
    done = subprocess.run([*TITER, *map(str, words)], capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - started, os.times()
    if done.returncode or expect not in done.stdout:
        raise RuntimeError(f"expected titer {words[0]} to end well, got {done.returncode}: {done.stderr[-2000:]}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, used


def commands(what: str, words: Sequence[object], target: str, *, runs: int = 5, expect: str = "") -> Row:
    """The row of one command's median time, after one run that is not counted."""
    times = [command(words, expect=expect) for _ in range(runs + 1)][1:]
    walls, used = zip(*times, strict=True)
    note = f"median of {runs}, {number(min(walls))} to {number(max(walls))} s; processor {number(median(used))} s"
    return Row(what=what, value=median(walls), unit="s", target=target, note=note, more={"seconds": walls})
