"""Stored images -> scores by another metric or threshold: nothing is drawn, nothing is trained, no base is loaded.

A metric declares which of its fields only decide `value` from the raw numbers beside it (`Metric.thresholds`). A score
that differs from a stored one in those fields alone is derived from its raw numbers; its judge does not run again.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from benchmark.config import Config
from benchmark.config.entries import adapter, entries
from benchmark.config.registry import find
from benchmark.errors import ConfigError, StoreError, TiterError, shown
from benchmark.given.values import FAULTS, values_of
from benchmark.plan import Plan
from benchmark.plan.task import Task, canonical, veiled
from benchmark.runner import nsfw
from benchmark.store import Store

if TYPE_CHECKING:
    from benchmark.runner.loop import Outcome
    from benchmark.runner.stages import Bench

SCORES = "scores.parquet"
NAMES = ("prompt_id", "number")  # the columns of a score file that name an image


@dataclass
class Rescored:
    """What became of the scores: what the runner did, keys that were derived, tasks whose images are missing."""

    outcome: "Outcome"
    derived: list[str] = field(default_factory=list)
    absent: list[Task] = field(default_factory=list)

    def then(self, later: "Rescored") -> "Rescored":
        """What became of two rounds."""
        absent = {task.key: task for task in (*self.absent, *later.absent)}
        derived = list(dict.fromkeys([*self.derived, *later.derived]))
        return Rescored(self.outcome.then(later.outcome), derived, list(absent.values()))

    def cells(self, plan: Plan) -> list[str]:
        """The names of the cells that lack images."""
        lacking = {task.key for task in self.absent}
        scores = {
            cell.name: [*cell.scores.values(), *(key for later in cell.rounds for key in later.scores.values())]
            for cell in plan.cells
        }
        return [name for name, keys in scores.items() if not lacking.isdisjoint(keys)]


def with_metrics(config: Config, given: Sequence[str]) -> Config:
    """The config with further metrics, each a plug-in's name or a YAML mapping; one with a known label replaces it.

    Raises:
        ConfigError: a text is no YAML, or no metric.
    """
    listed = {have.label: item for have, item in zip(config.metrics, config.raw.metrics, strict=True)}
    for text in given:
        try:
            item = values_of(text)
        except FAULTS as error:
            why = " ".join(str(error).split())
            raise ConfigError(f"expected YAML after --metric, got {shown(text)}: {why}.") from error
        if not isinstance(item, str | dict):
            raise ConfigError(
                f"expected a metric's name or {{use: NAME, field: value}} after --metric, got {shown(text)}."
            )
        (built,) = entries("metric", (item,))
        listed[built.label] = item
    items = tuple(listed.values())
    return replace(
        config,
        raw=config.raw.model_copy(update={"metrics": items}),
        metrics=entries("metric", items),
        tuned_by=config.tuned_by or config.metrics,  # attacks that chose their settings keep them
    )


def ready(plan: Plan, store: Store) -> tuple[Plan, list[Task]]:
    """The part of a plan that scores stored images, and the score tasks that are missing with their images."""
    there = store.finished(plan.tasks)
    wanted = [task for key, task in plan.tasks.items() if task.kind == "score" and key not in there]
    needed: set[str] = set()
    absent, unseen = [], nsfw.images(plan, store)
    for task in wanted:
        chain = list(lineage(plan, task, there))
        if any(plan.tasks[key].kind == "generate" and (key not in there or key in unseen) for key in chain):
            absent.append(task)
        else:
            needed.update(chain)
    return replace(plan, tasks={key: task for key, task in plan.tasks.items() if key in needed}), absent


def lineage(plan: Plan, task: Task, there: set[str]) -> Iterator[str]:
    """Keys of a task and of what it reads, up to what is finished."""
    yield task.key
    if task.key not in there and task.kind in ("score", "embed"):
        for parent in task.parents.values():
            yield from lineage(plan, plan.tasks[parent], there)


def run(plan: Plan, store: Store, events: Any, *, batch: int) -> Rescored:
    """Derive what can be derived, then run the judges on what images there are.

    Raises:
        FolderError: the store cannot be written.
    """
    from benchmark.runner.executors import local
    from benchmark.runner.loop import run as run_tasks

    with store.using():
        derived = derive(plan, store)
    part, absent = ready(plan, store)
    return Rescored(run_tasks(part, judges_alone(store, batch), events, local.execute), derived, absent)


def judges_alone(store: Store, batch: int) -> "Bench":
    """A bench without a model: who asks for one fails."""
    from benchmark.runner.stages import Bench

    class Judges(Bench):
        @property
        def base(self) -> Any:
            raise StoreError("expected stored images to score, got none: `titer run` draws them.")

    return Judges(Path(), store, batch=batch)


def derive(plan: Plan, store: Store) -> list[str]:
    """Put the missing scores that differ from a stored one in a threshold alone; their keys."""
    scores = {key: task for key, task in plan.tasks.items() if task.kind == "score" and thresholds(task.plugin)}
    there = store.finished(scores)
    missing = [task for key, task in scores.items() if key not in there]
    known = siblings(store, {task.plugin for task in missing}) if missing else {}
    derived = []
    for task in missing:
        for key, fields in known.get(essence(task.identity()), ()):
            if is_same_judge(task, fields) and store.has(key) and rethreshold(task, key, store):
                derived.append(task.key)
                break
    return derived


def siblings(store: Store, plugins: Iterable[str]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Keys and fields of the stored scores by some metrics, by their essence: those that a judge made come first."""
    found: dict[str, list[tuple[bool, str, dict[str, Any]]]] = {}
    for plugin in plugins:
        for folder in (store.root / "score").glob(f"{plugin}-*"):
            try:
                meta = store.meta(key := f"score/{folder.name}")
            except StoreError:
                continue
            identity = meta.get("identity_of", {})
            if identity.get("plugin") == plugin:
                found.setdefault(essence(identity), []).append(("derived_from" in meta, key, identity["fields"]))
    return {
        what: [(key, fields) for _, key, fields in sorted(those, key=itemgetter(0, 1))] for what, those in found.items()
    }


def essence(identity: Mapping[str, Any]) -> str:
    """A hash of a score's identity, less what only decides `value`, and less the judge's name, in which that is."""
    fields, out = identity["fields"], (*thresholds(identity["plugin"]), "identity")
    kept = {name: value for name, value in fields.items() if name not in out and value != fields.get("identity")}
    return hashlib.sha256(canonical({**veiled(identity), "fields": kept}).encode()).hexdigest()


def is_same_judge(task: Task, fields: Mapping[str, Any]) -> bool:
    """True if the judge of a task, with the thresholds of a stored score, calls itself what that score says.

    With other weights it does not.
    """
    settings = {**task.fields, **{name: fields[name] for name in thresholds(task.plugin) if name in fields}}
    try:
        return bool(judge(task.plugin, canonical(settings), canonical(task.places)).identity() == fields["identity"])
    except (TiterError, ValidationError, OSError, ValueError, KeyError):
        return False


@cache
def judge(plugin: str, fields: str, places: str) -> Any:
    """A metric from the fields and places of a task, as JSON."""
    values = {**json.loads(fields), **json.loads(places)}
    values.pop("identity", None)
    return adapter(find("metric", plugin)).validate_python(values)


@cache
def thresholds(plugin: str) -> frozenset[str]:
    """The fields of a metric that only decide `value`; none for one that cannot be found."""
    try:
        found: frozenset[str] = getattr(find("metric", plugin), "thresholds", frozenset())
    except TiterError:
        return frozenset()
    return found


def rethreshold(task: Task, key: str, store: Store) -> bool:
    """Put a score from the raw numbers of another; False if these are too few.

    An image that the judge could not score stays missing.
    """
    import torch

    started, meta = time.monotonic(), store.meta(key)
    stored = pq.ParquetFile(store.path(key) / SCORES).read()
    columns = {name: stored[name].to_numpy() for name in stored.column_names if name not in NAMES}
    raw = {name: torch.tensor(values, dtype=torch.float32) for name, values in columns.items()}
    try:
        found = judge(task.plugin, canonical(dict(task.fields)), canonical(task.places)).rethreshold(raw, task.concept)
    except (Exception, SystemExit):  # an older version kept other columns, or the metric fails: its judge will say so
        return False
    table = {name: stored[name] for name in stored.column_names}
    for name, values in found.items():
        kept = torch.where(raw["value"].isnan(), math.nan, values.float())
        table[name] = pa.array(kept.double().numpy())
    noted: dict[str, Any] = {name: meta[name] for name in ("faults", "flags") if name in meta}
    cost = {"seconds": round(time.monotonic() - started, 3)}
    named = {"identity": task.fields["identity"], "label": task.label, **task.noted()}
    store.put(task.key, partial(write, pa.table(table)), {"cost": cost, **noted, **named, "derived_from": key})
    return True


def write(table: pa.Table, folder: Path) -> None:
    """Write the scores."""
    pq.write_table(table, folder / SCORES)
