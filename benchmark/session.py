"""One run: a config, its plan, its store and its folder of tables."""

import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark import models, published, records, rescore, withhold
from benchmark.config import Config
from benchmark.data import load_concept
from benchmark.errors import ConfigError, DataError, FolderError
from benchmark.executors import Executor
from benchmark.families import objections
from benchmark.files import empty, write_whole
from benchmark.plan import Plan, build
from benchmark.report import page
from benchmark.report.sketch import Sketch
from benchmark.seen import Seen
from benchmark.store import Store
from benchmark.task import Task
from benchmark.weights import UnsupportedError
from leaderboards.board import Board
from leaderboards.board import build as build_board
from leaderboards.claims import Claim, judge
from leaderboards.files import write_table
from leaderboards.merge import IncomparableError, Tables, combine


@dataclass
class Session:
    """A prepared run.

    Attributes:
        folder: the base's weights; None for a plan alone.
        out: where the tables go.
        source: what the config was read from.
        only: how it was restricted; None if nobody could read the same again from `source`.
        board: the tables, if they were made here; `leaderboard` is also known if they were there already.
    """

    plan: Plan
    store: Store
    folder: Path | None
    out: Path
    source: str
    revision: str = ""
    only: str | None = None
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    board: Board | None = None
    leaderboard: pd.DataFrame | None = None
    save_flagged: bool = False

    @property
    def left(self) -> list[Task]:
        """The tasks that are not in the store, and attacks that were deleted there but are needed again."""
        done = self.store.finished(self.plan.tasks) - set(withhold.withheld(self.plan, self.store))
        return [task for key, task in self.plan.tasks.items() if key not in done]

    def facts(self, todo: list[Task] | None = None) -> dict[str, Any]:
        """Counts for `titer plan` and `titer status`; `todo` is what is left, if that is known."""
        left = {task.key for task in (self.left if todo is None else todo)}
        kinds: dict[str, dict[str, int]] = {}
        for key, task in self.plan.tasks.items():
            count = kinds.setdefault(task.kind, {"tasks": 0, "left": 0})
            count["tasks"] += 1
            count["left"] += key in left
        return {
            "name": self.plan.config.raw.name,
            "model": self.plan.base if self.folder is None else self.plan.config.raw.model,
            "cells": len(self.plan.cells),
            "tasks": len(self.plan.tasks),
            "left": len(left),
            "by_kind": kinds,
            "passes": self.plan.passes,
            "requested_passes": self.plan.requested,
            "skipped": [vars(skip) for skip in self.plan.skipped],
        }

    def run(
        self,
        events: Any,
        *,
        device: str,
        batch: int,
        executor: Executor = Executor.local,
        workers: int | None = None,
        save_flagged: bool = False,
        keep_attacks: bool = False,
    ) -> Any:
        """Compute what is missing, then write the tables. Loads no model when nothing is missing.

        Args:
            save_flagged: keep the images of NSFW suites.
            keep_attacks: keep the attacked weights and found prompts of NSFW suites.
        """
        from benchmark.runner import Outcome

        self.save_flagged = save_flagged
        events = events if keep_attacks else withhold.Sweeping(events, self.plan, self.store)
        if self.left:
            withhold.reopen(self.plan, self.store)
            outcome = self.compute(events, device, batch, executor, workers)
        else:
            outcome = Outcome(found=list(self.plan.tasks))
        if not keep_attacks:
            withhold.sweep(self.plan, self.store)
        self.failed, self.skipped = outcome.failed, outcome.skipped
        self.refresh()
        return outcome

    def score(self, events: Any, *, batch: int) -> rescore.Rescored:
        """Score the images that are in the store, then write the tables. Nothing is drawn or trained.

        Raises:
            FolderError: there is no store.
        """
        done = rescore.run(self.plan, self.store.existing(), events, batch=batch)
        self.failed, self.skipped = done.outcome.failed, done.outcome.skipped
        self.refresh()
        return done

    def compute(
        self, events: Any, device: str, batch: int, executor: Executor = Executor.local, workers: int | None = None
    ) -> Any:
        """Run the missing tasks in this process, or on Ray."""
        import torch

        from benchmark.runner import run
        from benchmark.stages import Bench

        if self.folder is None:
            raise DataError(f"expected the weights of {self.plan.base} to compute with, got none: prepare a run.")
        with self.store.using():
            rescore.derive(self.plan, self.store)
        if executor is Executor.ray:
            from benchmark.executors import ray

            bench = Bench(self.folder, self.store, device=device, batch=batch, save_flagged=self.save_flagged)
            return run(self.plan, bench, events, ray.executor(workers))
        found = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        bench = Bench(self.folder, self.store, device=found, batch=batch, save_flagged=self.save_flagged)
        return run(self.plan, bench, events)

    def refresh(self) -> None:
        """Write the tables, unless they are there and would be the same."""
        seen = Seen(self.store, self.plan.tasks)
        noted = published.read(self.out)
        if noted.get("state") == self.state(seen) and published.are_whole(self.out, noted["tables"]):
            self.leaderboard = published.leaderboard(self.out)
        else:
            self.publish(seen)

    def state(self, seen: Seen) -> str:
        """A hash of all that the tables say."""
        config, cells = self.plan.config.raw.model_dump(mode="json"), [cell.name for cell in self.plan.cells]
        what = (config, self.plan.base, list(self.plan.tasks), cells, self.failed, self.skipped, seen.state)
        return published.hashed(published.code(), published.versions(), *what)

    def publish(self, seen: Seen | None = None) -> Board:
        """Write the tables, `failures.json`, the report and, last, `run.json`."""
        curves = {(cell.concept.name, cell.attack) for cell in self.plan.cells if cell.budget}
        with Sketch(len(curves)) as sketch:
            return self.write(seen, sketch)

    def write(self, seen: Seen | None, sketch: Sketch) -> Board:
        """Write it all; `sketch` draws the curves."""
        seen = seen or Seen(self.store, self.plan.tasks)
        t = self.tables(seen)
        self.board = build_board(t.scores, t.cells, t.costs, t.distances, draws=self.plan.config.raw.draws)
        self.leaderboard = self.board.leaderboard
        self.board.write(self.out)
        write_table(self.leaderboard, self.out / published.LEADERBOARD)
        claims = [Claim(**claim.model_dump()) for claim in self.plan.config.raw.claims]
        if claims:
            write_table(judge(self.board, claims), self.out / "claims.csv")
        rows = records.rows(self.plan, seen, self.failed, self.skipped)
        write_table(pd.DataFrame(rows), self.out / published.RECORDS)
        labelled = {self.plan.tasks[key].label: trace for key, trace in self.failed.items()}
        write_whole(self.out / "failures.json", json.dumps(labelled, indent=1))
        facts = self.describe(rows)
        page.write(self.plan, seen, self.board, facts, self.out / "report", sketch)
        noted = {"published": self.noted(seen)}
        write_whole(self.out / published.RUN, json.dumps(facts | noted, indent=1, sort_keys=True))
        return self.board

    def noted(self, seen: Seen) -> dict[str, Any]:
        """What `published` says of the tables that were just written."""
        from metrics.weights import HASHED

        is_done = not self.failed and not self.skipped and len(seen.markers) == len(self.plan.tasks)
        known = is_done and self.only is not None
        inputs = published.inputs(self.source, self.only or "", self.plan.base) if known else ""
        reads = published.stats(sorted(str(file) for file in HASHED if file.is_file())) if inputs else {}
        written = {"results": seen.state, "tables": published.tables(self.out)}
        return {"state": self.state(seen), "inputs": inputs, "reads": reads} | written

    def tables(self, seen: Seen | None = None) -> Tables:
        """What the store has of this run, as frames."""
        seen = seen or Seen(self.store, self.plan.tasks)
        return Tables(
            scores=records.scores(self.plan, seen),
            cells=records.cells(self.plan, seen, self.failed, self.skipped),
            costs=records.costs(self.plan, seen),
            distances=records.distances(self.plan, seen),
            source=self.source,
            sampling=self.plan.config.raw.sampling.model_dump(),
        )

    def describe(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What made this run: config, versions, hardware, cost."""
        names = ("seconds", "unet_forward", "unet_backward", "passes")
        spent = {name: sum(row.get(name) or 0 for row in rows) for name in names}
        return {
            "identity": identity(self.plan),
            "config": self.plan.config.raw.model_dump(mode="json"),
            "base": self.plan.base,
            "revision": self.revision,
            "versions": published.versions(),
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


def prepare(
    config: Config,
    *,
    source: str,
    out: Path | None,
    store: Path,
    claim: bool = True,
    weights: models.Weights = "download",
) -> Session:
    """Check everything that can be checked before a model is loaded, and plan.

    Args:
        claim: take the folders; False only looks.
        weights: get them if they are not here, insist on those that are, or plan without, under a provisional base.

    Raises:
        InputError: a name, a file or a folder is wrong.
    """
    given = cards(config)  # first: a model may have to be downloaded
    try:
        model = models.find(config.raw.model, weights)
    except UnsupportedError as error:
        raise DataError(f"{error} {objections(config.defenses, config.attacks)}.") from error
    plan = build(config, model.base, **given)
    found = Session(plan, Store(store), model.folder, out or Path("runs") / config.raw.name, source, model.revision)
    if claim:
        found.store.open()
        claim_folder(found.out, identity(plan))
    return found


def planned(config: Config, base: str) -> Plan:
    """The plan of a config on a base, with the cards that it names.

    Raises:
        DataError: there is no such card, or it cannot be used.
    """
    return build(config, base, **cards(config))


def cards(config: Config) -> dict[str, Any]:
    """The cards that a config names, as `build` takes them.

    Raises:
        DataError: there is no such card, or it cannot be used.
    """
    card = partial(load_concept, model=config.raw.model)
    return {
        "concepts": [card(name) for name in config.raw.concepts],
        "subject": card(config.adaptation.subject) if config.adaptation else None,
        "development": {entry.develop: card(entry.develop) for entry in config.attacks if entry.develop},
    }


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
