"""Plug-ins of other packages run in a process of their own: whatever ends it, the run goes on and writes its tables."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import psutil
import pytest
from typer.testing import CliRunner, Result

from benchmark.cli import app
from benchmark.plan.task import Task
from benchmark.runner.executors import apart
from benchmark.runner.executors.apart import Apart, belongs_apart
from benchmark.runner.loop import attempt
from benchmark.runner.stages import Bench
from benchmark.store import Store
from tests import misbehaving
from tests.runner.test_loop import Silent, files, make_plan
from tests.runs import write_config

ENDS = {  # the words of the failure of each that takes its process with it
    "os._exit(0)": "got a process that died: exit code 0",
    "segfault": "got a process that died: signal SIGSEGV",
    "closes everything": "got a process that died",
    "hangs in C": "expected the task to end within",
    "hangs in C with Python's lock": "expected the task to end within",
    "swallows everything": "expected the task to end within",
    "zeroes the base": "got changes of",
    "sys.exit(0)": "got SystemExit",
    "a KeyboardInterrupt of its own": "got KeyboardInterrupt",
    "a surrogate": "ValueError: bad ? text",
}
HARMLESS = ("ok", "a thread", "at exit", "a forked process", "a second runner", "prints", "closes the output")


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plug-in `bad` of another package."""
    monkeypatch.syspath_prepend(misbehaving.installed(tmp_path / "site"))
    importlib.invalidate_caches()


def command(folder: Path, model: Path, hows: Sequence[str], *more: str) -> Result:
    """A run with one defense for each way to misbehave."""
    bad = [{"use": "bad", "how": how, "as": f"bad-{number}"} for number, how in enumerate(hows)]
    config = write_config(folder, model, defenses=["none", *bad], attacks=["none"])
    words = ["run", config, "--out", folder / "out", "--store", folder / "store", "--device", "cpu", *more]
    return CliRunner().invoke(app, [str(word) for word in words])


def check(folder: Path, clean: Path, hows: Sequence[str]) -> None:
    """What must fail failed with the reason; every other row is as without it."""
    failures = json.loads((folder / "out" / "failures.json").read_text())
    said = {how: [t for name, t in failures.items() if f"bad-{n} on" in name] for n, how in enumerate(hows)}
    for how in hows:
        assert len(said[how]) == (how in ENDS), (how, said[how])
        assert how not in ENDS or ENDS[how] in said[how][0], (how, said[how][0])
    cells = pd.read_csv(folder / "out" / "cells.csv", dtype=str)
    whole = pd.read_csv(clean / "out" / "cells.csv", dtype=str)
    rows = {name: of.drop(columns="defense").reset_index(drop=True) for name, of in cells.groupby("defense")}
    assert rows["none"].equals(whole[whole.defense == "none"].drop(columns="defense").reset_index(drop=True))
    for number, how in enumerate(hows):
        assert (set(rows[f"bad-{number}"].status) == {"failed"}) == (how in ENDS), how


@pytest.fixture(scope="module")
def clean(tiny_folder: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without the plug-in."""
    folder = tmp_path_factory.mktemp("clean")
    shutil.copytree(tiny_run / "store", folder / "store")
    assert command(folder, tiny_folder, []).exit_code == 0
    return folder


@pytest.mark.slow
def test_a_plugin_that_ends_its_process_fails_its_cells_and_the_tables_are_written(
    clean: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """A thread that it leaves running keeps nobody from ending."""
    hows = ("os._exit(0)", "sys.exit(0)", "a thread")

    result = command(tmp_path, tiny_folder, hows)

    assert result.exit_code == 1, result.output
    check(tmp_path, clean, hows)
    assert not psutil.Process().children(recursive=True)


@pytest.mark.slow
def test_whatever_a_plugin_does_to_its_process_every_other_row_stays(
    clean: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "GRACE", 2.0)
    hows = (*ENDS, *HARMLESS)

    result = command(tmp_path, tiny_folder, hows, "--time-limit", "12")

    assert result.exit_code == 1, result.output
    check(tmp_path, clean, hows)
    assert not psutil.Process().children(recursive=True)


class Watching(Silent):
    """Keeps what is said of a task."""

    def __init__(self) -> None:
        self.losses = list[float]()

    def step(self, *, step: int, total: int, loss: float) -> None:
        self.losses.append(loss)


@pytest.mark.slow
def test_the_process_gives_what_ours_would_and_tells_how_far_it_is(tiny_folder: Path, tmp_path: Path) -> None:
    """One process for many tasks; what it computes is the same to the byte. Its death fails the task at hand alone."""
    bad = [{"use": "bad", "how": how, "as": how[:2]} for how in ("ok", "os._exit(0)")]
    plan = make_plan(tmp_path, tiny_folder, defenses=["none", *bad], attacks=["none"])
    task, last = (task for task in plan.tasks.values() if task.plugin == "bad")
    theirs, ours = (Bench(tiny_folder, Store(tmp_path / name).open()) for name in ("theirs", "ours"))
    watching = Watching()

    with Apart(theirs) as place:
        first = place.attempt(task, theirs, watching)
        process = place.process
        second = place.attempt(task, theirs, watching)
        assert place.process is process
        stored = files(tmp_path / "theirs")
        third = place.attempt(last, theirs, watching)
        assert place.process is None

    assert [found.what for found in (first, second, third)] == ["ran", "found", "failed"]
    assert ENDS["os._exit(0)"] in third.trace
    assert not psutil.Process().children(recursive=True)
    assert attempt(task, ours, Silent()).what == "ran"
    assert stored == files(tmp_path / "ours")
    assert watching.losses == [0.5]
    assert "base" not in vars(theirs)
    assert {t.kind for t in plan.tasks.values() if belongs_apart(t, plan.tasks)} == {"defend"}


@pytest.mark.slow
def test_ctrl_c_ends_a_plugin_that_hangs_in_c(tiny_folder: Path, tmp_path: Path) -> None:
    bad = {"use": "bad", "how": "hangs in C with Python's lock"}
    config = write_config(tmp_path, tiny_folder, defenses=["none", bad], attacks=["none"])
    process = subprocess.Popen(
        [sys.executable, "-c", "from benchmark.cli import main; main()"]
        + [str(w) for w in ("run", config, "--out", tmp_path / "out", "--store", tmp_path / "store")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(Path.cwd())])},
    )
    over = time.monotonic() + 200
    while time.monotonic() < over and not list((tmp_path / "store").glob("defend/*.lock")):
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 1

    process.send_signal(signal.SIGINT)

    assert process.wait(60) == 130
    assert psutil.wait_procs(family, timeout=10)[1] == []


def test_imported_weights_call_nobody() -> None:
    """They are read by the runner itself, and need no process of their own."""
    task = Task(kind="defend", plugin="imported", version=1, base="b", fields={"weights": "0" * 64})

    assert not belongs_apart(task, {task.key: task})
