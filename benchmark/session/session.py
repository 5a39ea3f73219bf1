"""One run: a plan, its store and its folder of tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark.errors import DataError
from benchmark.model.assumed import ASSUMED
from benchmark.model.bases import preset_of
from benchmark.plan import Plan
from benchmark.plan.rounds import most
from benchmark.plan.task import Task
from benchmark.results import publish, published
from benchmark.results.publish import Ran
from benchmark.runner import nsfw, rescore
from benchmark.runner.code import Changed, changed, code_of
from benchmark.runner.executors import Executor
from benchmark.session.rounds import added, decided
from benchmark.store import Store
from leaderboards.board import Board
from leaderboards.merge import Tables


@dataclass
class Session:
    """A prepared run.

    Attributes:
        plan: what is to be done by the scores that are there; it grows where they ask for more images.
        first: what is to be done whatever they say.
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
    keep_attacks: bool = False
    first: Plan = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.first = self.plan
        self.plan = decided(self.first, self.store)

    @property
    def left(self) -> list[Task]:
        """The tasks that are not in the store, and attacks that were deleted there but are needed again."""
        done = self.store.finished(self.plan.tasks) - set(nsfw.withheld(self.plan, self.store))
        return [task for key, task in self.plan.tasks.items() if key not in done]

    @property
    def pictures(self) -> dict[str, int]:
        """How many of the user's own images each task that reads some reads, by the task's name."""
        return {task.label: len(task.pictures) for task in self.plan.tasks.values() if task.pictures}

    @property
    def ran(self) -> Ran:
        """The run as its tables see it."""
        return Ran(
            plan=self.plan,
            store=self.store,
            out=self.out,
            source=self.source,
            only=self.only,
            revision=self.revision,
            failed=self.failed,
            skipped=self.skipped,
            folder=self.folder,
        )

    def changed(self) -> list[Changed]:
        """What is not as it was when the results in the store were made: code of plug-ins, files in their fields."""
        return changed(self.plan, self.ran.look().codes)

    def trust(self) -> None:
        """Take the results in the store for those of the code that is there now."""
        for key in {key for one in self.changed() for key in one.keys}:
            self.store.note(key, code=code_of(self.plan.tasks[key]))

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
            "later_passes": self.later,
            "assumed": self.assumed,
            "requested_passes": self.plan.requested,
            "skipped": [vars(skip) for skip in self.plan.skipped],
            "pictures": self.pictures,
            "given_up": list(self.plan.config.given_up),
            "left_out": sorted({line for cell in self.plan.cells for line in cell.concept.left_out}),
        }

    @property
    def later(self) -> int:
        """The U-Net passes that images which are not planned yet cost at most."""
        return max(most(self.first) + self.first.passes - self.plan.passes, 0)

    @property
    def assumed(self) -> dict[str, float] | None:
        """Hours and memory of the run on one H100, by what is assumed of the model's preset; None of another model."""
        known = ASSUMED.get(preset_of(self.plan.config.raw.model))
        return known.cost(self.plan.passes + self.later, self.plan.config.raw.precision) if known else None

    def reading(self) -> dict[str, Any]:
        """How many prompts the base cannot read whole. May load its tokenizer, which takes seconds."""
        cut = self.ran.cut
        return {"cut_prompts": len(cut), "longest_prompt": max(cut.values(), default=None)}

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
        from benchmark.runner.loop import Outcome

        self.save_flagged, self.keep_attacks = save_flagged, keep_attacks
        outcome = Outcome()
        for plan in self.rounds():
            self.plan = plan
            watching = events if keep_attacks else nsfw.Sweeping(events, plan, self.store)
            if self.left:
                nsfw.reopen(plan, self.store)
                outcome = outcome.then(self.compute(watching, device, batch, executor, workers))
            else:
                outcome = outcome.then(Outcome(found=list(plan.tasks)))
        self.plan = decided(self.first, self.store)
        if not keep_attacks:
            nsfw.sweep(self.plan, self.store)
        self.failed, self.skipped = outcome.failed, outcome.skipped
        self.refresh()
        return outcome

    def rounds(self) -> Iterator[Plan]:
        """What to compute, round by round: all that is planned, then what the scores of that ask for beside it."""
        yield self.first
        more = added(self.first, decided(self.first, self.store))
        if more.tasks:
            yield more

    def score(self, events: Any, *, batch: int) -> rescore.Rescored:
        """Score the images that are in the store, then write the tables. Nothing is drawn or trained.

        Raises:
            FolderError: there is no store.
        """
        done = rescore.run(self.first, self.store.existing(), events, batch=batch)
        self.plan = decided(self.first, self.store)
        if more := added(self.first, self.plan).tasks:
            done = done.then(rescore.run(replace(self.plan, tasks=more), self.store, events, batch=batch))
        self.failed, self.skipped = done.outcome.failed, done.outcome.skipped
        self.refresh()
        return done

    def compute(
        self, events: Any, device: str, batch: int, executor: Executor = Executor.local, workers: int | None = None
    ) -> Any:
        """Run the missing tasks in this process, or on Ray."""
        from benchmark.model.devices import present
        from benchmark.runner.executors import local
        from benchmark.runner.loop import run
        from benchmark.runner.stages import Bench

        if self.folder is None:
            raise DataError(f"expected the weights of {self.plan.base} to compute with, got none: prepare a run.")
        with self.store.using():
            rescore.derive(self.plan, self.store)
        bench = Bench(
            self.folder,
            self.store,
            device=device,
            batch=batch,
            precision=self.plan.config.raw.precision,
            save_flagged=self.save_flagged,
            keep_attacks=self.keep_attacks,
        )
        if executor is Executor.ray:
            from benchmark.runner.executors import ray

            return run(self.plan, bench, events, ray.executor(workers))
        bench = replace(bench, device=present(device))
        if any(task.kind in ("defend", "attack", "generate") for task in self.left):
            _ = bench.base  # weights that do not fit stop the run here, not each of its tasks
        return run(self.plan, bench, events, local.execute)

    def refresh(self) -> None:
        """Write the tables, unless they are there and would be the same."""
        self.board = self.ran.refresh()
        self.leaderboard = self.board.leaderboard if self.board else published.leaderboard(self.out)

    def publish(self) -> Board:
        """Write the tables and the report."""
        self.board = self.ran.publish()
        self.leaderboard = self.board.leaderboard
        return self.board

    def tables(self) -> Tables:
        """What the store has of this run, as frames."""
        return self.ran.tables()


def merge(jobs: Sequence[Session], out: Path) -> Board:
    """One board over several runs, written to a folder that is empty or holds such a board.

    Raises:
        ConfigError: the runs are not comparable.
        FolderError: the folder holds something else, or is in the store.
    """
    for job in jobs:
        job.store.refuse(out)
    return publish.merge([job.ran for job in jobs], out)
