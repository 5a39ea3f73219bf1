"""Disks, rights, terminals and signals: each ends in one line, whatever the command."""

import io
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from benchmark import cli, session
from benchmark.cli import app
from benchmark.cli import common as shared
from benchmark.plan.task import Task
from benchmark.runner.progress import Bars
from benchmark.store import Store
from benchmark.store.artifacts import save_delta
from benchmark.types import Delta
from leaderboards.files import write_table
from tests.runner.test_loop import make_plan
from tests.runs import write_config


def titer(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def full(*_: Any, **__: Any) -> Any:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("command", "more"),
    [("plan", []), ("status", []), ("board", ["--out", "OUT"]), ("export", ["cat/esd", "--to", "TO"]), ("run", [])],
)
def test_a_disk_that_fails_is_one_line_in_every_command(
    tiny_folder: Path, tmp_path: Path, monkeypatch: Any, command: str, more: list[str]
) -> None:
    config = write_config(tmp_path, tiny_folder)
    monkeypatch.setattr(session, "prepare", full)
    Store(tmp_path / "store").open()

    result = titer(command, config, *(word.replace("TO", str(tmp_path / "to")) for word in more), "--store", tmp_path)

    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "No space left on device" in result.stderr
    assert "make room" in result.stderr


@pytest.mark.parametrize("command", ["ls", "verify", "gc"])
def test_a_store_that_fails_is_one_line(tmp_path: Path, monkeypatch: Any, command: str) -> None:
    Store(tmp_path / "store").open()
    for name in ("ls", "verify", "gc"):
        monkeypatch.setattr(cli.store.maintenance, name, full)

    result = titer("store", command, "--store", tmp_path / "store")

    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_name_that_no_file_can_have_is_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)

    result = titer("new", "attack", "x" * 300)

    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1


def test_what_no_command_expected_is_one_line_too(monkeypatch: Any, capsys: Any) -> None:
    """A terminal that is gone when the tables are shown."""
    monkeypatch.setattr(cli, "app", full)
    monkeypatch.setattr(cli, "err", Console(stderr=True, soft_wrap=True))
    with pytest.raises(SystemExit) as ended:
        cli.main()

    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert shared.CURE in said


class Gone(io.StringIO):
    """A terminal that was closed."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")

    flush = write  # type: ignore[assignment]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_that_is_gone_does_not_end_the_run(tiny_folder: Path, tmp_path: Path, is_terminal: bool) -> None:
    tasks: list[Task] = list(make_plan(tmp_path, tiny_folder).tasks.values())
    bars = Bars(Console(file=Gone(is_terminal), force_terminal=is_terminal), tasks)
    bars.progress.live.auto_refresh = False
    with bars:
        for task in tasks:
            bars.started(task)
            bars.step(step=1, total=2, loss=0.5)
            bars.finished(task, "ran")

    assert bars.done == len(tasks)
    assert bars.is_lost


@pytest.mark.slow
def test_ctrl_c_in_the_first_second_is_one_line() -> None:
    """While the command is still being imported."""
    code = "import time, builtins; real = builtins.__import__\n"
    code += "def late(name, *more):\n    if name == 'typer': print('here', flush=True); time.sleep(60)\n"
    code += "    return real(name, *more)\nbuiltins.__import__ = late\nfrom benchmark.cli import main\nmain()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 130
    assert said == "stopped\n"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_rights_that_the_umask_gives(tmp_path: Path, umask: int, mode: int) -> None:
    """safetensors and `mkstemp` alone would make files that nobody else can read: a store may be shared."""
    import pandas as pd

    before = os.umask(umask)
    try:
        store = Store(tmp_path / "store").open()
        store.put(f"defend/x-{'ab' * 16}", lambda folder: save_delta(folder, Delta()), {})
        write_table(pd.DataFrame({"x": [1]}), tmp_path / "table.csv")
        write_table(pd.DataFrame({"x": [1]}), tmp_path / "table.parquet")
    finally:
        os.umask(before)
    files = [*(path for path in store.root.rglob("*") if path.is_file()), *tmp_path.glob("table.*")]

    assert len(files) == 5
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {mode}
