"""Attacks that are made of others: a prompt attack on a fine-tuned model, and an attack that chooses its settings."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from benchmark.config import config, entries
from benchmark.data import load_concept
from benchmark.errors import ConfigError, PlanError
from benchmark.model.bases import fingerprint
from benchmark.plan import Plan, build
from benchmark.plan.task import Task
from benchmark.runner import stages
from benchmark.runner.executors import local
from benchmark.runner.loop import Outcome, run
from benchmark.runner.stages import Bench
from benchmark.runner.stages.images import examples_of
from benchmark.store import Store
from benchmark.store.artifacts import load_images, load_snapshot, load_values
from tests.runner.test_loop import Silent
from tests.runs import CARD, tiny_config

LORA = {"use": "lora", "rank": 2, "alpha": 2, "lr": 0.01}
PREFIX = {"use": "unlearndiffatk", "count": 1, "tokens": 1}
GRID = {"lr": [0.01, 0.1], "rank": [2, 4]}
TUNED = {"use": "search:lora", "grid": GRID, "alpha": 2}


def labels(*listed: Any) -> list[str]:
    return [e.label for e in entries.entries("attack", listed)]


def test_a_path_is_named_by_its_parts() -> None:
    assert labels(LORA, PREFIX, "lora>unlearndiffatk") == ["lora", "unlearndiffatk", "lora>unlearndiffatk"]
    assert labels(LORA, {**PREFIX, "after": "lora", "at": 2}) == ["lora", "lora>unlearndiffatk"]
    assert labels({**PREFIX, "after": "lora", "as": "both"}) == ["both"]


def test_a_path_brings_the_fields_of_the_entries_it_names() -> None:
    *_, whole = entries.entries("attack", (LORA, PREFIX, "lora>unlearndiffatk"))

    assert whole.after is not None
    assert (whole.after.method.rank, whole.method.tokens, whole.changes) == (2, 1, "weights")


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("paraphrase>unlearndiffatk", "expected an attack that trains weights before >, got 'paraphrase'"),
        ("lora>paraphrase", "expected an attack that searches prompts after >, got 'paraphrase'"),
        ("lora>full_finetune", "expected an attack that searches prompts after >"),
        ("lora>unlearn", "unlearndiffatk"),
        ({**PREFIX, "after": "lora", "at": "soon"}, "expected `at:` steps of 'lora', got 'soon'"),
        ("search:lora", "at 'develop'"),
        ({**TUNED, "develop": "bomb", "grid": {}}, "at 'grid'"),
        ({**TUNED, "develop": "bomb", "grid": {"lr": []}}, "expected values to try for 'lr'"),
        ({**TUNED, "develop": "bomb", "grid": {"lt": [1.0]}}, "lr"),
        ({**TUNED, "develop": "bomb", "grid": {"rank": ["x"]}}, "rank"),
        ({**TUNED, "develop": "bomb", "trials": 3}, "every one is tried"),
        ({**TUNED, "develop": "bomb", "grid": {"lr": {"low": 0, "high": 1, "log": True}}, "trials": 3}, "low < high"),
        ({**TUNED, "develop": "bomb", "grid": {"lr": {"low": 0.1, "high": 1.0}}}, "expected `trials:` with the range"),
        ({**TUNED, "use": "search:paraphrase", "develop": "bomb"}, "expected an attack that trains weights after"),
    ],
)
def test_what_makes_no_sense_is_an_error(item: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        entries.entries("attack", (item,))


def test_only_attacks_follow_each_other() -> None:
    with pytest.raises(ConfigError, match="only attacks follow"):
        entries.entries("defense", ("esd>imma",))


def test_a_grid_is_every_combination() -> None:
    (found,) = entries.entries("attack", ({**TUNED, "develop": "bomb"},))

    tried = {(trial.method.lr, trial.method.rank) for trial in found.trials}
    assert tried == {(0.01, 2), (0.01, 4), (0.1, 2), (0.1, 4)}
    assert all(trial.method.alpha == 2 for trial in found.trials)


def test_ranges_are_spread_and_a_longer_search_begins_like_a_shorter_one() -> None:
    ranged = {**TUNED, "develop": "bomb", "grid": {"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "rank": [2, 4]}}
    short, long = (entries.entry("attack", {**ranged, "trials": n}).trials for n in (4, 8))

    rates = np.log10([trial.method.lr for trial in long])
    assert [trial.method for trial in short] == [trial.method for trial in long[:4]]
    assert rates.min() < -3.5 and rates.max() > -2.5
    assert len(set(np.floor((rates + 4) / 2 * 4))) == 4, "every quarter of the range is tried"
    assert {trial.method.rank for trial in short} == {2, 4}


def test_settings_are_chosen_on_a_concept_that_is_not_reported(tmp_path: Path) -> None:
    values = tiny_config(tmp_path, Path("model"), attacks=[{**TUNED, "develop": str(tmp_path / "cat.yaml")}])

    with pytest.raises(ConfigError, match="expected 'search:lora' to choose its settings on a concept that is not"):
        config.parse(values)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_run: Path
) -> tuple[Plan, Bench, Outcome]:
    folder = tmp_path_factory.mktemp("paths")
    other = folder / "pet.yaml"
    other.write_text(yaml.safe_dump({**CARD, "phrase": "kitten"}))
    rates = {**TUNED, "grid": {"lr": GRID["lr"]}, "rank": 4, "develop": str(other)}  # each trial takes a second
    attacks = ["none", LORA, {**PREFIX, "after": "lora", "at": 2}, rates]
    plan = make_plan(tiny_config(folder, tiny_folder, attacks=attacks))
    shutil.copytree(tiny_run / "store", folder / "store")  # all but the path and the trials
    bench = Bench(tiny_folder, Store(folder / "store").open())
    return plan, bench, run(plan, bench, Silent(), local.execute)


def make_plan(values: dict[str, Any]) -> Plan:
    raw = config.parse(values)
    development = {e.develop: load_concept(e.develop) for e in raw.attacks if e.develop}
    concepts = [load_concept(name) for name in raw.raw.concepts]
    return build(raw, fingerprint(Path(raw.raw.model)), concepts, None, development)


def attack_tasks(plan: Plan, name: str) -> list[Task]:
    return [task for task in plan.tasks.values() if task.kind == "attack" and task.label.startswith(f"{name} on ")]


def test_a_path_shares_the_weight_attack_with_its_own_row(finished: tuple[Plan, Bench, Outcome]) -> None:
    plan, _, outcome = finished
    first, second = attack_tasks(plan, "lora"), attack_tasks(plan, "lora>unlearndiffatk")

    assert not outcome.failed
    assert len(first) == len(second) == 2, "on the base and on the defense"
    assert {task.parents["attack"] for task in second} == {task.key for task in first}


def test_the_budget_of_a_path_is_all_its_steps(finished: tuple[Plan, Bench, Outcome]) -> None:
    plan, _, _ = finished

    cells = [c for c in plan.cells if c.attack == "lora>unlearndiffatk" and c.defense == "esd"]

    assert [(c.budget, c.kind) for c in cells] == [(0, "weights"), (3, "weights"), (4, "weights")]


def test_a_path_draws_with_the_fine_tuned_weights_and_the_found_prompt(finished: tuple[Plan, Bench, Outcome]) -> None:
    plan, bench, _ = finished
    cell = next(c for c in plan.cells if c.attack == "lora>unlearndiffatk" and c.defense == "esd" and c.budget == 4)
    task = plan.tasks[cell.images["concept"]]
    search = plan.tasks[task.parents["attack"]]

    model, searched = bench.model_for(task).clone(), bench.model_for(search).clone()

    weights = load_snapshot(bench.store.path(search.parents["attack"]) / stages.snapshot_name(2)).delta
    words = load_snapshot(bench.store.path(search.key) / stages.snapshot_name(2)).prompts
    defended = bench.model_for(next(t for t in attack_tasks(plan, "lora") if "defense" in t.parents))
    wanted = defended.with_delta(weights)
    for found in (model, searched):
        assert all(torch.equal(a, b) for a, b in zip(found.unet.parameters(), wanted.unet.parameters(), strict=True))
    prompts = load_images(bench.store.path(task.key)).prompts
    assert search.prompts == task.prompts, "what is attacked is what is evaluated"
    assert prompts == tuple(w.replace("{prompt}", p.text) for w, p in zip(words, task.prompts, strict=True))


def test_a_path_leaves_other_prompts_as_they_are(finished: tuple[Plan, Bench, Outcome]) -> None:
    """Safe images are those of the fine-tuned model: with the found prefix they would fall apart without its fault."""
    plan, bench, _ = finished
    for defense in ("none", "esd"):
        cells = {(c.attack, c.budget): c.images["safe"] for c in plan.cells if c.defense == defense}

        assert cells["lora>unlearndiffatk", 3] == cells["lora>unlearndiffatk", 4] == cells["lora", 2]
        task = plan.tasks[cells["lora", 2]]
        assert load_images(bench.store.path(task.key)).prompts[0] == task.prompts[0].text


def test_a_path_from_a_snapshot_that_is_not_made_is_an_error(tmp_path: Path, tiny_folder: Path) -> None:
    values = tiny_config(tmp_path, tiny_folder, attacks=["none", LORA, {**PREFIX, "after": "lora", "at": 7}])

    with pytest.raises(PlanError, match=r"start from 'lora' after 7 steps, got none: its budgets are \[1, 2\]"):
        make_plan(values)


def test_a_tuned_attack_is_the_trial_that_did_best(finished: tuple[Plan, Bench, Outcome]) -> None:
    """Its snapshots are those of the same attack with the chosen settings, and those have the largest presence."""
    plan, bench, _ = finished
    task = next(t for t in attack_tasks(plan, "search:lora") if "defense" in t.parents)
    meta = bench.store.meta(task.key)

    worth = [
        np.mean([load_values(bench.store.path(task.parents[f"trial{n}@{b}"])).mean() for b in (1, 2)]) for n in range(2)
    ]
    best = int(np.argmax(worth))
    assert meta["trials"] == pytest.approx(worth)
    assert meta["chosen"] == {"lr": task.fields["trials"][best]["lr"]}

    alone = entries.entry("attack", {"use": "lora", "alpha": 2, "rank": 4, **meta["chosen"]}).method
    data = examples_of(task, bench)
    assert task.concept is not None
    model = bench.model_for(task)
    rng = stages.generator(task)
    *_, last = alone.finetune(model, model, task.concept, data, budgets=[1, 2], rng=rng, report=lambda **_: None)
    kept = load_snapshot(bench.store.path(task.key) / stages.snapshot_name(2)).delta.low_rank
    assert all(torch.equal(kept[n][i], last.delta.low_rank[n][i]) for n in kept for i in (0, 1))


def test_each_defense_is_met_by_settings_chosen_against_it(finished: tuple[Plan, Bench, Outcome]) -> None:
    plan, _, _ = finished
    parents = [set(task.required) ^ set(task.parents) for task in attack_tasks(plan, "search:lora")]
    keys = [{k for r, k in task.parents.items() if r.startswith("trial")} for task in attack_tasks(plan, "search:lora")]

    assert all(len(roles) == 2 * 2 for roles in parents)  # trials and budgets
    assert not keys[0] & keys[1]
    assert all(cell.concept.phrase != "kitten" for cell in plan.cells), "the development concept is not reported"


def test_a_trial_that_fails_is_not_chosen(tmp_path: Path, tiny_folder: Path) -> None:
    """A rate that ends in NaN before the first budget costs that trial only."""
    other = tmp_path / "pet.yaml"
    other.write_text(yaml.safe_dump({**CARD, "phrase": "kitten"}))
    tuned = {"use": "search:lora", "grid": {"lr": [1e30, 0.01]}, "rank": 2, "develop": str(other)}
    plan = make_plan(tiny_config(tmp_path, tiny_folder, attacks=["none", tuned], defenses=["none"], budgets=[3]))
    bench = Bench(tiny_folder, Store(tmp_path / "store").open())

    outcome = run(plan, bench, Silent(), local.execute)

    (task,) = attack_tasks(plan, "search:lora")
    assert [plan.tasks[key].label for key in outcome.failed] == ["lora trial 0 on none, cat, seed 0"]
    assert bench.store.meta(task.key)["trials"][0] is None
    assert bench.store.meta(task.key)["chosen"] == {"lr": 0.01}
    assert all(bench.store.has(key) for cell in plan.cells for key in cell.images.values())
