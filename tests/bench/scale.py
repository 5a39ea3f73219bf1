"""Large matrices: planning many cells, looking into a large store, a board over many images."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from benchmark.config import config
from benchmark.data import load_concept
from benchmark.plan import Plan, build
from benchmark.session import Session
from benchmark.store import Store
from benchmark.store.files import describe
from benchmark.store.marker import digest
from benchmark.store.store import MARKER
from benchmark.types import Concept
from leaderboards.board import build as build_board
from tests import large
from tests.bench.alone import alone, commands, timed
from tests.bench.paired import Seconds, now
from tests.bench.table import Row
from tests.leaderboards.test_speed import big

CONCEPTS = 20  # of 10 defenses x 10 attacks x 5 seeds x 10 budgets each: 100,000 cells
PAYLOAD = bytes(4000)


def many(concepts: int, *, defenses: int = 10, attacks: int = 10, seeds: int = 5, budgets: int = 9) -> Plan:
    """The plan of a crossing of that size; zero is one more budget. Counts of prompts are the demo's."""
    raw = {
        "name": "many",
        "model": "mini",
        "concepts": [f"c{i}" for i in range(concepts)],
        "seeds": list(range(seeds)),
        "budgets": list(range(1, budgets + 1)),
        "prompts": {"concept": 16, "retained": 46, "safe": 8, "attacker": 16},
        "defenses": ["none", *({"use": "esd", "as": f"esd{i}", "lr": 1e-6 * i} for i in range(1, defenses))],
        "attacks": [{"use": "lora", "as": f"lora{i}", "rank": i + 1} for i in range(attacks)],
        "metrics": [{"use": "presence", "model": "mini:judge"}, {"use": "clip_score", "model": "mini:judge"}],
    }
    return build(config.parse(raw), "base", [card(i) for i in range(concepts)])


def card(number: int) -> Concept:
    """A concept whose prompts are its own."""
    first = load_concept("cigarette")
    prompts = tuple(replace(prompt, text=f"{prompt.text} {number}") for prompt in first.prompts)
    return replace(first, name=f"c{number}", prompts=prompts)


def counted(concepts: int) -> tuple[int, int, Seconds]:
    """Cells, tasks and seconds of a large plan."""
    many(1, defenses=2, attacks=1, seeds=1, budgets=1)  # imports and caches
    started = now()
    plan = many(concepts)
    return len(plan.cells), len(plan.tasks), now().since(started)


def planning(concepts: int = CONCEPTS) -> Sequence[Row]:
    """Time and memory of a large plan."""
    spent = alone(counted, concepts)
    cells, tasks, seconds = spent.result
    what = f"planning {cells:,} cells"
    note = f"{tasks:,} tasks; a process of its own"
    return [
        timed(what, seconds, "<= 10", note),
        Row(what=f"{what}: peak memory", value=spent.megabytes, unit="MB", target="<= 1000", note="torch included"),
    ]


def put(store: Store, plan: Plan) -> None:
    """A result for every task, as `put` leaves it, without waiting for the disk."""
    for key, task in plan.tasks.items():
        folder = store.path(key)
        folder.mkdir(parents=True)
        (folder / "scores.parquet").write_bytes(PAYLOAD)
        meta: dict[str, Any] = {"cost": {"seconds": 1.0}, "label": task.label, "identity_of": task.identity()}
        meta |= {"files": describe(folder)}
        (folder / MARKER).write_text(json.dumps(meta | {"sha256": digest(meta)}, sort_keys=True))


def looked(root: Path, concepts: int, entries: int) -> tuple[dict[str, Any], Seconds]:
    """What a run of so many tasks finds in a store, and seconds without the planning."""
    job = Session(part(concepts, entries), Store(root), root, root, "many")
    started = now()
    return job.facts(), now().since(started)


def part(concepts: int, entries: int) -> Plan:
    """A plan of so many tasks."""
    plan = many(concepts)
    plan.tasks = dict(islice(plan.tasks.items(), entries))
    return plan


def stored(concepts: int = 6, entries: int = 100_000, *, runs: int = 3) -> Sequence[Row]:
    """How long it takes to look into a large store.

    Raises:
        ValueError: not all entries were found.
    """
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "store"
        plan = part(concepts, entries)
        put(Store(root).open(), plan)
        facts, seconds = alone(looked, root, concepts, entries).result
        if facts["left"] or facts["tasks"] != entries:
            raise ValueError(f"expected {entries} entries, all found, got {facts}: plan more concepts.")
        what = f"a store with {entries:,} entries"
        return [
            timed(f"{what}: which of {entries:,} tasks are done", seconds, "<= 5"),
            commands(f"{what}: titer status demo", ["status", "demo", "--store", root], "<= 5", runs=runs),
        ]


def judged(defenses: int, concepts: int, draws: int) -> tuple[int, int, Seconds]:
    """Cells, images and seconds of a board."""
    scores, cells, costs = big(defenses, concepts)
    started = now()
    build_board(scores, cells, costs, draws=draws)
    return len(cells), len(scores), now().since(started)


def published(root: Path, out: Path, sizes: Sequence[int]) -> tuple[int, int, Seconds]:
    """Cells, results and seconds of what `titer board` does after planning: it reads a store and writes all tables."""
    plan = large.plan(*sizes)
    job = Session(plan, Store(root), None, out, "large")
    started = now()
    job.publish()
    return len(plan.cells), len(plan.tasks), now().since(started)


def boards(concepts: int = 5, defenses: int = 8, attacks: int = 5, draws: int = 2000) -> Sequence[Row]:
    """Time and memory of a large board: its statistics alone, and with the store, all tables and the report."""
    spent = alone(judged, defenses, concepts, draws)
    cells, scores, seconds = spent.result
    what = f"the statistics of {cells:,} cells of 200 images, {draws:,} draws"
    sizes = concepts, defenses, attacks
    with tempfile.TemporaryDirectory() as name:
        root, out = Path(name) / "store", Path(name) / "out"
        large.fill(large.plan(*sizes), root)
        whole = alone(published, root, out, sizes)
    many, results, each = whole.result
    board = f"titer board over {many:,} cells of 200 images, 2,000 draws"
    return [
        timed(what, seconds, "<= 10", f"{scores:,} scores"),
        Row(what=f"{what}: peak memory", value=spent.megabytes, unit="MB", target="<= 2000"),
        timed(board, each, "<= 10", f"{results:,} results read, all tables and the report written"),
        Row(what=f"{board}: peak memory", value=whole.megabytes, unit="MB", target="<= 2000"),
    ]
