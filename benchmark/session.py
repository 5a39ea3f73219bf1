"""One run: a config, its plan, its store and its folder of tables."""

import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark import models, records
from benchmark.config import Config
from benchmark.data import load_concept
from benchmark.errors import ConfigError, FolderError
from benchmark.plan import Plan, build
from benchmark.report import page
from benchmark.store import Store, empty, write_whole
from benchmark.task import Task
from leaderboards.board import Board
from leaderboards.board import build as build_board
from leaderboards.claims import Claim, judge
from leaderboards.files import write_table
from leaderboards.merge import IncomparableError, Tables, combine

PACKAGES = ("titer", "torch", "diffusers", "transformers", "peft", "open_clip_torch", "pandas", "numpy")


@dataclass
class Session:
    """A prepared run."""

    plan: Plan
    store: Store
    folder: Path
    out: Path
    source: str
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    board: Board | None = None

    @property
    def left(self) -> list[Task]:
        """The tasks that are not in the store."""
        return [task for key, task in self.plan.tasks.items() if not self.store.has(key)]

    def facts(self) -> dict[str, Any]:
        """Counts for `titer plan` and `titer status`."""
        left = {task.key for task in self.left}
        kinds: dict[str, dict[str, int]] = {}
        for key, task in self.plan.tasks.items():
            count = kinds.setdefault(task.kind, {"tasks": 0, "left": 0})
            count["tasks"] += 1
            count["left"] += key in left
        return {
            "name": self.plan.config.raw.name,
            "cells": len(self.plan.cells),
            "tasks": len(self.plan.tasks),
            "left": len(left),
            "by_kind": kinds,
            "passes": self.plan.passes,
            "requested_passes": self.plan.requested,
            "skipped": [vars(skip) for skip in self.plan.skipped],
        }

    def run(self, events: Any, *, device: str, batch: int) -> Any:
        """Compute what is missing, then write the tables. Loads no model when nothing is missing."""
        from benchmark.runner import Outcome

        outcome = self.compute(events, device, batch) if self.left else Outcome(found=list(self.plan.tasks))
        self.failed, self.skipped = outcome.failed, outcome.skipped
        self.publish()
        return outcome

    def compute(self, events: Any, device: str, batch: int) -> Any:
        """Run the missing tasks in this process."""
        import torch

        from benchmark.runner import run
        from benchmark.stages import Bench

        found = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        return run(self.plan, Bench(self.folder, self.store, device=found, batch=batch), events)

    def publish(self) -> Board:
        """Write the tables, `run.json` and, if anything failed, `failures.json`."""
        t = self.tables()
        self.board = build_board(t.scores, t.cells, t.costs, t.distances, draws=self.plan.config.raw.draws)
        self.board.write(self.out)
        claims = [Claim(**claim.model_dump()) for claim in self.plan.config.raw.claims]
        if claims:
            write_table(judge(self.board, claims), self.out / "claims.csv")
        rows = records.rows(self.plan, self.store, self.failed, self.skipped)
        write_table(pd.DataFrame(rows), self.out / "records.csv")
        labelled = {self.plan.tasks[key].label: trace for key, trace in self.failed.items()}
        write_whole(self.out / "failures.json", json.dumps(labelled, indent=1))
        facts = self.describe(rows)
        write_whole(self.out / "run.json", json.dumps(facts, indent=1, sort_keys=True))
        page.write(self.plan, self.store, self.board, facts, self.out / "report")
        return self.board

    def tables(self) -> Tables:
        """What the store has of this run, as frames."""
        return Tables(
            scores=records.scores(self.plan, self.store),
            cells=records.cells(self.plan, self.store, self.failed, self.skipped),
            costs=records.costs(self.plan, self.store),
            distances=records.distances(self.plan, self.store),
            source=self.source,
            sampling=self.plan.config.raw.sampling.model_dump(),
        )

    def describe(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What made this run: config, versions, hardware, cost."""
        spent = {name: sum(row.get(name) or 0 for row in rows) for name in ("seconds", "unet_forward", "unet_backward")}
        return {
            "identity": identity(self.plan),
            "config": self.plan.config.raw.model_dump(mode="json"),
            "base": self.plan.base,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
            "machine": {"system": platform.system(), "processor": platform.machine()},
            "command": ["titer", *sys.argv[1:]],
            "planned_passes": self.plan.passes,
            "spent": spent,
        }


def merge(jobs: Sequence[Session], out: Path) -> Board:
    """One board over several runs, written to a folder that is empty or holds such a board.

    Raises:
        ConfigError: the runs are not comparable.
        FolderError: the folder holds something else.
    """
    name = hashlib.sha256(json.dumps(sorted(identity(job.plan) for job in jobs)).encode()).hexdigest()[:16]
    try:
        t = combine([job.tables() for job in jobs])
    except IncomparableError as error:
        raise ConfigError(str(error)) from error
    claim_folder(out, name)
    draws = max(job.plan.config.raw.draws for job in jobs)
    board = build_board(t.scores, t.cells, t.costs, t.distances, draws=draws)
    board.write(out)
    return board


def identity(plan: Plan) -> str:
    """What makes two runs the same one: the config's name and the base."""
    text = json.dumps([plan.config.raw.name, plan.config.raw.model, plan.base])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prepare(config: Config, *, source: str, out: Path | None, store: Path, claim: bool = True) -> Session:
    """Check everything that can be checked before a model is loaded, and plan.

    Args:
        claim: take the folders; False only looks.

    Raises:
        InputError: a name, a file or a folder is wrong.
    """
    folder = models.locate(config.raw.model)
    subject = load_concept(config.adaptation.subject) if config.adaptation else None
    plan = build(config, models.fingerprint(folder), [load_concept(name) for name in config.raw.concepts], subject)
    found = Session(plan, Store(store), folder, out or Path("runs") / config.raw.name, source)
    if claim:
        found.store.open()
        claim_folder(found.out, identity(plan))
    return found


def claim_folder(folder: Path, name: str) -> None:
    """Make the folder this run's, or refuse one that holds something else.

    Raises:
        FolderError: it belongs to another run, or is not empty and no run at all.
    """
    marker = folder / "run.json"
    if marker.is_file():
        try:
            owner = json.loads(marker.read_text()).get("identity")
        except (json.JSONDecodeError, AttributeError) as error:
            raise FolderError(
                f"expected the JSON of a run in {marker}, got something else: choose another --out."
            ) from error
        if owner != name:
            raise FolderError(
                f"expected an empty folder or this run's own at {folder}, got another run's: choose another --out."
            )
    elif folder.exists() and (not folder.is_dir() or not empty(folder)):
        raise FolderError(f"expected an empty folder at {folder}, got files that are no run: choose another --out.")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(marker, json.dumps({"identity": name}))
