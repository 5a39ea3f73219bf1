"""Defenses compose: `a+b` trains b on the result of a, with its own key and lineage."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from benchmark.config import config, entries
from benchmark.data import load_concept
from benchmark.errors import ConfigError, FolderError, PlanError
from benchmark.model.bases import fingerprint
from benchmark.plan import Plan, build
from benchmark.plan.task import Task
from benchmark.results import records
from benchmark.runner.executors import local
from benchmark.runner.export import export, find_cell
from benchmark.runner.loop import Outcome, run
from benchmark.runner.stages import Bench
from benchmark.store import Store
from benchmark.store.artifacts import load_delta
from tests.runs import tiny_config

ERASE = {"use": "esd", "as": "erased", "steps": 2, "ddim_steps": 3, "lr": 0.01}
TWICE = {"use": "esd", "after": "erased", "scope": "u", "steps": 2, "ddim_steps": 3, "lr": 0.01}


class Silent:
    """Events that nobody watches."""

    def started(self, task: Task) -> None: ...

    def step(self, *, step: int, total: int, loss: float) -> None: ...

    def finished(self, task: Task, outcome: str) -> None: ...


def labels(*listed: Any) -> list[str]:
    return [e.label for e in entries.entries("defense", listed)]


def test_a_composed_defense_is_named_by_its_parts() -> None:
    assert labels(ERASE, TWICE) == ["erased", "erased+esd"]
    assert labels(ERASE, "erased+esd", {**TWICE, "as": "both"}) == ["erased", "erased+esd", "both"]
    assert labels("esd+esd") == ["esd+esd"]


def test_a_label_brings_its_fields() -> None:
    """`erased+last`: each part is the entry listed under that label, not the plug-in's defaults."""
    *_, whole = entries.entries("defense", (ERASE, {"use": "esd", "as": "last", "steps": 7}, "erased+last"))

    assert (whole.method.steps, whole.after.method.steps) == (7, 2)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("item", "said"),
    [("none+esd", "expected a defense to build on"), ("esd+nothing", "nothing"), ("esd+", "expected a known defense")],
)
def test_a_part_that_is_none_or_unknown_is_an_error(item: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said if said != "expected a known defense" else "defense"):
        entries.entries("defense", (item,))


def test_attacks_do_not_compose_with_plus() -> None:
    with pytest.raises(ConfigError, match="only defenses compose"):
        entries.entries("attack", ("lora+lora",))


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_run: Path
) -> tuple[Plan, Bench, Outcome]:
    folder = tmp_path_factory.mktemp("composed")
    attack = {"use": "lora", "rank": 2, "alpha": 2, "lr": 0.01}
    given = {"defenses": ["none", ERASE, TWICE], "attacks": ["none", attack], "budgets": [2], "metrics": ["black"]}
    raw = config.parse(tiny_config(folder, tiny_folder, **given))
    plan = build(raw, fingerprint(tiny_folder), [load_concept(name) for name in raw.raw.concepts])
    shutil.copytree(tiny_run / "store", folder / "store")
    bench = Bench(tiny_folder, Store(folder / "store").open())
    return plan, bench, run(plan, bench, Silent(), local.execute)


def defends(plan: Plan) -> dict[str, Task]:
    return {task.label.partition(" on ")[0]: task for task in plan.tasks.values() if task.kind == "defend"}


def test_the_first_part_is_trained_once(finished: tuple[Plan, Bench, Outcome]) -> None:
    plan, _, outcome = finished

    assert not outcome.failed
    assert set(defends(plan)) == {"erased", "erased+esd"}
    assert defends(plan)["erased+esd"].parents["defense"] == defends(plan)["erased"].key


def test_the_composed_model_has_both_deltas(finished: tuple[Plan, Bench, Outcome]) -> None:
    plan, bench, _ = finished
    first, second = (defends(plan)[name].key for name in ("erased", "erased+esd"))
    drawn = next(t for t in plan.tasks.values() if t.kind == "generate" and t.parents.get("defense") == second)

    model = bench.model_for(drawn)

    wanted = bench.base.with_delta(*(load_delta(bench.store.path(key)) for key in (first, second)))
    assert bench.lineage(drawn) == [first, second]
    assert all(torch.equal(a, b) for a, b in zip(model.unet.parameters(), wanted.unet.parameters(), strict=True))


def test_the_second_part_starts_from_the_first(finished: tuple[Plan, Bench, Outcome], tiny_folder: Path) -> None:
    """The same method alone, on the base, gives another delta."""
    plan, bench, _ = finished
    composed = load_delta(bench.store.path(defends(plan)["erased+esd"].key))
    alone = entries.entry("defense", {k: v for k, v in TWICE.items() if k != "after"}).method
    concept = load_concept(plan.config.raw.concepts[0])

    def silent(*, step: int, total: int, loss: float) -> None: ...

    other = alone.protect(bench.base, concept, {}, rng=torch.Generator().manual_seed(0), report=silent)

    assert composed.dense.keys() == other.dense.keys()
    assert any(not torch.equal(composed.dense[n], other.dense[n]) for n in other.dense)


def test_a_card_without_the_data_a_method_needs_is_an_error(tmp_path: Path) -> None:
    import dataclasses

    raw = config.parse(tiny_config(tmp_path, Path("model"), attacks=["none", "lora"]))
    card = load_concept(raw.raw.concepts[0])
    poor = dataclasses.replace(card, prompts=tuple(p for p in card.prompts if p.split != "attacker"))

    with pytest.raises(
        PlanError, match="expected prompts for the split 'attacker' in the card 'cat', which lora needs"
    ):
        build(raw, "base", [poor])


def test_a_composed_defense_costs_the_sum_of_its_parts(finished: tuple[Plan, Bench, Outcome]) -> None:
    plan, bench, _ = finished
    spent = {name: bench.store.meta(task.key)["cost"]["seconds"] for name, task in defends(plan).items()}

    table = records.costs(plan, bench.store).set_index("defense")

    assert table.loc["erased+esd", "defend_seconds"] == pytest.approx(spent["erased"] + spent["erased+esd"])
    assert table.loc["erased+esd", "fidelity"] == "official-matched + official-matched"


def test_a_board_says_how_many_steps_and_passes_a_defense_had(finished: tuple[Plan, Bench, Outcome]) -> None:
    """Of a composed one those of both parts; the control had none. Counted by the meter, and planned as a mean."""
    plan, bench, _ = finished
    tasks = defends(plan)
    spent = {name: bench.store.meta(task.key)["cost"] for name, task in tasks.items()}
    passes = {name: cost["unet_forward"] + 2 * cost["unet_backward"] for name, cost in spent.items()}

    table = records.costs(plan, bench.store).set_index("defense")

    assert pd.isna(table.loc["none", ["defend_steps", "defend_passes"]]).all()
    for name in ("erased", "erased+esd"):
        own = [part for part in tasks if name == part or name.startswith(f"{part}+")]
        assert table.loc[name, "defend_steps"] == sum(tasks[part].fields["steps"] for part in own)
        assert table.loc[name, "defend_passes"] == sum(passes[part] for part in own) > 0


def test_an_exported_cell_is_a_diffusers_folder(finished: tuple[Plan, Bench, Outcome], tmp_path: Path) -> None:
    """`from_pretrained` loads it, with the weights of the composed defense; the folder is not overwritten."""
    plan, bench, _ = finished
    cell = find_cell(plan, "cat/erased+esd")

    export(plan, bench, cell, tmp_path / "out")

    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None)
    model = bench.model_for(plan.tasks[cell.images["concept"]])
    assert all(torch.equal(a, b) for a, b in zip(pipe.unet.parameters(), model.unet.parameters(), strict=True))
    with pytest.raises(FolderError, match="expected an empty folder"):
        export(plan, bench, cell, tmp_path / "out")
    with pytest.raises(ConfigError, match="unknown cell"):
        find_cell(plan, "cat/eased")


def test_an_attacked_cell_can_be_exported(finished: tuple[Plan, Bench, Outcome], tmp_path: Path) -> None:
    plan, bench, _ = finished
    before, after = (find_cell(plan, f"cat/erased/lora@{b}#0") for b in (0, 2))

    for name, cell in (("before", before), ("after", after)):
        export(plan, bench, cell, tmp_path / name)

    unets = [UNet2DConditionModel.from_pretrained(tmp_path / name / "unet") for name in ("before", "after")]
    assert any(not torch.equal(a, b) for a, b in zip(unets[0].parameters(), unets[1].parameters(), strict=True))
