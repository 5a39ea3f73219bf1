"""A run's numbers and tables, sent to Weights & Biases, MLflow or Trackio as well. Off unless it is asked for.

Sent are the config, how many tasks are done, their last losses and seconds, and the tables of the board; never an
image or a prompt. Where they go is for the package's own settings to say (WANDB_MODE, MLFLOW_TRACKING_URI, …).
A tracker that fails is left alone after one warning: it never stops a run. Packages are imported when they are asked
for, and each is an extra: pip install 'titer[wandb]'.
"""

import importlib
import json
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import pandas as pd

from benchmark.errors import ConfigError, PackageError, unknown
from benchmark.plan.task import Task

PROJECT = "titer"
TABLES = ("leaderboard", "matrix", "curves")
LONGEST = 500  # characters of a parameter that every MLflow server takes

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """What a run tells a tracker."""

    def start(self, config: Mapping[str, Any]) -> None:
        """A run begins; `config` holds JSON values, its name among them."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers after `step` tasks."""

    def finish(self, tables: Mapping[str, pd.DataFrame]) -> None:
        """The run ended; there are no tables if it was stopped."""


class Wandb:
    """Weights & Biases."""

    def __init__(self, package: Any) -> None:
        self.package, self.run = package, None

    def start(self, config: Mapping[str, Any]) -> None:
        """Open a run of the project titer."""
        self.run = self.package.init(project=PROJECT, name=config["name"], config=dict(config))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add numbers."""
        self.run.log(dict(numbers), step=step)  # type: ignore[attr-defined]

    def finish(self, tables: Mapping[str, pd.DataFrame]) -> None:
        """Add the tables and close."""
        for name, table in tables.items():
            self.run.log({name: self.package.Table(dataframe=plain(table))})  # type: ignore[attr-defined]
        self.run.finish()  # type: ignore[attr-defined]


class MLflow:
    """MLflow."""

    def __init__(self, package: Any) -> None:
        self.package = package

    def start(self, config: Mapping[str, Any]) -> None:
        """Open a run of the experiment titer."""
        self.package.set_experiment(PROJECT)
        self.package.start_run(run_name=config["name"])
        self.package.log_params({name: str(value)[:LONGEST] for name, value in config.items()})
        self.package.log_dict(dict(config), "config.json")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add numbers; their names keep the characters that MLflow takes."""
        self.package.log_metrics({re.sub(r"[^\w\-. /]", "_", name): n for name, n in numbers.items()}, step=step)

    def finish(self, tables: Mapping[str, pd.DataFrame]) -> None:
        """Add the tables and close."""
        for name, table in tables.items():
            self.package.log_table(data=plain(table), artifact_file=f"{name}.json")
        self.package.end_run()


class Trackio:
    """Trackio."""

    def __init__(self, package: Any) -> None:
        self.package = package

    def start(self, config: Mapping[str, Any]) -> None:
        """Open a run of the project titer."""
        self.package.init(project=PROJECT, name=config["name"], config=dict(config))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add numbers."""
        self.package.log(dict(numbers), step=step)

    def finish(self, tables: Mapping[str, pd.DataFrame]) -> None:
        """Add the tables and close."""
        for name, table in tables.items():
            self.package.log({name: self.package.Table(dataframe=plain(table))})
        self.package.finish()


TRACKERS: dict[str, type[Any]] = {"wandb": Wandb, "mlflow": MLflow, "trackio": Trackio}


class Guarded:
    """A tracker that may fail: once it does, one warning is given and it is called no more."""

    def __init__(self, tracker: Tracker, name: str) -> None:
        self.tracker, self.name, self.is_broken = tracker, name, False

    def start(self, config: Mapping[str, Any]) -> None:
        """As the tracker's."""
        self.call("start", json.loads(json.dumps(dict(config), default=str)))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """As the tracker's; numbers that are not finite are left out."""
        self.call("log", step, {name: float(n) for name, n in numbers.items() if math.isfinite(n)})

    def finish(self, tables: Mapping[str, pd.DataFrame]) -> None:
        """As the tracker's."""
        self.call("finish", tables)

    def call(self, what: str, *given: Any) -> None:
        """Call the tracker, unless it failed before."""
        if self.is_broken:
            return
        try:
            getattr(self.tracker, what)(*given)
        except Exception as error:  # another's service: whatever it raises, the run goes on
            self.is_broken = True
            log.warning("%s failed and is left alone, the run goes on: %s", self.name, " ".join(str(error).split()))


def tracker_of(name: str) -> Guarded:
    """The tracker of a name, its package imported.

    Raises:
        ConfigError: there is no such tracker.
        PackageError: its package cannot be imported.
    """
    if name not in TRACKERS:
        raise ConfigError(unknown("tracker", name, TRACKERS))
    try:
        package = importlib.import_module(name)
    except Exception as error:  # another's package may raise anything
        raise PackageError(
            f"expected the package {name} for --track {name}, got {error!r}: pip install 'titer[{name}]'."
        ) from error
    return Guarded(TRACKERS[name](package), name)


class Watch:
    """Events that pass on to others and tell a tracker of each task that ended, unless it was in the store."""

    def __init__(self, onward: Any, tracker: Tracker) -> None:
        self.onward, self.tracker = onward, tracker
        self.outcomes, self.loss, self.since = Counter[str](), math.nan, time.monotonic()

    def started(self, task: Task) -> None:
        """A task begins."""
        self.loss, self.since = math.nan, time.monotonic()
        self.onward.started(task)

    def step(self, *, step: int, total: int, loss: float) -> None:
        """The task at hand moved on."""
        self.loss = loss
        self.onward.step(step=step, total=total, loss=loss)

    def finished(self, task: Task, outcome: str) -> None:
        """A task ended: ran, found, failed or skipped."""
        self.onward.finished(task, outcome)
        self.outcomes[outcome] += 1
        if outcome == "found":
            return
        numbers = {f"tasks/{name}": float(count) for name, count in self.outcomes.items()}
        if outcome == "ran":
            numbers |= {f"seconds/{task.kind}": time.monotonic() - self.since}
            numbers |= {f"loss/{task.kind}/{task.plugin}": self.loss}
        self.tracker.log(self.outcomes.total(), numbers)


@contextmanager
def told(tracker: Guarded | None, job: Any, onward: Any) -> Iterator[Any]:
    """The events of a run, of which the tracker hears, too; without one, `onward` as they are.

    Args:
        job: the `session.Session` that is about to run.
    """
    if tracker is None:
        yield onward
        return
    watch, tables = Watch(onward, tracker), dict[str, pd.DataFrame]()
    tracker.start(job.plan.config.raw.model_dump(mode="json"))
    try:
        yield watch
        board = job.board or job.publish()  # the tables may have been there already
        tables = {name: getattr(board, name) for name in TABLES}
        tracker.log(watch.outcomes.total() + 1, summary(board.leaderboard))
    finally:
        tracker.finish(tables)


def summary(leaderboard: pd.DataFrame) -> dict[str, float]:
    """The leaderboard's numbers by `model/scenario/defense/column`."""
    numeric = [name for name in leaderboard if pd.api.types.is_numeric_dtype(leaderboard[name])]
    found: dict[str, float] = {}
    for row in leaderboard.to_dict("records"):
        who = "/".join(str(row[name]) for name in ("model", "scenario", "defense"))
        found |= {f"{who}/{name}": float(row[name]) for name in numeric if not pd.isna(row[name])}
    return found


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """The table with None for what is missing, which every tracker can write."""
    return table.astype(object).where(table.notna(), None)
