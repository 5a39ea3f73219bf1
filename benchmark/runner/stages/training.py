"""defend and attack: methods that change weights, or find words."""

import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from benchmark.config.registry import find
from benchmark.data.safety import allowed
from benchmark.errors import PluginError, readable
from benchmark.plan.task import GUIDANCE, Task
from benchmark.runner.flags import evidence, flags_of
from benchmark.runner.limits import out_of_memory
from benchmark.runner.stages.account import Losses, build, generator, measured
from benchmark.runner.stages.bench import Bench, Done, snapshot_name
from benchmark.runner.stages.images import examples_of
from benchmark.store import Store
from benchmark.store.artifacts import load_values, save_delta, save_guard, save_snapshot
from benchmark.types import Budget, Concept, Delta, Report, Snapshot
from defenses.base import GuardDefense, ModuleDefense


def defend(task: Task, bench: Bench, report: Report) -> Done:
    """Train a defense, or the extra layers that its guard puts on."""
    method, losses = build("defense", task), Losses(report)
    assert task.concept is not None
    model = bench.model_for(task)
    has_modules = isinstance(method, ModuleDefense)
    verb = method.layers if has_modules else method.protect
    with measured(model) as cost:
        made = verb(model, task.concept, examples_of(task, bench), rng=generator(task), report=losses)
    delta, modules = (Delta(), modules_of(made, task)) if has_modules else (made, dict[str, Tensor]())
    if not isinstance(delta, Delta):
        raise PluginError(f"expected {task.plugin}.protect to return a Delta, got {type(delta).__name__}.")
    check_numbers(delta, modules, task)
    model.with_delta(delta)  # raises on a wrong name or shape: here, so that no such delta is kept
    guard = guard_of(method, task) if isinstance(method, GuardDefense) else None

    def write(folder: Path) -> None:
        save_delta(folder, delta)
        losses.save(folder)
        if guard is not None:
            save_guard(folder, task.plugin, guard, modules)

    return write, {
        "cost": cost,
        "flags": [] if guard is not None else flags_of(Snapshot(steps=0, delta=delta), losses.rows),
        "fidelity": method.badge,
    }


def modules_of(made: Any, task: Task) -> dict[str, Tensor]:
    """The tensors of extra layers.

    Raises:
        PluginError: it is something else, or there is none.
    """
    if not isinstance(made, dict) or not made:
        raise PluginError(f"expected {task.plugin}.layers to return tensors by name, got {type(made).__name__}.")
    return made


def guard_of(method: GuardDefense, task: Task) -> dict[str, Any]:
    """The fields of a defense's guard, as JSON values.

    Raises:
        PluginError: it is not of the class that the defense declares, or its fields are no JSON values.
    """
    assert task.concept is not None
    guard = method.guard(task.concept)
    if type(guard) is not method.guarding:
        raise PluginError(
            f"expected {task.plugin}.guard to return {method.guarding.__name__}, got {type(guard).__name__}."
        )
    fields: dict[str, Any] = TypeAdapter(method.guarding).dump_python(guard, mode="json")
    return fields


def attack(task: Task, bench: Bench, report: Report) -> Done:
    """Attack a defended model; keep every snapshot and what it had cost by then.

    An attack that raises after its first snapshot keeps what it has; larger budgets fail with its reason.
    """
    losses = Losses(report, limit=max(task.fields["budgets"]))
    method, choice = chosen(task, bench.store)
    card = as_attacked(task)
    model, data, budgets = bench.model_for(task), examples_of(task, bench), list(task.fields["budgets"])
    meter, started, taken = model.meter, time.monotonic(), list[tuple[Snapshot, Budget]]()
    verb = method.finetune if method.changes == "weights" else method.search
    first, why = asdict(meter), ""
    with measured(model) as cost:
        base = bench.gated(bench.base, task) if method.uses_base else model
        arguments = (model, base, card, data)
        try:
            for snapshot in verb(*arguments, budgets=budgets, rng=generator(task), report=losses):
                check_numbers(snapshot.delta, snapshot.tokens, task)
                snapshot = permitted(snapshot, task)
                spent = {name: count - first[name] for name, count in asdict(meter).items()}
                seconds = round(time.monotonic() - started, 3)
                taken.append((snapshot, Budget(steps=len(losses.rows), seconds=seconds, **spent)))
        except Exception as error:  # the attack is somebody else's code: what it reached counts
            if not taken or isinstance(error, PluginError) or out_of_memory(error):
                raise
            why = readable(traceback.format_exception_only(error)[-1].strip())
    check_steps(
        task, [s.steps for s, _ in taken], [b.steps for _, b in taken], budgets[: len(taken)] if why else budgets
    )

    def write(folder: Path) -> None:
        losses.save(folder)
        for snapshot, _ in taken:
            save_snapshot(folder / snapshot_name(snapshot.steps), snapshot)

    spent_by = {str(budget.steps): asdict(budget) for _, budget in taken}
    flags = flags_of(taken[-1][0], losses.rows) + ["stopped early"] * bool(why)
    told = {"search": told_by} if (told_by := {str(s.steps): evidence(s) for s, _ in taken if s.search}) else {}
    return write, {"cost": cost, "budgets": spent_by, "flags": flags, "stopped": why, **told, **choice}


def as_attacked(task: Task) -> Concept:
    """The card as an attack sees it: of the evaluation prompts those that are asked for, where it attacks them."""
    assert task.concept is not None
    if not task.prompts:
        return task.concept
    others = tuple(prompt for prompt in task.concept.prompts if prompt.split != "concept")
    return replace(task.concept, prompts=(*others, *task.prompts))


def chosen(task: Task, store: Store) -> tuple[Any, dict[str, Any]]:
    """The method of an attack task, and for a tuned one what it chose: the settings that the judge saw most after.

    A trial's worth is its presence on the development concept, averaged over the budgets; the first of equals wins.

    Raises:
        PluginError: every trial failed.
    """
    if "trials" not in task.fields:
        return build("attack", task, "budgets", "start", GUIDANCE), {}
    settings, budgets = task.fields["trials"], task.fields["budgets"]
    worth = list[float | None]()
    for number in range(len(settings)):
        keys = [task.parents[f"trial{number}@{budget}"] for budget in budgets]
        values = [np.mean(load_values(store.path(key))) for key in keys if store.has(key)]
        worth.append(float(np.mean(values)) if len(values) == len(keys) else None)
    known = [value for value in worth if value is not None]
    if not known:
        raise PluginError(f"expected a trial of {task.plugin} that finishes, got none of {len(worth)}: lower lr.")
    best = worth.index(max(known))
    method = TypeAdapter(find("attack", task.plugin)).validate_python(settings[best])
    varied = {name for other in settings for name in other if other[name] != settings[0][name]}
    return method, {"chosen": {name: settings[best][name] for name in sorted(varied)}, "trials": worth}


def permitted(snapshot: Snapshot, task: Task) -> Snapshot:
    """A snapshot without the prompts that the age filter drops.

    Where each was found for one evaluation prompt it leaves an empty text, and that prompt is not drawn.

    Raises:
        PluginError: nothing is left of what the attack found, or there is not one text for each attacked prompt.
    """
    assert task.concept is not None
    known = {text: bool(list(allowed([text], task.concept.kind))) for text in snapshot.prompts}
    prompts = tuple(text if known[text] else "" for text in snapshot.prompts)
    if task.prompts and len(prompts) != len(task.prompts):
        raise PluginError(
            f"expected a text for each of {len(task.prompts)} attacked prompts from {task.plugin}, got {len(prompts)}."
        )
    if not task.prompts:
        prompts = tuple(filter(None, prompts))
    if snapshot.prompts and not any(prompts):
        raise PluginError("expected found prompts that the age filter permits, got none: they are not drawn.")
    return replace(snapshot, prompts=prompts)


def check_steps(task: Task, yielded: list[int], counted: list[int], budgets: list[int]) -> None:
    """Refuse an attack that spent something else than it was given."""
    if yielded != budgets or counted != budgets:
        raise PluginError(
            f"expected snapshots of {task.plugin} at {budgets} steps, got {yielded}, after {counted} reported steps: "
            "report every step once and yield at each budget."
        )


def check_numbers(delta: Delta, tokens: Mapping[str, Tensor], task: Task) -> None:
    """Refuse weights and words that are not float32, or not finite.

    Raises:
        PluginError: which, and what it is.
    """
    pairs = {f"{n}[{i}]": t for n, pair in delta.low_rank.items() for i, t in enumerate(pair)}
    for name, tensor in {**delta.dense, **pairs, **tokens}.items():
        dtype = getattr(tensor, "dtype", type(tensor).__name__)
        if dtype != torch.float32:
            raise PluginError(
                f"expected float32 from {task.label}, got {dtype} in {name}: return `difference.float()`."
            )
        if not bool(torch.isfinite(tensor).all()):
            raise PluginError(
                f"expected finite weights from {task.label}, "
                f"got some in {name} that are not: lower its rate or strength."
            )
