"""Plan and store -> the folder of a run: tables, report and, last, run.json."""

import hashlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark.errors import ConfigError
from benchmark.model.prompts import cut
from benchmark.plan import Plan
from benchmark.plan.removal import LABEL
from benchmark.results import published, records
from benchmark.results.folder import claim_folder, identity
from benchmark.results.notes import notes, unconverged
from benchmark.results.report import page
from benchmark.results.report.sketch import Sketch
from benchmark.runner.code import changed
from benchmark.store import Store
from benchmark.store.files import write_whole
from benchmark.store.frozen import FrozenStore
from leaderboards.board import Board
from leaderboards.board import build as build_board
from leaderboards.claims import Claim, judge
from leaderboards.files import write_table
from leaderboards.merge import IncomparableError, Tables, combine


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A run as its tables see it.

    Attributes:
        out: where the tables go.
        source: what the config was read from.
        only: how it was restricted; None if nobody could read the same again from `source`.
        revision: the hub's commit of the base; empty for a folder.
        failed: tracebacks by task key.
        skipped: reasons by task key.
        folder: the base's files; its tokenizer says which prompts are cut.
    """

    plan: Plan
    store: Store
    out: Path
    source: str
    only: str | None = None
    revision: str = ""
    failed: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None

    def refresh(self) -> Board | None:
        """Write the tables, unless they are there and would be the same; None then."""
        seen = self.look()
        noted = published.read(self.out)
        if noted.get("state") == self.state(seen) and published.are_whole(self.out, noted["tables"]):
            return None
        return self.publish(seen)

    def look(self) -> FrozenStore:
        """The store as it is now."""
        return FrozenStore(self.store, self.plan.tasks)

    def state(self, seen: FrozenStore) -> str:
        """A hash of all that the tables say."""
        config, cells = self.plan.config.raw.model_dump(mode="json"), [cell.name for cell in self.plan.cells]
        what = (config, self.plan.base, list(self.plan.tasks), cells, self.failed, self.skipped, seen.state)
        return published.hashed(published.code(), published.versions(), *what, self.notes(seen))

    def notes(self, seen: FrozenStore) -> dict[str, str]:
        """What to mistrust in each cell."""
        return notes(self.plan, changed(self.plan, seen.codes), self.cut, unconverged(self.plan, seen))

    @cached_property
    def cut(self) -> dict[str, int]:
        """The prompts that the base cannot read whole, with their numbers of tokens."""
        texts = (prompt.text for task in self.plan.tasks.values() for prompt in task.prompts)
        return cut(self.folder, texts) if self.folder else {}

    def publish(self, seen: FrozenStore | None = None) -> Board:
        """Write the tables, `failures.json`, the report and, last, `run.json`."""
        curves = {(cell.concept.called, cell.attack) for cell in self.plan.cells if cell.budget and cell.kind != LABEL}
        with Sketch(len(curves)) as sketch:
            return self.write(seen or self.look(), sketch)

    def write(self, seen: FrozenStore, sketch: Sketch) -> Board:
        """Write it all; `sketch` draws the curves."""
        t = self.tables(seen)
        raw = self.plan.config.raw
        settings: dict[str, Any] = {"draws": raw.draws, "yes_or_no": t.yes_or_no, "utility_floor": raw.utility_floor}
        board = build_board(t.scores, t.cells, t.costs, t.distances, **settings)
        board.write(self.out)
        write_table(board.leaderboard, self.out / published.LEADERBOARD)
        claims = [Claim(**claim.model_dump()) for claim in self.plan.config.raw.claims]
        if claims:
            write_table(judge(board, claims), self.out / "claims.csv")
        rows = records.rows(self.plan, seen, self.failed, self.skipped)
        write_table(pd.DataFrame(rows), self.out / published.RECORDS)
        labelled = {self.plan.tasks[key].label: trace for key, trace in self.failed.items()}
        write_whole(self.out / "failures.json", json.dumps(labelled, indent=1))
        facts = self.describe(rows)
        page.write(self.plan, seen, board, facts, self.out / "report", sketch)
        noted = {"published": self.noted(seen)}
        write_whole(self.out / published.RUN, json.dumps(facts | noted, indent=1, sort_keys=True))
        return board

    def noted(self, seen: FrozenStore) -> dict[str, Any]:
        """What `published` says of the tables that were just written."""
        from benchmark.model.places import HASHED

        is_done = not self.failed and not self.skipped and len(seen.markers) == len(self.plan.tasks)
        known = is_done and self.only is not None
        inputs = published.inputs(self.source, self.only or "", self.plan.base) if known else ""
        reads = published.stats(sorted(str(file) for file in HASHED if file.is_file())) if inputs else {}
        written = {"results": seen.state, "tables": published.tables(self.out)}
        return {"state": self.state(seen), "inputs": inputs, "reads": reads} | written

    def tables(self, seen: FrozenStore | None = None) -> Tables:
        """What the store has of this run, as frames."""
        seen = seen or self.look()
        return Tables(
            scores=records.scores(self.plan, seen),
            cells=records.cells(self.plan, seen, self.failed, self.skipped, self.notes(seen)),
            costs=records.costs(self.plan, seen),
            distances=records.distances(self.plan, seen),
            source=self.source,
            sampling=self.plan.config.raw.sampling.model_dump(),
            yes_or_no=records.yes_or_no(self.plan),
        )

    def describe(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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


def merge(runs: Sequence[Ran], out: Path) -> Board:
    """One board over several runs, written to a folder that is empty or holds such a board.

    Raises:
        ConfigError: the runs are not comparable.
        FolderError: the folder holds something else.
    """
    name = hashlib.sha256(json.dumps(sorted(identity(run.plan) for run in runs)).encode()).hexdigest()[:16]
    try:
        t = combine([run.tables() for run in runs])
    except IncomparableError as error:
        raise ConfigError(str(error)) from error
    claim_folder(out, name)
    draws = max(run.plan.config.raw.draws for run in runs)
    floor = max(run.plan.config.raw.utility_floor for run in runs)
    settings: dict[str, Any] = {"draws": draws, "yes_or_no": t.yes_or_no, "utility_floor": floor}
    board = build_board(t.scores, t.cells, t.costs, t.distances, **settings)
    board.write(out)
    write_table(board.leaderboard, out / published.LEADERBOARD)
    return board
