"""Workers on Ray compute what one process would, to the byte, whoever dies; `slow` where Ray really starts."""

import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from benchmark.cli import app
from benchmark.config import registry
from benchmark.plan.task import Task
from benchmark.runner.executors import ray as on_ray
from benchmark.runner.limits import each_task
from benchmark.runner.loop import Outcome, run
from benchmark.runner.progress import Bars
from benchmark.runner.stages import Bench
from benchmark.store import Store
from benchmark.store.maintenance import gc, verify
from benchmark.types import Delta
from defenses.base import Defense
from tests.misbehaving import swallow
from tests.runner.test_faults import ended, last_counts, start, tables
from tests.runner.test_loop import Silent, files, make_plan
from tests.runner.test_ray_troubles import lacking
from tests.runs import write_config

WAIT = 120.0


def words(config: Path, folder: Path, *more: str) -> list[str]:
    return [str(word) for word in ("run", config, "--out", folder / "out", "--store", folder / "store", *more)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> tuple[Path, Path]:
    """A run of the command in one process: its config and its folder."""
    folder = tmp_path_factory.mktemp("one") / "run"
    shutil.copytree(tiny_run, folder)
    assert last_numbers(folder)
    return folder / "tiny.yaml", folder


def last_numbers(folder: Path) -> int:
    """How many cells the run has: what is compared is not empty."""
    return len((folder / "out" / "cells.csv").read_text().splitlines()) - 1


@pytest.fixture(scope="module")
def two_cores() -> Iterator[Any]:
    """Ray on two cores, for all runs of this file that do not start their own."""
    ray = pytest.importorskip("ray")
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=2**27, log_to_driver=False)
    yield ray
    ray.shutdown()


def check_same(folder: Path, reference: Path) -> None:
    assert tables(folder / "out") == tables(reference / "out")
    gc(Store(folder / "store"))
    assert files(folder / "store") == files(reference / "store")
    assert not list(verify(Store(folder / "store")))


@pytest.mark.slow
def test_two_workers_write_the_same_tables_to_the_byte(
    reference: tuple[Path, Path], two_cores: Any, tmp_path: Path
) -> None:
    config, whole = reference

    result = CliRunner().invoke(app, words(config, tmp_path, "--executor", "ray", "--workers", "2", "--device", "cpu"))

    assert result.exit_code == 0, result.output
    check_same(tmp_path, whole)
    assert not at_work(tmp_path / "store")


def at_work(root: Path) -> dict[str, int]:
    """The processes that are at a task of this store, by the task's lock."""
    found = dict[str, int]()
    for path in root.glob("*/*.lock"):
        with suppress(OSError):
            text = path.read_text()
            found |= {path.name: int(text.split()[0])} if text else {}
    return found


def kill_at_work(root: Path, times: int, killed: dict[str, int]) -> None:
    """Kill -9 whoever is at a task, so often, but nobody at a task that lost one before."""
    over = time.monotonic() + WAIT
    while len(killed) < times and time.monotonic() < over:
        for lock, pid in at_work(root).items():
            if len(killed) < times and lock not in killed and pid not in killed.values():
                os.kill(pid, signal.SIGKILL)
                killed[lock] = pid
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_worker_costs_its_task_only(reference: tuple[Path, Path], two_cores: Any, tmp_path: Path) -> None:
    config, whole = reference
    killed = dict[str, int]()
    killer = threading.Thread(target=kill_at_work, args=(tmp_path / "store", 3, killed))
    killer.start()

    result = CliRunner().invoke(app, words(config, tmp_path, "--executor", "ray", "--workers", "2", "--device", "cpu"))

    killer.join()
    assert result.exit_code == 0, result.output
    assert len(killed) == 3
    check_same(tmp_path, whole)


@dataclass(frozen=True, kw_only=True)
class Bad(Defense):
    """A defense that raises, hangs, has no memory or takes its process with it; it notes each try in a file."""

    how: str
    log: str

    version = 1
    fidelity = "reimplemented"
    matched = "nothing"

    def protect(self, model: Any, concept: Any, data: Any, *, rng: Any, report: Any) -> Delta:
        with Path(self.log).open("a") as handle:
            handle.write(f"{self.how}\n")
        if self.how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "hungry":
            raise torch.OutOfMemoryError("no memory left")
        if self.how == "raises":
            raise ZeroDivisionError("thesis deadline")
        while self.how == "hangs":
            time.sleep(0.05)
            report(step=1, total=2, loss=0.5)
        swallow()
        return Delta()


class Watching(Silent):
    """Events that remember how far each task was seen."""

    def __init__(self) -> None:
        self.at, self.seen = "", dict[str, list[float]]()

    def started(self, task: Task) -> None:
        self.at = task.label

    def step(self, *, step: int, total: int, loss: float) -> None:
        self.seen.setdefault(self.at, []).append(loss)


@pytest.mark.slow
def test_bad_methods_fail_their_cells_only(two_cores: Any, tiny_folder: Path, tmp_path: Path) -> None:
    """Each for its own reason; who hangs is seen to move, and everything else is computed."""
    registry.OWN["defense", "bad"] = Bad
    ways = ("raises", "hangs", "hungry", "dies", "deaf")
    bad = [{"use": "bad", "as": how, "how": how, "log": str(tmp_path / "log")} for how in ways]
    try:
        plan = make_plan(tmp_path, tiny_folder, attacks=["none"], defenses=["none", *bad])
        events = Watching()
        with each_task(15):
            bench = Bench(tiny_folder, Store(tmp_path / "store").open())
            outcome = run(plan, bench, events, on_ray.executor(2))
    finally:
        del registry.OWN["defense", "bad"]

    said = {plan.tasks[key].label.split()[0]: trace for key, trace in outcome.failed.items()}
    assert set(said) == set(ways)
    assert "ZeroDivisionError: thesis deadline" in said["raises"]
    assert "expected the task to end within 15 seconds" in said["hangs"]
    assert "Its worker was killed" in said["deaf"]
    assert "no memory left" in said["hungry"]
    assert "expected a worker to live through this task, got 3 that died" in said["dies"]
    tries = (tmp_path / "log").read_text().split()
    assert {how: tries.count(how) for how in ways} == {"raises": 1, "hangs": 1, "hungry": 2, "dies": 3, "deaf": 1}
    assert any(loss == 0.5 for loss in events.seen["hangs on cat"])
    assert all("did not finish" in reason for reason in outcome.skipped.values())
    others = {key for key, task in plan.tasks.items() if not task.label.startswith(ways) and key not in outcome.skipped}
    assert set(outcome.ran) == others
    assert len(outcome.ran) + len(outcome.skipped) + 5 == len(plan.tasks)


@pytest.mark.slow
def test_a_run_beside_another_shares_its_work(reference: tuple[Path, Path], two_cores: Any, tmp_path: Path) -> None:
    """One on Ray, one in a process of its own: what one holds the other waits for."""
    config, whole = reference
    other = tmp_path / "other"
    other.mkdir()
    beside = ["run", str(config), "--out", str(other / "out"), "--store", str(tmp_path / "store"), "--device", "cpu"]
    process = start(tmp_path / "log", *beside)

    result = CliRunner().invoke(app, words(config, tmp_path, "--executor", "ray", "--workers", "2", "--device", "cpu"))

    assert result.exit_code == 0, result.output
    assert ended(process) == 0, (tmp_path / "log").read_text()
    (tmp_path / "ours").write_text(result.stdout)
    counts = [last_counts(tmp_path / name) for name in ("log", "ours")]
    assert sum(count["ran"] for count in counts) == len(list(Store(tmp_path / "store").results()))
    assert tables(other / "out") == tables(tmp_path / "out") == tables(whole / "out")


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_and_ray(reference: tuple[Path, Path], tmp_path: Path) -> None:
    """And the same command goes on, in one process if one likes."""
    pytest.importorskip("ray")
    config, whole = reference
    process = start(tmp_path / "log", *words(config, tmp_path, "--executor", "ray", "--workers", "2"))
    while process.is_alive() and not list(Store(tmp_path / "store").results()):
        time.sleep(0.02)
    assert process.pid
    assert process.is_alive(), (tmp_path / "log").read_text()
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) > 2
    os.kill(process.pid, signal.SIGINT)

    assert ended(process) == 130
    assert psutil.wait_procs(family, timeout=WAIT)[1] == []
    last = (tmp_path / "log").read_text().strip().splitlines()[-1]
    assert last.startswith("stopped: ")
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert ended(start(tmp_path / "log", *words(config, tmp_path, "--device", "cpu"))) == 0
    check_same(tmp_path, whole)


@pytest.mark.slow
def test_a_lost_machine_costs_its_tasks_only(reference: tuple[Path, Path], tmp_path: Path) -> None:
    """A cluster of two machines with a core each, at RAY_ADDRESS; one of them goes. The cluster is left as it is."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    config, whole = reference
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        other = cluster.add_node(num_cpus=1)
        with started(cluster.address, tmp_path / "log", words(config, tmp_path, "--executor", "ray")) as process:
            while process.poll() is None and len(list(Store(tmp_path / "store").results())) < 3:
                time.sleep(0.02)
            cluster.remove_node(other, allow_graceful=False)

            assert process.wait(WAIT) == 0, (tmp_path / "log").read_text()
        assert "lost worker" in (tmp_path / "log").read_text()
        assert cluster.head_node.remaining_processes_alive()
    finally:
        cluster.shutdown()
    check_same(tmp_path, whole)


@contextmanager
def started(address: str, log: Path, command: list[str]) -> Iterator[Any]:
    """The command in a process of its own, with RAY_ADDRESS; it does not outlive the block."""
    with log.open("w") as handle:
        code = "import torch; torch.set_num_threads(1); from benchmark.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, *command],
            env=os.environ | {"RAY_ADDRESS": address},
            stdout=handle,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_weights_that_do_not_fit_are_one_line_and_2(two_cores: Any, tiny_folder: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, lacking(tiny_folder, tmp_path / "model"))

    result = CliRunner().invoke(app, words(config, tmp_path, "--executor", "ray", "--workers", "2", "--device", "cpu"))

    assert result.exit_code == 2, result.output
    assert "conv_in.weight among the weights of" in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.output


@pytest.mark.slow
def test_no_cluster_at_the_address_is_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    config = write_config(tmp_path, tiny_folder)

    with started("127.0.0.1:1", tmp_path / "log", words(config, tmp_path, "--executor", "ray")) as process:
        assert process.wait(WAIT) == 2

    lines = (tmp_path / "log").read_text().strip().splitlines()
    assert "expected a Ray cluster at RAY_ADDRESS=127.0.0.1:1" in lines[-1]
    assert "Traceback" not in "\n".join(lines)


def test_without_the_package_one_line_says_what_to_install(tiny_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    config = write_config(tmp_path, tiny_folder)

    result = CliRunner().invoke(app, words(config, tmp_path, "--executor", "ray"))

    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "expected the package ray" in result.stderr
    assert "pip install 'titer[ray]'" in result.stderr


def test_a_finished_run_needs_no_ray(reference: tuple[Path, Path], monkeypatch: Any) -> None:
    config, whole = reference
    monkeypatch.setitem(sys.modules, "ray", None)

    result = CliRunner().invoke(app, words(config, whole, "--executor", "ray"))

    assert result.exit_code == 0, result.output
    assert "ran 0" in result.stdout


def test_an_unknown_executor_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, words(write_config(tmp_path, tiny_folder), tmp_path, "--executor", "slurm"))

    assert result.exit_code == 2
    assert "ray" in result.output


def test_every_task_at_work_has_a_bar(tiny_folder: Path, tmp_path: Path) -> None:
    """The whole run's bar counts what is done of each; a task that ends takes its bar away."""
    plan = make_plan(tmp_path, tiny_folder)
    one, two, *rest = plan.tasks.values()
    bars = Bars(Console(file=StringIO()), list(plan.tasks.values()))

    bars.started(one)
    bars.started(two)
    bars.step(step=1, total=4, loss=0.25)
    bars.started(one)
    bars.step(step=1, total=2, loss=math.nan)

    whole, first, second = bars.progress.tasks
    assert (first.completed, first.total) == (1, 2)
    assert (second.completed, second.total) == (1, 4)
    assert "loss 0.2500" in second.description
    assert "loss" not in first.description
    weights = dict(bars.waiting)
    assert whole.completed == weights[one.key] / 2 + weights[two.key] / 4

    bars.finished(one, "ran")
    bars.finished(rest[0], "skipped")

    assert [bar.description for bar in bars.progress.tasks[1:]] == [second.description]
    assert bars.progress.tasks[0].completed == weights[one.key] + weights[two.key] / 4 + weights[rest[0].key]
    for task in (two, *rest[1:]):
        bars.finished(task, "ran")
    assert bars.progress.tasks[0].completed == bars.progress.tasks[0].total == sum(weights.values())


def test_a_run_reports_each_task_once(tiny_folder: Path, tmp_path: Path) -> None:
    """The contract between the runner and any executor, here one that tries the tasks in the wrong order first."""
    plan = make_plan(tmp_path, tiny_folder, defenses=["none"], attacks=["none"])
    ended_tasks = list[str]()

    class Noting(Silent):
        def finished(self, task: Task, outcome: str) -> None:
            ended_tasks.append(task.key)

    def backwards(job: Any) -> None:
        waiting = list(reversed(list(plan.tasks.values())))
        while waiting:
            waiting = [task for task in waiting if not job.work(task)]

    outcome = run(plan, Bench(tiny_folder, Store(tmp_path / "store").open()), Noting(), backwards)

    assert isinstance(outcome, Outcome)
    assert sorted(ended_tasks) == sorted(outcome.ran) == sorted(plan.tasks)
