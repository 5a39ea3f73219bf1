"""The plan shares what can be shared, and its keys change exactly when a result may."""

from pathlib import Path
from typing import Any

import pytest

from benchmark.config import config
from benchmark.data import load_concept
from benchmark.errors import ConfigError, PlanError
from benchmark.plan import Plan, build
from benchmark.plan.task import Task
from benchmark.types import Prompt
from tests.runs import tiny_config

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def planned(tmp_path: Path) -> Any:
    def make(base: str = "base", **changes: Any) -> Plan:
        raw = config.parse(tiny_config(tmp_path, Path("model"), **changes))
        return build(raw, base, [load_concept(name) for name in raw.raw.concepts])

    return make


def keys(plan: Plan, kind: str) -> set[str]:
    return {key for key, task in plan.tasks.items() if task.kind == kind}


def test_a_defense_is_trained_once_and_an_attack_once_for_all_budgets(planned: Any) -> None:
    plan = planned()

    assert len(keys(plan, "defend")) == 1  # esd; the control is the base itself
    assert len(keys(plan, "attack")) == 2  # lora on none, lora on esd
    assert len(plan.cells) == 2 * (1 + 3)  # {none, esd} x ({none} + lora at {0, 1, 2})


def test_images_are_drawn_once(planned: Any) -> None:
    """Per defense: 3 splits before, 2 splits at each of 2 budgets; and the attacker's images once for all."""
    assert len(keys(planned(), "generate")) == 2 * (3 + 2 * 2) + 1


def test_an_unattacked_model_is_the_same_cell_for_every_attack(planned: Any) -> None:
    plan = planned()
    at_zero = {cell.images["concept"] for cell in plan.cells if cell.defense == "esd" and cell.budget == 0}

    assert len(at_zero) == 1


def test_parents_come_first(planned: Any) -> None:
    plan, seen = planned(), set()
    for key, task in plan.tasks.items():
        assert set(task.parents.values()) <= seen
        seen.add(key)


def test_an_attack_descends_from_the_defense_it_attacks(planned: Any) -> None:
    """Lineage: the attacked model is the defended one, and its images come from that attack."""
    plan = planned()
    for cell in plan.cells:
        images = plan.tasks[cell.images["concept"]]
        assert images.parents.get("defense") == cell.defend
        if cell.budget:
            assert plan.tasks[images.parents["attack"]].parents.get("defense") == cell.defend


def test_the_control_is_always_planned(planned: Any) -> None:
    plan = planned(defenses=[{"use": "esd", "steps": 2}])

    assert {cell.defense for cell in plan.cells} == {"none", "esd"}


def test_two_defenses_share_no_key(planned: Any) -> None:
    """A cache that ignores the model would answer for the wrong one."""
    plan = planned(defenses=[{"use": "esd", "as": "a", "steps": 2}, {"use": "esd", "as": "b", "steps": 3}])
    by_defense: dict[str, set[str]] = {}
    for cell in plan.cells:
        by_defense.setdefault(cell.defense, set()).update([*cell.images.values(), *cell.scores.values()])

    assert not by_defense["a"] & by_defense["b"]
    assert not by_defense["a"] & by_defense["none"]


def test_one_concept_twice_aborts(planned: Any, tmp_path: Path) -> None:
    planned()
    (tmp_path / "copy.yaml").write_text((tmp_path / "cat.yaml").read_text())

    with pytest.raises(ConfigError, match="twice"):
        planned(concepts=[str(tmp_path / "cat.yaml"), str(tmp_path / "cat.yaml")])
    with pytest.raises(PlanError, match="twice"):
        planned(concepts=[str(tmp_path / "cat.yaml"), str(tmp_path / "copy.yaml")])


def test_an_attack_without_budgets_is_skipped_with_a_reason(planned: Any) -> None:
    plan = planned(budgets=[])

    assert {(s.attack, s.reason) for s in plan.skipped} == {("lora", "the config has no budgets")}


def test_planning_twice_gives_the_same_keys(planned: Any) -> None:
    assert list(planned().tasks) == list(planned().tasks)


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": {"steps": 3, "guidance": 2.0}},
        {"sampling": {"steps": 2, "guidance": 2.5}},
        {"images": {"concept": 2}},
        {"base": "another"},
    ],
)
def test_what_changes_images_changes_every_evaluated_key(planned: Any, changes: dict[str, Any]) -> None:
    ours = {cell.images["concept"] for cell in planned().cells}
    theirs = {cell.images["concept"] for cell in planned(**changes).cells}

    assert not ours & theirs


def test_names_and_labels_enter_no_key(planned: Any) -> None:
    plain = planned()
    renamed = planned(
        name="other", defenses=["none", {"use": "esd", "as": "x", "steps": 2, "ddim_steps": 3, "lr": 0.01}]
    )

    assert set(plain.tasks) == set(renamed.tasks)


def task(**changes: Any) -> Task:
    fields = {"steps": 2, "lr": 0.01}
    given: dict[str, Any] = {"kind": "defend", "plugin": "esd", "version": 1, "fields": fields, "base": "b"}
    return Task(**given | changes)


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"seed": 1}, {"base": "c"}, {"parents": {"data": "k"}}, {"fields": {"steps": 3, "lr": 0.01}}],
)
def test_each_part_of_the_identity_changes_the_key(change: dict[str, Any]) -> None:
    assert task().key != task(**change).key


def test_labels_and_costs_do_not_change_the_key() -> None:
    assert task().key == task(label="x", passes=9).key


def test_keys_are_pinned() -> None:
    """Golden: if this fails, every stored result is lost to its user; bump SCHEMA or a version on purpose instead."""
    drawn = task(kind="generate", plugin="sampler", prompts=(Prompt(text="a cat", split="safe"),))

    assert task().key == "defend/esd-lr=0.01-steps=2-46d278f9836684b946b3ff6dc10ff799"
    assert drawn.key == "generate/sampler-lr=0.01-steps=2-eeffdb076416e3336fa9441e2404951f"


def test_an_attack_may_be_meant_for_some_defenses(planned: Any) -> None:
    """The control is always among them: every cell needs its ceiling."""
    defenses = [{"use": "esd", "as": "a", "steps": 2}, {"use": "esd", "as": "b", "steps": 3}]
    plan = planned(defenses=defenses, attacks=["none", {"use": "lora", "against": ["a"]}])

    assert {cell.defense for cell in plan.cells if cell.attack == "lora"} == {"none", "a"}
    assert {cell.defense for cell in plan.cells if cell.attack == "none"} == {"none", "a", "b"}
    with pytest.raises(ConfigError, match="unknown defense in `against`"):
        planned(defenses=defenses, attacks=["none", {"use": "lora", "against": "c"}])


def test_what_looks_at_the_base_alone_is_run_once_for_all_defenses(planned: Any) -> None:
    """An adapter of the base is trained once; each defended model then wears it."""
    defenses = [{"use": "esd", "as": "a", "steps": 2}, {"use": "esd", "as": "b", "steps": 3}]
    plan = planned(defenses=defenses, attacks=["none", "transplant"])

    (trained,) = [task for task in plan.tasks.values() if task.plugin == "transplant"]
    assert "defense" not in trained.parents
    cells = [cell for cell in plan.cells if cell.attack == "transplant" and cell.budget]
    parents = [plan.tasks[cell.images["concept"]].parents for cell in cells]
    assert {cell.defense for cell in cells} == {"none", "a", "b"}
    assert {p["attack"] for p in parents} == {trained.key}
    assert {p.get("defense") for p in parents} == {cell.defend for cell in cells}


def test_an_attack_that_draws_more_has_its_own_number_of_images(planned: Any) -> None:
    """Expected images, seeds and passes go by it; what it does not draw stays shared."""
    plan = planned(attacks=["none", {"use": "noise_probe", "draws": 5}])

    before, after = (next(c for c in plan.cells if (c.defense, c.budget) == ("esd", b)) for b in (0, 5))
    first, more = (plan.tasks[cell.images["concept"]] for cell in (before, after))
    assert more.fields["images"] == 5 and after.kind == "beside"
    assert after.expected == 5 * len(more.prompts) == 5 * before.expected // first.fields["images"]
    assert more.passes == 5 * first.passes // first.fields["images"]
    assert after.images["safe"] == before.images["safe"]


def test_precision_is_in_the_key(planned: Any) -> None:
    full, mixed = planned(), planned(precision="bfloat16")

    assert not keys(full, "defend") & keys(mixed, "defend")
    assert not keys(full, "score") & keys(mixed, "score")
    assert {t.precision for t in mixed.tasks.values() if t.kind in ("defend", "attack", "generate")} == {"bfloat16"}


def test_a_budget_that_the_sampling_steps_have_no_room_for_is_skipped_with_its_reason(planned: Any) -> None:
    """The rest of the attack's cells are planned under the keys that they have without it."""
    sampling = {"steps": 4, "guidance": 2.0}
    attack = {"use": "diffusion_completion", "handovers": [1, 2, 5, 10]}
    plan = planned(sampling=sampling, defenses=["esd"], attacks=[attack, {"use": "img2img", "skipped": [50, 99]}])
    few = planned(sampling=sampling, defenses=["esd"], attacks=[attack | {"handovers": [1, 2]}])

    by_attack = {
        which: {(c.defense, c.budget) for c in plan.cells if c.attack == which}
        for which in ("diffusion_completion", "img2img")
    }
    assert by_attack["diffusion_completion"] == {(d, b) for d in ("none", "esd") for b in (0, 1, 2)}
    assert by_attack["img2img"] == {(d, b) for d in ("none", "esd") for b in (0, 50)}
    assert {(skip.defense, skip.attack, skip.budget) for skip in plan.skipped} == {
        *((d, "diffusion_completion", b) for d in ("none", "esd") for b in (5, 10)),
        *((d, "img2img", 99) for d in ("none", "esd")),
    }
    assert "4 sampling steps allow a handover from 1 to 3, not 5" in {skip.reason for skip in plan.skipped}
    assert len(few.tasks) < len(plan.tasks)
    assert not few.skipped
    none = planned(sampling=sampling, attacks=[attack | {"handovers": [9]}])
    assert {cell.budget for cell in none.cells if cell.attack == "diffusion_completion"} == set()
    assert {skip.budget for skip in none.skipped} == {9}


FEW = {"use": "unlearndiffatk", "tokens": 1, "every": 2, "held_out": 3}


def test_a_search_attacks_the_evaluated_prompts_and_its_key_has_them(planned: Any) -> None:
    """Its images are one of each, by another stream of seeds; with `transfer` it has the attacker's."""
    plan = planned(attacks=["none", FEW, FEW | {"use": "random_prefix"}], images={"concept": 3})
    moved = planned(attacks=["none", FEW], prompts={"concept": 1})
    transfer = planned(attacks=["none", FEW | {"transfer": True}])

    (evaluated,) = {plan.tasks[c.images["concept"]].prompts for c in plan.cells}
    searches = [t for t in plan.tasks.values() if t.kind == "attack"]
    assert {t.prompts for t in searches} == {evaluated}
    (looked_at,) = {t.parents["concept"] for t in searches}
    assert plan.tasks[looked_at].fields["images"] == 1
    assert plan.tasks[looked_at].fields["stream"] == "searched"
    assert plan.tasks[looked_at].prompts == evaluated
    assert {t.passes for t in searches if t.plugin == "unlearndiffatk"} == {2 * (3 * 2 + 3 * (1 + 2))}
    assert not keys(plan, "attack") & keys(moved, "attack")
    assert {t.prompts for t in transfer.tasks.values() if t.kind == "attack"} == {()}
    assert len({c.budget for c in plan.cells if c.attack == "random_prefix"}) == 3


def test_an_attack_may_have_budgets_of_its_own(planned: Any) -> None:
    """Its cells, its task's key and the start of what follows it; the others have the run's."""
    lora = {"use": "lora", "rank": 2, "alpha": 2, "lr": 0.01}
    own = lora | {"as": "long", "budgets": [3, 9]}
    plan = planned(attacks=["none", lora, own, FEW | {"after": "long", "budgets": [4]}])

    found = {
        a: sorted({c.budget for c in plan.cells if c.attack == a}) for a in ("lora", "long", "long>unlearndiffatk")
    }
    assert found == {"lora": [0, 1, 2], "long": [0, 3, 9], "long>unlearndiffatk": [0, 7]}
    assert keys(planned(attacks=["none", lora]), "attack") < keys(plan, "attack")
    assert keys(planned(attacks=["none", lora | {"budgets": [1, 2]}]), "attack") == keys(
        planned(attacks=["none", lora]), "attack"
    )


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"use": "lora", "budgets": [3, 1]}, "expected rising `budgets:`"),
        ({"use": "lora", "budgets": []}, "expected rising `budgets:`"),
        ({"use": "lora", "budgets": 5}, "expected rising `budgets:`"),
        ({"use": "img2img", "budgets": [10]}, "expected no `budgets:` of 'img2img'"),
        ({"use": "paraphrase", "budgets": [10]}, "expected no `budgets:` of 'paraphrase'"),
    ],
)
def test_budgets_that_cannot_be_meant_are_refused(planned: Any, entry: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        planned(attacks=["none", entry])
