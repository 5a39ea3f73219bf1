"""Plan and store -> the frames that the leaderboards read: scores, cells, costs, and one row for each task."""

from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from benchmark.artifacts import SCORES
from benchmark.plan import Cell, Plan
from benchmark.store import Store


def rows(plan: Plan, store: Store, failed: dict[str, str], skipped: dict[str, str]) -> list[dict[str, Any]]:
    """One row for each task: key, label, status, cost, flags."""
    found = []
    for key, task in plan.tasks.items():
        meta = store.meta(key) if store.has(key) else {}
        status = "ok" if meta else "failed" if key in failed else "skipped" if key in skipped else "missing"
        row = {"key": key, "kind": task.kind, "label": task.label, "status": status, "planned_passes": task.passes}
        row |= meta.get("cost", {}) | {"flags": ";".join(meta.get("flags", []))}
        found.append(row | {"reason": skipped.get(key) or failed.get(key, "").strip().rpartition("\n")[2]})
    return found


def identify(plan: Plan, cell: Cell) -> dict[str, Any]:
    """The columns that name a cell."""
    return {
        "model": plan.config.raw.model,
        "scenario": cell.concept.scenario,
        "concept": cell.concept.name,
        "defense": cell.defense,
        "attack": cell.attack,
        "budget": cell.budget,
        "seed": cell.seed,
    }


def scores(plan: Plan, store: Store) -> pd.DataFrame:
    """One row for each cell, metric and image."""
    cache: dict[str, pd.DataFrame] = {}
    frames = []
    for cell in plan.cells:
        for (metric, split), key in cell.scores.items():
            if not store.has(key):
                continue
            if key not in cache:
                table = pq.read_table(store.path(key) / SCORES, columns=["prompt_id", "number", "value"])
                cache[key] = table.to_pandas().rename(columns={"number": "image"})
            more = {"split": split, "metric": metric, "identity": store.meta(key)["identity"]}
            frames.append(cache[key].assign(**identify(plan, cell), **more))
    columns = ["model", "scenario", "concept", "defense", "attack", "budget", "seed"]
    columns += ["split", "metric", "identity", "prompt_id", "image", "value"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def cells(plan: Plan, store: Store, failed: dict[str, str], skipped: dict[str, str]) -> pd.DataFrame:
    """One row for each planned cell, with what became of its tasks; skipped cells with their reasons."""
    found = []
    for cell in plan.cells:
        keys = [cell.images["concept"], *cell.scores.values()]
        broken = [k for k in keys if not store.has(k)]
        reasons = [skipped.get(k) or failed.get(k, "not run yet").strip().rpartition("\n")[2] for k in broken]
        status = "failed" if broken else "ok"
        found.append(
            identify(plan, cell)
            | {"kind": cell.kind, "status": status, "reason": reasons[0] if reasons else ""}
            | {"expected": cell.expected, "key": cell.images["concept"]}
        )
    for skip in plan.skipped:
        empty = {"budget": 0, "seed": 0, "kind": "none", "expected": 0, "key": ""}
        named = {"concept": skip.concept, "defense": skip.defense, "attack": skip.attack, "reason": skip.reason}
        found.append({"model": plan.config.raw.model, "scenario": "relearn", **named, "status": "skipped", **empty})
    return pd.DataFrame(found)


def costs(plan: Plan, store: Store) -> pd.DataFrame:
    """Seconds, memory and fidelity of each defense on each concept."""
    found = []
    badges = {entry.label: entry.method.fidelity for entry in plan.config.defenses}
    seen = {(cell.concept.name, cell.defense): cell for cell in plan.cells}
    for cell in seen.values():
        meta = store.meta(cell.defend) if cell.defend and store.has(cell.defend) else {}
        cost = meta.get("cost", {})
        named = {k: v for k, v in identify(plan, cell).items() if k in ("model", "scenario", "concept", "defense")}
        found.append(
            named
            | {"defend_seconds": cost.get("seconds"), "peak_memory_mib": cost.get("peak_memory_mib")}
            | {"fidelity": badges.get(cell.defense, "control")}
        )
    return pd.DataFrame(found)
