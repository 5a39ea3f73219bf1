"""Plan and store -> the frames that the leaderboards read: scores, cells, costs, and one row for each task."""

from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from benchmark.artifacts import SCORES
from benchmark.config import Entry
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
            if not store.has(key) or is_distance(plan, key):
                continue
            if key not in cache:
                table = pq.read_table(store.path(key) / SCORES, columns=["prompt_id", "number", "value"])
                cache[key] = table.to_pandas().rename(columns={"number": "image"})
            more = {"split": split, "metric": metric, "identity": store.meta(key)["identity"]}
            frames.append(cache[key].assign(**identify(plan, cell), **more))
    columns = ["model", "scenario", "concept", "defense", "attack", "budget", "seed"]
    columns += ["split", "metric", "identity", "prompt_id", "image", "value"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def is_distance(plan: Plan, key: str) -> bool:
    """True for a score of a set of images."""
    return not plan.tasks[key].prompts


def distances(plan: Plan, store: Store) -> pd.DataFrame:
    """One row for each cell and distance to the base's images."""
    found = []
    for cell in plan.cells:
        for (metric, split), key in cell.scores.items():
            if store.has(key) and is_distance(plan, key):
                meta, numbers = store.meta(key), pq.read_table(store.path(key) / SCORES).to_pylist()[0]
                name = metric if split == "safe" else f"{metric}_{split}"
                row = {"metric": name, "identity": meta["identity"], "n": meta["n"]}
                found.append(identify(plan, cell) | row | {c: numbers.get(c) for c in ("value", "ci_low", "ci_high")})
    columns = ["model", "scenario", "concept", "defense", "attack", "budget", "seed"]
    return pd.DataFrame(found, columns=[*columns, "metric", "identity", "value", "ci_low", "ci_high", "n"])


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
        found.append({"model": plan.config.raw.model, "scenario": skip.scenario, **named, "status": "skipped", **empty})
    return pd.DataFrame(found)


def costs(plan: Plan, store: Store) -> pd.DataFrame:
    """Seconds, memory and fidelity of each defense on each concept; a composed one has the sum of its parts."""
    found = []
    badges = {entry.label: " + ".join(part.method.fidelity for part in parts(entry)) for entry in plan.config.defenses}
    seen = {(cell.concept.name, cell.defense): cell for cell in plan.cells}
    for cell in seen.values():
        spent = [store.meta(key)["cost"] for key in lineage(plan, cell.defend) if store.has(key)]
        seconds = sum(cost["seconds"] for cost in spent) if spent else None
        memory = [cost["peak_memory_mib"] for cost in spent if cost.get("peak_memory_mib") is not None]
        named = {k: v for k, v in identify(plan, cell).items() if k in ("model", "scenario", "concept", "defense")}
        found.append(
            named
            | {"defend_seconds": seconds, "peak_memory_mib": max(memory, default=None)}
            | {"fidelity": badges.get(cell.defense, "control")}
        )
    return pd.DataFrame(found)


def parts(entry: Entry) -> list[Entry]:
    """A composed defense's entries, the first trained first."""
    return [*(parts(entry.after) if entry.after else []), entry]


def lineage(plan: Plan, key: str | None) -> list[str]:
    """Keys of a defense and of those it was trained on."""
    return [*lineage(plan, plan.tasks[key].parents.get("defense")), key] if key else []
