"""The policy of the Ray executor, driven by a clock of its own: order, memory, lost workers, and 64 busy GPUs."""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmark.config import config
from benchmark.data import load_concept
from benchmark.plan import Plan, build
from benchmark.runner.executors import memory
from benchmark.runner.executors.cluster import Fleet, fleet
from benchmark.runner.executors.schedule import PATIENCE, Job, Schedule
from benchmark.runner.executors.simulate import Span, busy, simulate
from benchmark.store import Store

GPUS, SIZE, WEIGHTS = 64, 80 * 1024, 4100  # MiB: cards of 80 GB, the weights of SD 1.4
SWAP, PASS, OVERHEAD = 5.0, 0.02, 2.0  # seconds: to load a defended model, for a sample through the U-Net, for a task
CONCEPTS = ("beer", "car", "cat", "church", "cigarette", "dog", "fish", "kite", "skull", "tree")
DEFENSES = (
    *("none", "esd", {"use": "esd", "as": "esd-u", "scope": "u"}, "imma", {"use": "imma", "after": "esd"}),
    *("gift", {"use": "gift", "as": "gift-max-noise", "ablation": "max_noise"}, "patronus", "aegis"),
)
ATTACKS = (
    *("lora", "full_finetune", "dreambooth", "xattn", "textual_inversion", "concept_inversion"),
    *("recaption", "benign_finetune", "unlearndiffatk", "p4d", "img2img", "paraphrase"),
)
COUNTS = {"concept": 10, "retained": 10, "safe": 10, "attacker": 4, "defender": 4, "prior": 4, "benign": 4}
IMAGES = {"concept": 100, "retained": 20, "safe": 100, "attacker": 25, "defender": 25, "prior": 50, "benign": 50}


@pytest.fixture(scope="module")
def matrix() -> Plan:
    """10 concepts x 8 defenses x 12 attacks x 3 seeds with the methods' own defaults, a thousand images a cell."""
    values = {
        "name": "sd14",
        "model": "mini",
        "concepts": list(CONCEPTS),
        "seeds": [0, 1, 2],
        "budgets": [200],
        "sampling": {"steps": 50, "guidance": 7.5},
        "prompts": COUNTS,
        "images": IMAGES,
        "defenses": list(DEFENSES),
        "attacks": list(ATTACKS),
        "metrics": [{"use": "presence", "model": "mini:judge"}],
    }
    parsed = config.parse(values)
    return build(parsed, "base", [load_concept(name) for name in CONCEPTS])


def schedule_of(plan: Plan, on_each: int) -> Schedule:
    from benchmark.runner.executors.ray import job

    needs = {memory.group(task): memory.declared(task.kind, WEIGHTS) for task in plan.tasks.values()}
    schedule = Schedule(map(job, plan.tasks.values()), needs)
    for number in range(GPUS * on_each):
        schedule.join(f"worker-{number}", f"gpu-{number // on_each}", SIZE)
    return schedule


def seconds(job: Job) -> float:
    return OVERHEAD + PASS * job.cost


def check_order(schedule: Schedule, spans: list[Span]) -> None:
    """Each job ran once, after its parents, and no worker ran two at a time."""
    ends = {span.key: span.end for span in spans}
    assert len(spans) == len(ends) == len(schedule.jobs)
    for span in spans:
        assert all(ends[parent] <= span.start for parent in schedule.jobs[span.key].parents if parent in ends)
    last: dict[str, float] = {}
    for span in sorted(spans, key=lambda span: span.start):
        assert span.start >= last.get(span.worker, 0.0)
        last[span.worker] = span.end


def most_used(schedule: Schedule, spans: list[Span]) -> int:
    """The largest sum of what the tasks of one device need at one time."""
    used, most = Counter[str](), 0
    moments = [(span.start, 1, span) for span in spans] + [(span.end, 0, span) for span in spans]
    for _, begins, span in sorted(moments, key=lambda moment: moment[:2]):
        device = schedule.workers[span.worker].device
        used[device] += schedule.need(span.key) * (1 if begins else -1)
        most = max(most, used[device])
    return most


def test_the_full_matrix_keeps_64_gpus_busy(matrix: Plan) -> None:
    """And children stay with the worker that holds their model: hardly one in ten has to load it."""
    schedule = schedule_of(matrix, on_each=1)

    spans = simulate(schedule, seconds, swap=SWAP)

    check_order(schedule, spans)
    assert busy(spans, GPUS) >= 0.9
    of_models = [span for span in spans if schedule.jobs[span.key].model]
    assert sum(span.swapped for span in of_models) < 0.1 * len(of_models)
    assert max(schedule.rank.values()) * PASS > 24 * 3600  # a chain of a day: begun late, it would idle the others
    longest = max(span.end for span in spans if span.key.startswith("defend/patronus"))
    assert longest < 1.05 * PASS * max(task.passes for task in matrix.tasks.values())


def test_no_device_is_overfilled(matrix: Plan) -> None:
    """Three workers a GPU, which has memory for two or three of the tasks."""
    schedule = schedule_of(matrix, on_each=3)

    spans = simulate(schedule, seconds, swap=SWAP)

    check_order(schedule, spans)
    assert 0.9 * SIZE < most_used(schedule, spans) <= SIZE


@pytest.mark.parametrize("seed", range(20))
def test_any_graph_ends_whatever_is_lost(seed: int) -> None:
    """Random graphs, needs and devices; workers that die, attempts that are repeated, tasks that fail."""
    rng = random.Random(seed)
    groups = {name: rng.randrange(1, 100) for name in "abc"}
    jobs = list[Job]()
    for number in range(60):
        parents = tuple(rng.sample([job.key for job in jobs], min(len(jobs), rng.randrange(4))))
        optional = frozenset(parent for parent in parents if rng.random() < 0.2)
        more: dict[str, Any] = {"cost": rng.uniform(0, 50), "group": rng.choice("abc"), "model": rng.choice(["", "m"])}
        jobs.append(Job(key=str(number), parents=parents, optional=optional, **more))
    schedule = Schedule(jobs, groups)
    count = 0
    ended, failed, raised = set[str](), set[str](), set[str]()
    while schedule.left:
        while len(schedule.workers) < 4:
            count += 1
            schedule.join(f"w{count}", f"d{rng.randrange(2)}", 100)
        schedule.starts()
        running = {worker.job: worker.name for worker in schedule.workers.values() if worker.job}
        for device in schedule.capacity:
            on = [w.job for w in schedule.workers.values() if w.device == device and w.job]
            assert sum(map(schedule.need, on)) <= 100
            assert len(on) == 1 or not schedule.alone.intersection(on)
        assert running, "it hangs"
        key = rng.choice(sorted(running))
        for parent in schedule.jobs[key].parents:
            assert parent in ended or (parent in failed and parent in schedule.jobs[key].optional)
        event = rng.random()
        if event < 0.2:
            assert schedule.leave(running[key]) == key
            schedule.again(key, alone=rng.random() < 0.3)
        elif event < 0.3:
            schedule.again(key, alone=True)
        elif event < 0.35:
            raised.add(key)
            failed |= {key, *schedule.fail(key)}
        else:
            schedule.end(key, idle=rng.randrange(40))
            ended.add(key)

    assert ended | failed == set(schedule.jobs)
    assert not ended & failed
    for key in schedule.jobs:
        needed = set(schedule.jobs[key].parents) - schedule.jobs[key].optional
        assert (key in failed) == (key in raised or bool(needed & failed))


def starts(schedule: Schedule) -> dict[str, str]:
    return {start.key: start.worker for start in schedule.starts()}


def test_the_longest_chain_starts_first() -> None:
    """A cheap task that much waits for goes before a dear one that nothing waits for."""
    chain = [Job(key="head"), Job(key="body", parents=("head",), cost=90), Job(key="tail", parents=("body",), cost=90)]
    schedule = Schedule([Job(key="dear", cost=50), *chain])
    schedule.join("w", "d")

    assert starts(schedule) == {"head": "w"}


def test_a_worker_keeps_to_the_model_that_it_holds() -> None:
    schedule = Schedule([Job(key=f"{model}{n}", model=model, cost=5 - n) for model in "ab" for n in range(2)])
    schedule.join("w1", "d1")
    schedule.join("w2", "d2")

    assert starts(schedule) == {"a0": "w1", "b0": "w2"}
    schedule.end("b0")
    schedule.end("a0")
    assert starts(schedule) == {"a1": "w1", "b1": "w2"}


def test_a_task_that_nobody_makes_room_for_gets_its_turn() -> None:
    """Two workers whose small tasks overlap would never leave enough room for the large one."""
    small = [Job(key=f"small{n}", group="small") for n in range(100)]
    schedule = Schedule([Job(key="large", cost=100, group="large"), *small], {"small": 4, "large": 1})
    schedule.join("w1", "d", 10)
    schedule.join("w2", "d", 10)
    assert starts(schedule) == {"large": "w1", "small0": "w2"}
    schedule.memory["large"] = 9  # it needs more than was thought, and is taken back
    schedule.again("large")

    order = ["small0"]
    while "large" not in order:
        order += starts(schedule)
        schedule.end(next(key for key in order if key in schedule.left))

    assert 2 < len(order) <= PATIENCE + 3


def test_a_task_alone_shares_its_device_with_nothing() -> None:
    """It starts once nothing runs there, idle workers give their memory back, and none begins beside it."""
    schedule = Schedule([Job(key=name, group="g") for name in "abcd"], {"g": 1})
    schedule.join("w1", "d", 10)
    schedule.join("w2", "d", 10)
    assert starts(schedule) == {"a": "w1", "b": "w2"}
    assert schedule.crowded("b")
    schedule.again("b", alone=True)
    assert starts(schedule) == {"c": "w2"}
    schedule.end("c", idle=5)
    schedule.end("a", idle=5)

    (start,) = schedule.starts()

    assert (start.key, start.worker, start.clear) == ("b", "w1", ("w2",))
    assert not schedule.crowded("b")
    schedule.end("b")
    assert starts(schedule) == {"d": "w1"}


def test_a_task_too_large_for_every_device_runs_on_the_largest() -> None:
    schedule = Schedule([Job(key="huge", group="huge")], {"huge": 99})
    schedule.join("w1", "small", 10)
    schedule.join("w2", "large", 20)

    assert starts(schedule) == {"huge": "w2"}


def test_what_cannot_do_without_a_failed_task_is_given_up() -> None:
    """A tuned attack lives with a failed trial; what needs the failed task does not."""
    jobs = [
        Job(key="trial"),
        Job(key="score", parents=("trial",)),
        Job(key="attack", parents=("trial",), optional=frozenset({"trial"})),
    ]
    schedule = Schedule(jobs)
    schedule.join("w", "d")
    schedule.starts()

    assert schedule.fail("trial") == ["score"]
    assert starts(schedule) == {"attack": "w"}


def test_the_policy_is_pure() -> None:
    code = (
        "import sys; import benchmark.runner.executors.schedule, benchmark.runner.executors.simulate; "
        "assert not {'torch', 'ray', 'pandas'} & set(sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("have", "workers", "on_gpu", "expected"),
    [
        ((16, 0), None, False, Fleet(16, 1.0, 0.0, 1)),
        ((16, 0), 4, False, Fleet(4, 4.0, 0.0, 4)),
        ((2, 0), 3, False, Fleet(3, 0.66, 0.0, 1)),
        ((96, 8), None, True, Fleet(16, 1.0, 0.5, 6)),
        ((96, 8), 8, True, Fleet(8, 1.0, 1.0, 12)),
        ((8, 2), 3, True, Fleet(3, 1.0, 0.5, 2)),
        ((4, 1), 3, True, Fleet(3, 1.0, 0.3333, 1)),
    ],
)
def test_workers_get_equal_shares(have: tuple[int, int], workers: int | None, on_gpu: bool, expected: Fleet) -> None:
    assert fleet(*map(float, have), workers, on_gpu=on_gpu, room=100) == expected


def test_no_more_workers_than_memory_holds() -> None:
    assert fleet(16.0, 0.0, None, on_gpu=False, room=3).count == 3
    assert fleet(16.0, 0.0, None, on_gpu=False, room=0).count == 1


def test_needs_are_the_measured_peaks_of_the_same_base(tmp_path: Path) -> None:
    store = Store(tmp_path).open()
    rows = [("a", "base", 100), ("b", "base", 300), ("c", "other", 900), ("d", "base", None)]
    for name, base, peak in rows:
        meta = {"cost": {"peak_memory_mib": peak}, "identity_of": {"base": base}}
        store.put(f"attack/lora-{name}", lambda _: None, meta)
    (tmp_path / "attack" / "lora-e").mkdir()
    (tmp_path / "attack" / "lora-e" / "done.json").write_text("{")

    found = memory.peaks(store, "base", ["attack/lora", "defend/esd"])

    assert found == {"attack/lora": 300}
    assert memory.measured(300) > 300
    assert json.loads((tmp_path / "attack" / "lora-a" / "done.json").read_text())["cost"]["peak_memory_mib"] == 100
