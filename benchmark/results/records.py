"""Plan and store -> the frames that the leaderboards read: scores, cells, costs, and one row for each task."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.config.imported import USE
from benchmark.plan import Cell, Plan
from benchmark.plan.removal import LABEL, removable
from benchmark.store import Store
from benchmark.store.artifacts import SCORES

Number = TypeVar("Number", int, float)


def rows(plan: Plan, store: Store, failed: Mapping[str, str], skipped: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row for each task: key, label, status, cost, flags."""
    found = []
    for key, task in plan.tasks.items():
        meta = store.meta(key) if store.has(key) else {}
        status = "ok" if meta else "failed" if key in failed else "skipped" if key in skipped else "missing"
        row = {"key": key, "kind": task.kind, "label": task.label, "status": status, "planned_passes": task.passes}
        cost = meta.get("cost", {})
        spent = {"passes": passes} if (passes := passes_of(cost)) is not None else {}
        row |= cost | spent | {"flags": ";".join(meta.get("flags", []))}
        found.append(row | {"reason": skipped.get(key) or failed.get(key, "").strip().rpartition("\n")[2]})
    return found


def identify(plan: Plan, cell: Cell) -> dict[str, Any]:
    """The columns that name a cell."""
    return {
        "model": plan.config.raw.model,
        "scenario": cell.concept.scenario,
        "concept": cell.concept.called,
        "defense": cell.defense,
        "attack": cell.attack,
        "budget": cell.budget,
        "seed": cell.seed,
    }


def scores(plan: Plan, store: Store) -> pd.DataFrame:
    """One row for each cell, metric and image. Each file is read once, however many cells share it."""
    read: dict[str, pa.Table] = {}
    heads, parts = [], []
    for cell in plan.cells:
        for (metric, split), key in scored(cell):
            if is_distance(plan, key) or not store.has(key):
                continue
            if key not in read:
                read[key] = table(store, key, ["prompt_id", "number", "value"])
            parts.append(read[key])
            more = {"split": split, "metric": metric, "identity": store.meta(key)["identity"]}
            heads.append(identify(plan, cell) | more)
    columns = ["model", "scenario", "concept", "defense", "attack", "budget", "seed"]
    columns += ["split", "metric", "identity", "prompt_id", "image", "value"]
    if not heads:
        return pd.DataFrame(columns=columns)
    rows = pa.concat_tables(parts, promote_options="permissive").to_pandas().rename(columns={"number": "image"})
    which = np.repeat(np.arange(len(heads)), [len(part) for part in parts])
    named = pd.DataFrame(heads).take(which).reset_index(drop=True)
    return pd.concat([named, rows], axis=1)[columns]


def scored(cell: Cell) -> Iterator[tuple[tuple[str, str], str]]:
    """The scores of a cell by metric and split, also those of later rounds."""
    yield from cell.scores.items()
    for later in cell.rounds:
        yield from (((metric, later.split), key) for metric, key in later.scores.items())


def table(store: Store, key: str, columns: list[str] | None = None) -> pa.Table:
    """The numbers of a score task."""
    return pq.ParquetFile(store.path(key) / SCORES).read(columns, use_threads=False)


def is_distance(plan: Plan, key: str) -> bool:
    """True for a score of a set of images."""
    return not plan.tasks[key].prompts


def distances(plan: Plan, store: Store) -> pd.DataFrame:
    """One row for each cell and distance to the base's images."""
    found = []
    for cell in plan.cells:
        for (metric, split), key in cell.scores.items():
            if store.has(key) and is_distance(plan, key):
                meta, numbers = store.meta(key), table(store, key).to_pylist()[0]
                name = metric if split == "safe" else f"{metric}_{split}"
                row = {"metric": name, "identity": meta["identity"], "n": meta["n"]}
                row["flag"] = ";".join(meta.get("flags", []))
                found.append(identify(plan, cell) | row | {c: numbers.get(c) for c in ("value", "ci_low", "ci_high")})
    columns = ["model", "scenario", "concept", "defense", "attack", "budget", "seed"]
    return pd.DataFrame(found, columns=[*columns, "metric", "identity", "value", "ci_low", "ci_high", "n", "flag"])


def cells(
    plan: Plan,
    store: Store,
    failed: Mapping[str, str],
    skipped: Mapping[str, str],
    notes: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """One row for each planned cell, with what became of its tasks; skipped cells with their reasons.

    A cell of which some results are there and none failed is `partial`. `notes` are what to mistrust, by cell.
    """
    found = []
    aimed = {entry.label for entry in plan.config.attacks if entry.against}
    searched = {entry.label for entry in plan.config.attacks if draws_more(entry.method)}
    taken = {entry.label for entry in plan.config.defenses if any(part.use == USE for part in entry.chain)}
    parts = {entry.label: removable(entry) for entry in plan.config.defenses}
    rates = {cell.concept.called: calibrated(plan, cell) for cell in plan.cells}
    for cell in plan.cells:
        keys = [cell.images["concept"], *cell.scores.values()]
        broken = sorted((k for k in keys if not store.has(k)), key=lambda k: k not in skipped and k not in failed)
        reasons = [skipped.get(k) or failed.get(k, "not run yet").strip().rpartition("\n")[2] for k in broken]
        lost = len(broken) == len(keys) or any(k in skipped or k in failed for k in broken)
        status = "failed" if lost else "partial" if broken else "ok"
        found.append(
            identify(plan, cell)
            | {"kind": cell.kind, "status": status, "reason": reasons[0] if reasons else ""}
            | {"expected": cell.expected, "key": cell.images["concept"], "note": (notes or {}).get(cell.name, "")}
            | {"aimed": cell.attack in aimed, "imported": cell.defense in taken}
            | {"best": cell.attack in searched and cell.budget > 0, "confirm": plan.config.raw.confirm}
            | {"removable": parts[cell.defense] if cell.kind == LABEL else None}
            | rates[cell.concept.called]
        )
    for skip in plan.skipped:
        empty = {"budget": skip.budget, "seed": 0, "kind": "none", "expected": 0, "key": "", "note": ""}
        named = {"concept": skip.concept, "defense": skip.defense, "attack": skip.attack, "reason": skip.reason}
        found.append({"model": plan.config.raw.model, "scenario": skip.scenario, **named, "status": "skipped", **empty})
    return pd.DataFrame(found)


def draws_more(method: Any) -> bool:
    """Whether an attack draws each prompt until its budget is spent, so that the best of its images counts."""
    return hasattr(method, "images") and any(method.images(1, budget) > 1 for budget in method.budgets(()))


def calibrated(plan: Plan, cell: Cell) -> dict[str, float | None]:
    """The judge's true and false positive rate for the cell's concept, where it has a calibration card, and of how many
    pictures each is the share, where the card says so.
    """
    judges = [metric.method.for_card(cell.concept) for metric in plan.config.metrics if metric.label == "presence"]
    tpr, fpr = (judges and judges[0].calibration(cell.concept)) or (None, None)
    positives, negatives = (judges and judges[0].calibrated_on(cell.concept)) or (None, None)
    rates = {"judge_tpr": tpr, "judge_fpr": fpr}
    return {**rates, "judge_positives": positives, "judge_negatives": negatives}


def yes_or_no(plan: Plan) -> frozenset[str]:
    """The labels of the metrics that are bounded by 0 and 1."""
    return frozenset(metric.label for metric in plan.config.metrics if metric.method.bounds == (0.0, 1.0))


def costs(plan: Plan, store: Store) -> pd.DataFrame:
    """What each defense spent on each concept, and its fidelity; a composed one has the sum of its parts.

    Steps are those that it reported, as its paper counts them; passes are samples through the U-Net, backward twice.
    """
    found = []
    badges = {entry.label: " + ".join(part.method.badge for part in entry.chain) for entry in plan.config.defenses}
    seen = {(cell.concept.called, cell.defense): cell for cell in plan.cells}
    for cell in seen.values():
        done = [key for key in lineage(plan, cell.defend) if store.has(key)]
        spent = [store.meta(key)["cost"] for key in done]
        seconds = total(cost.get("seconds") for cost in spent)
        memory = [cost["peak_memory_mib"] for cost in spent if cost.get("peak_memory_mib") is not None]
        named = {k: v for k, v in identify(plan, cell).items() if k in ("model", "scenario", "concept", "defense")}
        found.append(
            named
            | {"defend_seconds": seconds, "peak_memory_mib": max(memory, default=None)}
            | {"defend_steps": total(steps_of(store, key) for key in done)}
            | {"defend_passes": total(passes_of(cost) for cost in spent)}
            | {"fidelity": badges.get(cell.defense, "control")}
        )
    return pd.DataFrame(found)


def total(numbers: Iterable[Number | None]) -> Number | None:
    """Their sum; None if there are none, or one is not known."""
    known = list(numbers)
    told = [n for n in known if n is not None]
    return sum(told[1:], start=told[0]) if known and len(told) == len(known) else None


def passes_of(cost: Mapping[str, Any]) -> int | None:
    """Samples through the U-Net, a backward pass counted as two."""
    return int(cost["unet_forward"]) + 2 * int(cost.get("unet_backward", 0)) if "unet_forward" in cost else None


def steps_of(store: Store, key: str) -> int | None:
    """How many steps a method reported."""
    file = store.path(key) / "losses.csv"
    return len(pd.read_csv(file)) if file.exists() else None


def lineage(plan: Plan, key: str | None) -> list[str]:
    """Keys of a defense and of those it was trained on."""
    return [*lineage(plan, plan.tasks[key].parents.get("defense")), key] if key else []
