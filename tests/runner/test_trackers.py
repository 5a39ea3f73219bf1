"""Trackers get numbers and tables, only when asked; one that is missing or fails never stops or changes a run."""

import logging
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from benchmark.cli import app
from benchmark.errors import ConfigError, PackageError
from benchmark.plan.task import Task
from benchmark.runner import trackers
from tests.runs import write_config

CONFIG = {"name": "tiny", "model": "mini", "concepts": ["cat"], "draws": 100}
TABLE = pd.DataFrame({"defense": ["esd+imma", "none"], "rank": pd.array([1, None], "Int64"), "kid": [0.5, math.nan]})


class Calls(list[Any]):
    """What a fake package was asked."""

    def record(self, name: str, answer: Any = None) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self.append((name, args, options))
            return answer

        return call

    def named(self, name: str) -> list[Any]:
        return [(args, options) for called, args, options in self if called == name]


def fake_wandb(calls: Calls) -> Any:
    """wandb.init(project=, name=, config=) -> run; run.log(data, step=); run.finish(); wandb.Table(dataframe=)."""
    run = SimpleNamespace(log=calls.record("log"), finish=calls.record("finish"))
    return SimpleNamespace(init=calls.record("init", run), Table=calls.record("Table", "table"))


def fake_mlflow(calls: Calls) -> Any:
    """The fluent functions, each with the keywords that MLflow 3 has."""
    names = ("set_experiment", "start_run", "log_params", "log_dict", "log_metrics", "log_table", "end_run")
    return SimpleNamespace(**{name: calls.record(name) for name in names})


def fake_trackio(calls: Calls) -> Any:
    """trackio.init(project=, name=, config=), log(metrics, step=), Table(dataframe=), finish()."""
    names = {"init": None, "log": None, "finish": None, "Table": "table"}
    return SimpleNamespace(**{name: calls.record(name, answer) for name, answer in names.items()})


FAKES = {"wandb": fake_wandb, "mlflow": fake_mlflow, "trackio": fake_trackio}


@pytest.fixture(params=sorted(FAKES))
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Calls]:
    calls = Calls()
    monkeypatch.setitem(sys.modules, request.param, FAKES[request.param](calls))
    return request.param, calls


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.WARNING):
        yield


def tell(name: str) -> trackers.Guarded:
    tracker = trackers.tracker_of(name)
    tracker.start(CONFIG)
    tracker.log(3, {"loss/attack/lora": 0.5, "seconds/score": math.nan})
    tracker.log(4, {"mini/relearn/esd+imma/worst_presence": 0.25})
    tracker.finish({"leaderboard": TABLE})
    return tracker


def test_every_tracker_hears_config_numbers_and_tables(fake: tuple[str, Calls]) -> None:
    name, calls = fake

    assert not tell(name).is_broken

    if name == "mlflow":
        assert calls.named("set_experiment") == [(("titer",), {})]
        assert calls.named("start_run") == [((), {"run_name": "tiny"})]
        assert calls.named("log_params")[0][0][0]["concepts"] == "['cat']"
        assert calls.named("log_dict") == [((CONFIG, "config.json"), {})]
        numbers = [({"loss/attack/lora": 0.5}, 3), ({"mini/relearn/esd_imma/worst_presence": 0.25}, 4)]
        assert [(args[0], options["step"]) for args, options in calls.named("log_metrics")] == numbers
        tables = {options["artifact_file"]: options["data"] for _, options in calls.named("log_table")}
        assert calls[-1][0] == "end_run"
        assert list(tables) == ["leaderboard.json"]
        sent = tables["leaderboard.json"]
    else:
        assert calls.named("init") == [((), {"project": "titer", "name": "tiny", "config": CONFIG})]
        numbers = [({"loss/attack/lora": 0.5}, 3), ({"mini/relearn/esd+imma/worst_presence": 0.25}, 4)]
        assert [(args[0], options.get("step")) for args, options in calls.named("log")][:2] == numbers
        assert calls.named("log")[2] == (({"leaderboard": "table"},), {})
        assert calls[-1][0] == "finish"
        sent = calls.named("Table")[0][1]["dataframe"]
    assert sent.to_dict("list") == {"defense": ["esd+imma", "none"], "rank": [1, None], "kid": [0.5, None]}


def test_a_tracker_that_fails_warns_once_and_is_left_alone(
    fake: tuple[str, Calls], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name, calls = fake

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no\nnetwork")

    first = "set_experiment" if name == "mlflow" else "init"
    monkeypatch.setattr(sys.modules[name], first, fail)

    assert tell(name).is_broken
    assert not calls
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} failed and is left alone, the run goes on: no network"
    ]


@pytest.mark.parametrize("name", sorted(FAKES))
def test_a_missing_package_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(PackageError, match=rf"pip install 'titer\[{name}\]'"):
        trackers.tracker_of(name)
    found = CliRunner().invoke(app, ["run", "smoke", "--track", name])
    assert found.exit_code == 2
    assert len(found.stderr.strip().splitlines()) == 1


def test_an_unknown_tracker_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown tracker 'wanbd': did you mean 'wandb'"):
        trackers.tracker_of("wanbd")


def test_nothing_is_imported_unless_asked() -> None:
    code = "import sys, benchmark.cli, benchmark.runner.trackers as t; "
    code += "assert t and not {'wandb', 'mlflow', 'trackio'} & sys.modules.keys()"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_extras_are_declared() -> None:
    import tomllib

    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]

    assert all(extras[name][0].startswith(name) for name in trackers.TRACKERS)


def test_what_was_in_the_store_is_not_told_again() -> None:
    class Deaf:
        def started(self, task: Task) -> None: ...
        def step(self, *, step: int, total: int, loss: float) -> None: ...
        def finished(self, task: Task, outcome: str) -> None: ...

    calls = Calls()
    task = Task(kind="attack", plugin="lora", version=1, base="b")
    watch = trackers.Watch(Deaf(), SimpleNamespace(log=calls.record("log")))
    watch.finished(task, "found")
    watch.started(task)
    watch.step(step=1, total=2, loss=0.75)
    watch.finished(task, "ran")
    watch.finished(task, "skipped")

    (first, numbers), (second, more) = (args for args, _ in calls.named("log"))
    assert (first, second) == (2, 3)
    assert (numbers["loss/attack/lora"], numbers["tasks/ran"], numbers["tasks/found"]) == (0.75, 1, 1)
    assert more == {"tasks/found": 1, "tasks/ran": 1, "tasks/skipped": 1}


@pytest.mark.slow
def test_a_run_is_tracked_from_start_to_finish_and_stays_the_same(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tracker and without, the tables are the same; the tracker has the leaderboard, and no prompt."""
    calls = Calls()
    monkeypatch.setitem(sys.modules, "mlflow", fake_mlflow(calls))
    path = write_config(tmp_path, tiny_folder, attacks=["none"], defenses=["none"], budgets=[])

    def run(folder: str, *more: str) -> str:
        where = ["--out", str(tmp_path / folder), "--store", str(tmp_path / f"{folder}-store"), "--device", "cpu"]
        found = CliRunner().invoke(app, ["run", str(path), *where, *more])
        assert found.exit_code == 0, found.output
        return (tmp_path / folder / "leaderboard.csv").read_text()

    assert run("tracked", "--track", "mlflow") == run("plain")
    assert calls[-1][0] == "end_run"
    assert len(calls.named("log_table")) == len(trackers.TABLES)
    told = [name for args, _ in calls.named("log_metrics") for name in args[0]]
    assert any(name.endswith("/relearn/none/presence_before") for name in told)
    assert "a cat one" not in str(list(calls))


def test_a_stopped_run_is_closed_without_tables(fake: tuple[str, Calls]) -> None:
    name, calls = fake
    raw = SimpleNamespace(model_dump=lambda mode: CONFIG)
    job = SimpleNamespace(plan=SimpleNamespace(config=SimpleNamespace(raw=raw)), board=None)

    with pytest.raises(KeyboardInterrupt), trackers.told(trackers.tracker_of(name), job, None):
        raise KeyboardInterrupt

    assert calls[-1][0] in ("finish", "end_run")
    assert not calls.named("Table") and not calls.named("log_table")


def test_mlflow_itself_takes_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package, where it is installed, into a local folder."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())

    assert not tell("mlflow").is_broken

    (run,) = mlflow.search_runs(experiment_names=["titer"], output_format="list")
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"loss/attack/lora": 0.5, "mini/relearn/esd_imma/worst_presence": 0.25}
    assert run.data.params["model"] == "mini"
