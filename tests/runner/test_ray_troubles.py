"""A cluster that is lost ends a run, and nobody else gets at one that is ours."""

import os
import re
import shutil
import signal
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from benchmark.errors import DataError, WorkerError
from benchmark.plan.task import Task
from benchmark.runner.executors import cluster
from benchmark.runner.executors import ray as on_ray
from benchmark.runner.executors.actors import Order, Worker
from benchmark.runner.executors.ray import ALONE, LONELY, Driver
from benchmark.runner.loop import Outcome
from benchmark.runner.stages import Bench
from benchmark.store import Store


def lonely(alive: bool) -> Any:
    """A driver without workers in a cluster whose only machine is there, or lost."""
    driver = object.__new__(Driver)
    driver.ray = SimpleNamespace(nodes=lambda: [{"Alive": alive}])
    driver.manned = driver.looked = driver.warned = 0.0
    driver.fleet = cluster.fleet(2, 0, None, on_gpu=False, room=2)
    return driver


def test_a_cluster_without_a_machine_ends_the_run_and_says_how_to_go_on() -> None:
    """Promises of workers that nobody can keep any more were waited for without an end."""
    with pytest.raises(WorkerError, match=r"it was lost\. The same command goes on"):
        lonely(alive=False).wait_for_workers(on_ray.LOOK + 1.0)


def test_a_full_cluster_is_waited_for_but_not_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    driver = lonely(alive=True)
    for now in range(0, LONELY, 10):
        driver.wait_for_workers(float(now))

    assert len([record for record in caplog.records if "no worker for" in record.message]) >= LONELY // ALONE - 2
    with pytest.raises(WorkerError, match="The same command goes on"):
        driver.wait_for_workers(LONELY + 1.0)


def lacking(whole: Path, folder: Path) -> Path:
    """A copy of a model of which a weight is missing: only who loads it sees that."""
    shutil.copytree(whole, folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    kept = load_file(file)
    del kept["conv_in.weight"]
    save_file(kept, file, metadata={"format": "pt"})
    return folder


def test_weights_that_do_not_fit_end_the_run_and_not_each_of_its_tasks(tiny_folder: Path, tmp_path: Path) -> None:
    """As they do in one process: the worker tells of them apart from what a task ends with."""
    folder, store = lacking(tiny_folder, tmp_path / "model"), Store(tmp_path / "store").open()
    order = Order(bench=Bench(folder, store, device="cpu"), threads=1, seconds=None, shared=False, own={})
    task = Task(kind="generate", plugin="sampler", version=1, base="b")

    with pytest.raises(DataError) as told:
        Worker("worker-0", order, None).work(task, [])

    class TaskError(Exception):
        cause = told.value

    def get(promise: Any) -> Any:
        raise TaskError

    driver = object.__new__(Driver)
    driver.ray = SimpleNamespace(get=get, exceptions=SimpleNamespace(RayTaskError=TaskError))
    driver.run = SimpleNamespace(outcome=Outcome())  # type: ignore[assignment]
    with pytest.raises(DataError, match=re.escape(str(told.value))):
        driver.conclude(None, "worker-0", task.key)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of one's own, and a place for Ray's sessions."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("is_there", [True, False])
def test_nobody_else_can_read_the_token(home: Path, is_there: bool) -> None:
    token = home / ".ray" / "auth_token"
    if is_there:
        token.parent.mkdir()
        token.write_text("as it was")
        token.chmod(0o644)
    before = os.umask(0)
    try:
        cluster.lock_up_token()
    finally:
        os.umask(before)

    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text() == "as it was" if is_there else len(token.read_text()) == 64


def test_nobody_else_can_enter_rays_session(home: Path) -> None:
    """Ray lets everybody write into its folder: it is inside one that is closed, and never in somebody else's."""
    own = cluster.own_folder()
    assert own == cluster.own_folder() == home / f"titer-{os.getuid()}"
    assert stat.S_IMODE(own.stat().st_mode) == 0o700

    own.chmod(0o777)
    other = cluster.own_folder()
    assert other != own
    assert stat.S_IMODE(other.stat().st_mode) == 0o700

    own.rmdir()
    own.symlink_to(other)
    assert cluster.own_folder() not in (own, other)


def test_sigterm_ends_a_run_as_ctrl_c_does() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with cluster.stopped_alike(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)

    assert signal.getsignal(signal.SIGTERM) is before
