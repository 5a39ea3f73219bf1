"""A run without its work: when each task would run, if the policy had so many workers and tasks took so long."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from benchmark.runner.executors.schedule import Job, Schedule


@dataclass(frozen=True)
class Span:
    """A job on a worker, from when to when; `swapped` if the worker held another model before."""

    key: str
    worker: str
    start: float
    end: float
    swapped: bool


def simulate(schedule: Schedule, seconds: Callable[[Job], float], *, swap: float = 0.0) -> list[Span]:
    """Run a schedule, whose workers have joined, on a clock of its own. The same arguments give the same spans.

    Args:
        schedule: jobs and workers.
        seconds: how long a job takes.
        swap: seconds for which a worker loads a defended model that it does not hold.

    Raises:
        ValueError: jobs are left that no worker can run.
    """
    now, spans, running = 0.0, list[Span](), list[tuple[float, int, str]]()
    while schedule.left:
        for start in schedule.starts():
            job, worker = schedule.jobs[start.key], schedule.workers[start.worker]
            swapped = bool(job.model) and job.model != worker.model
            end = now + seconds(job) + (swap if swapped else 0.0)
            spans.append(Span(job.key, worker.name, now, end, swapped))
            heappush(running, (end, len(spans), job.key))
        if not running:
            raise ValueError(f"expected a worker for every job, got none for {len(schedule.left)}: let workers join.")
        now, _, key = heappop(running)
        schedule.end(key)
    return spans


def busy(spans: Sequence[Span], workers: int) -> float:
    """The share of the workers' time, from the first start to the last end, in which they run something."""
    length = max(span.end for span in spans) - min(span.start for span in spans)
    return sum(span.end - span.start for span in spans) / (length * workers)
