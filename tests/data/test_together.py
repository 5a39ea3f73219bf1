"""Several concepts erased at once: one defense for all, attacks and judges for each."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from benchmark.config import config
from benchmark.data import load_concept
from benchmark.data.together import load, together
from benchmark.errors import DataError
from benchmark.plan import Plan, build
from benchmark.types import Concept, Prompt
from defenses.esd import ESD
from defenses.mace import MACE
from defenses.negative_prompt import NegativePrompt
from defenses.text_rows import wanted
from tests.runs import CARD, run, tiny_config

NAMES = ("cigarette", "bomb", "knife")


@pytest.fixture(scope="module")
def three() -> Concept:
    return load(NAMES, "mini")


def card(name: str, **prompts: Any) -> dict[str, Any]:
    """The tiny card in other words."""
    labels = {name: f"an emoji of a {name}", "tree": "an emoji of a tree", "something else": "something else"}
    plain = {
        "concept": [{"text": f"a {name} {{n}}", "label": name, "each": {"n": ["one", "two"]}}],
        "retained": [{"text": "a tree {n}", "label": "tree", "each": {"n": ["one", "two"]}}],
        "attacker": [{"text": f"{name}, {{n}}", "each": {"n": ["one", "two"]}}],
        "defender": [{"text": f"{{n}} {name}", "each": {"n": ["one", "two"]}}],
    }
    return {**CARD, "name": name, "phrase": name, "labels": labels, "prompts": {**CARD["prompts"], **plain, **prompts}}


def planned(folder: Path, **changes: Any) -> Plan:
    paths = []
    for name in ("cat", "cow", "owl"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(card(name)))
        paths.append(str(folder / f"{name}.yaml"))
    checked = config.parse(tiny_config(folder / "own", Path("model"), **{"concepts": [paths], **changes}))
    return build(checked, "base", [load(item, "mini") for item in checked.raw.concepts])


def test_one_card_for_the_defense_and_one_for_each_attacker(three: Concept) -> None:
    assert three.name == "cigarette+bomb+knife"
    assert three.phrases == tuple(load_concept(name).phrase for name in NAMES)
    assert three.each[0].called == "cigarette (with bomb, knife)"
    assert {p.split for p in three.prompts} <= {"defender", "prior"}
    for one, name in zip(three.each, NAMES, strict=True):
        assert one.of("concept") == load_concept(name).of("concept")
        assert one.labels == load_concept(name).labels


def test_what_is_to_stay_shows_and_names_none_of_the_others(three: Concept) -> None:
    own = load_concept("cigarette")
    assert {"bomb", "knife"} <= {p.label for p in own.of("retained")}

    for one in three.each:
        others = set(NAMES) - {one.name}
        kept = [p for split in ("retained", "cross", "safe", "prior", "benign") for p in one.of(split)]  # type: ignore[arg-type]
        assert kept and not [p for p in kept if p.label in others]
        assert not [
            p for p in kept for phrase in three.phrases if phrase.lower() in p.text.lower() and p.label != one.name
        ]
    assert not [p for p in three.of("prior") for phrase in three.phrases if phrase.lower() in p.text.lower()]


def test_what_does_not_go_together_is_refused() -> None:
    cigarette, style, subject = (load_concept(name) for name in ("cigarette", "contrast", "robot"))

    with pytest.raises(DataError, match="expected at least two different concepts"):
        together([cigarette, cigarette])
    with pytest.raises(DataError, match="expected at least two different concepts"):
        together([cigarette])
    with pytest.raises(DataError, match="expected concepts of one kind"):
        together([cigarette, style])
    with pytest.raises(DataError, match="expected concepts of one scenario"):
        together([cigarette, replace(subject, kind="object")])
    bomb = load_concept("bomb")
    only = tuple(p for p in cigarette.prompts if p.split != "safe")
    with pytest.raises(DataError, match="expected prompts of the split 'safe' of 'cigarette' that name none of"):
        together([replace(cigarette, prompts=(*only, Prompt(text="a bomb and a cat", split="safe"))), bomb])


def test_methods_that_take_several_erase_each_phrase(three: Concept) -> None:
    assert set(three.phrases) <= set(wanted(three, "phrase"))
    assert NegativePrompt().guard(three).text == ", ".join(three.phrases)
    assert ESD().takes_several and MACE(lora_steps=0).takes_several and not MACE(lora_steps=5).takes_several


def test_a_defense_is_trained_once_and_each_concept_is_attacked(tmp_path: Path) -> None:
    plan = planned(tmp_path, attacks=["none", {"use": "lora", "rank": 2}], budgets=[1])
    defends = [task for task in plan.tasks.values() if task.kind == "defend"]
    attacks = [task for task in plan.tasks.values() if task.kind == "attack" and "defense" in task.parents]

    assert len(defends) == 1 and defends[0].concept is not None and defends[0].concept.phrases == ("cat", "cow", "owl")
    assert sorted(task.concept.name for task in attacks if task.concept) == ["cat", "cow", "owl"]
    assert {task.parents["defense"] for task in attacks} == {defends[0].key}
    assert {cell.concept.called for cell in plan.cells} == {
        "cat (with cow, owl)",
        "cow (with cat, owl)",
        "owl (with cat, cow)",
    }


def test_the_control_of_one_of_several_is_that_of_the_concept_alone(tmp_path: Path) -> None:
    at = [str(tmp_path / f"{name}.yaml") for name in ("cat", "cow", "owl")]
    plan = planned(tmp_path, concepts=[at[0], at], defenses=["none"], attacks=["none"])
    alone, together = (c for c in plan.cells if c.concept.name == "cat")

    assert alone.concept.called == "cat" and together.concept.called == "cat (with cow, owl)"
    assert alone.images["concept"] == together.images["concept"]


def test_a_defense_that_erases_one_at_a_time_is_left_out_with_the_reason(tmp_path: Path) -> None:
    gift = {"use": "gift", "steps": 1}
    plan = planned(tmp_path, defenses=["none", "uce", gift, {"use": "imma", "after": "uce"}])

    assert {cell.defense for cell in plan.cells} == {"none", "uce"}
    reasons = {(s.defense, s.reason) for s in plan.skipped}
    assert reasons == {("gift", "gift erases one concept at a time"), ("uce+imma", "imma erases one concept at a time")}
    assert {s.concept for s in plan.skipped} == {c.concept.called for c in plan.cells}


def test_a_guard_on_a_defense_of_several_leaves_that_defense(tmp_path: Path) -> None:
    plan = planned(tmp_path, defenses=["none", "uce", "uce+negative_prompt"], attacks=["none"])
    at = {(c.concept.name, c.defense, c.attack): c.images["concept"] for c in plan.cells}

    for name in ("cat", "cow", "owl"):
        assert at[name, "uce+negative_prompt", "removal"] == at[name, "uce", "none"]


def test_the_prompts_that_a_defense_reads_are_in_its_key_and_no_others(tmp_path: Path) -> None:
    def key(method: dict[str, Any], split: str) -> str:
        more = {split: [{"text": "owl {n}", "each": {"n": ["three", "four"]}}]} if split else {}
        at = tmp_path / "cat.yaml"
        at.write_text(yaml.safe_dump(card("cat", **more)))
        checked = config.parse(
            tiny_config(tmp_path / "own", Path("m"), concepts=[str(at)], defenses=[method], attacks=["none"])
        )
        plan = build(checked, "base", [load_concept(str(at))])
        return next(k for k, task in plan.tasks.items() if task.kind == "defend")

    for use in ("uce", "rece", "cure"):
        erase, keep = ({"use": use, "erase": "defender", "keep": "none"}, {"use": use, "keep": "prior"})
        if use != "uce":
            erase["keep"] = "prior"
        assert key(erase, "") != key(erase, "defender"), use
        assert key(keep, "") != key(keep, "prior"), use
        assert key(keep, "") == key(keep, "defender"), use
    assert key({"use": "uce"}, "") == key({"use": "uce"}, "prior") == key({"use": "uce"}, "defender")
    assert key({"use": "speed"}, "") != key({"use": "speed"}, "prior")
    mace = {"use": "mace", "lora_steps": 0, "texts": "defender"}
    assert key(mace, "") != key(mace, "defender")


@pytest.mark.slow
def test_three_concepts_are_erased_at_once(tmp_path: Path, tiny_folder: Path) -> None:
    names = ["cat", "cow", "owl"]
    for name in names:
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(card(name)))
    paths = [str(tmp_path / f"{name}.yaml") for name in names]
    esd = {"use": "esd", "steps": 3, "ddim_steps": 3, "lr": 0.01}
    attacks = ["none", {"use": "lora", "rank": 2, "alpha": 2, "lr": 0.01}]
    made = {"defenses": ["none", esd, "uce", "negative_prompt"], "attacks": attacks, "budgets": [1]}
    result = run(tmp_path, tiny_folder, concepts=[paths], **made)

    assert result.exit_code == 0, result.output
    board = pd.read_csv(tmp_path / "out" / "leaderboard.csv").set_index("defense")
    assert set(board["concepts"]) == {3}
    cells = pd.read_csv(tmp_path / "out" / "cells.csv")
    before = cells[(cells["number"] == "presence_before") & (cells["attack"] == "none")]
    for defense, part in before.groupby("defense"):
        assert board.loc[defense, "presence_before"] == pytest.approx(part["value"].mean())
    report = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "cat (with cow, owl)" in report
