"""Many workers: two of Ray's against one process, and how busy the policy keeps 64 GPUs."""

import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from benchmark.config import config
from benchmark.data import load_concept
from benchmark.model import bases
from benchmark.plan import Plan, build
from benchmark.plan.task import Task
from benchmark.runner.executors.simulate import busy, simulate
from benchmark.store import Store
from tests.bench.alone import alone
from tests.bench.table import Row, number
from tests.runner import test_schedule as full

WORKERS = 2
CONTROL: dict[str, object] = {"model": "mini:judge"}


def defenses(count: int, steps: int) -> Plan:
    """A plan of so many defenses that wait for nothing, all of one size."""
    raw = {
        "name": "many",
        "model": "mini",
        "concepts": ["cigarette"],
        "defenses": [
            {"use": "esd", "as": f"esd{i}", "lr": 1e-6 * (i + 1), "steps": steps, "batch": 4, "ddim_steps": 6}
            for i in range(count)
        ],
        "attacks": ["none"],
        "metrics": [{"use": "presence", **CONTROL}],
    }
    plan = build(config.parse(raw), "base", [load_concept("cigarette")])
    plan.tasks = {key: task for key, task in plan.tasks.items() if task.kind == "defend"}
    return plan


@dataclass
class Ends:
    """When each task ended."""

    times: list[float] = field(default_factory=list)

    def started(self, task: Task) -> None:
        """Of no interest."""

    def step(self, *, step: int, total: int, loss: float) -> None:
        """Of no interest."""

    def finished(self, task: Task, outcome: str) -> None:
        """A task ended."""
        if outcome != "ran":
            raise RuntimeError(f"expected {task.label} to run, got {outcome}: see the log.")
        self.times.append(time.monotonic())


def served(on_ray: bool, folder: Path, count: int, steps: int) -> float:
    """Tasks a second, from when every worker has ended its first: no start, no loading.

    One thread for each worker.
    """
    import torch

    from benchmark.runner.executors import local
    from benchmark.runner.loop import run
    from benchmark.runner.stages import Bench

    torch.set_num_threads(1)
    plan, ends, workers = defenses(count, steps), Ends(), WORKERS if on_ray else 1
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(folder, Store(Path(name) / "store").open(), device="cpu")
        if on_ray:
            os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # by default 15
            os.environ.pop("RAY_ADDRESS", None)
            import ray

            from benchmark.runner.executors import ray as executor

            ray.init(
                address="local",
                num_cpus=WORKERS,
                include_dashboard=False,
                object_store_memory=2**27,
                log_to_driver=False,
            )
            try:
                run(plan, bench, ends, executor.executor(WORKERS))
            finally:
                ray.shutdown()
        else:
            run(plan, bench, ends, local.execute)
    return (len(ends.times) - workers) / (ends.times[-1] - ends.times[workers - 1])


def workers(folder: Path | None = None, *, count: int = 12, steps: int = 12, rounds: int = 2) -> Sequence[Row]:
    """Tasks a second of two workers on Ray against one process, in turn; and of two processes that share nothing, which
    is what the machine gives.
    """
    what = f"{WORKERS} Ray workers against one process, one thread each"
    if find_spec("ray") is None:
        return [Row(what=what, value=None, note="ray is not installed: pip install 'titer[ray]'")]
    place = folder or bases.locate("mini")
    one, two, free = list[float](), list[float](), list[float]()
    for _ in range(rounds):
        one.append(alone(served, False, place, count // WORKERS, steps).result)
        two.append(alone(served, True, place, count, steps).result)
        with ThreadPoolExecutor(WORKERS) as pool:
            works = [pool.submit(alone, served, False, place, count // WORKERS, steps) for _ in range(WORKERS)]
            free.append(sum(work.result().result for work in works))
    each = [b / a for a, b in zip(one, two, strict=True)]
    bare = [b / a for a, b in zip(one, free, strict=True)]
    note = f"{number(median(two))} against {number(median(one))} tasks a second; start and loading not counted"
    return [
        Row(what=what, value=median(each), low=min(each), high=max(each), target=">= 1.8", note=f"{note}; min to max"),
        Row(
            what=f"{WORKERS} processes that share nothing against one, one thread each: what the machine gives",
            value=median(bare),
            low=min(bare),
            high=max(bare),
        ),
    ]


def schedule(concepts: Sequence[str] = full.CONCEPTS) -> Sequence[Row]:
    """The share of 64 GPUs that a simulated run of a full matrix of SD 1.4 keeps busy."""
    values = {
        "name": "sd14",
        "model": "mini",
        "concepts": list(concepts),
        "seeds": [0, 1, 2],
        "budgets": [200],
        "sampling": {"steps": 50, "guidance": 7.5},
        "prompts": full.COUNTS,
        "images": full.IMAGES,
        "defenses": list(full.DEFENSES),
        "attacks": list(full.ATTACKS),
        "metrics": [{"use": "presence", **CONTROL}],
    }
    plan = build(config.parse(values), "base", [load_concept(name) for name in concepts])
    spans = simulate(full.schedule_of(plan, on_each=1), full.seconds, swap=full.SWAP)
    days = max(span.end for span in spans) / 86400
    what = f"a simulated run of {len(plan.cells):,} cells on {full.GPUS} GPUs: busy"
    note = f"{len(spans):,} tasks, {number(days)} days"
    return [Row(what=what, value=100 * busy(spans, full.GPUS), unit="%", target=">= 90", note=note)]
