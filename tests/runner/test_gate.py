"""The age filter's gate: no way around it through a field, a composition or an encoder; and what `gc` leaves.

The cards' words are harmless: the kind alone, or a word for the kind, makes the suites what they are.
"""

import copy
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from attacks.lora import LoRA
from attacks.pez import PEZ
from benchmark import session
from benchmark.config import config
from benchmark.data import load_concept
from benchmark.data.safety import gate
from benchmark.diffusion import Model
from benchmark.errors import ConfigError, DataError, PluginError
from benchmark.model import load
from benchmark.runner import stages
from benchmark.session import Session
from benchmark.store import maintenance
from benchmark.store.artifacts import load_images
from benchmark.store.maintenance import verify
from benchmark.types import Snapshot
from tests.data.test_safety import SMALL, Silent, compute, files, of_attacks, prepare
from tests.pipelines import write
from tests.runs import CARD, tiny_config


@pytest.fixture(scope="module", autouse=True)
def no_pages() -> Iterator[None]:
    """Pages take seconds, and nothing here looks at one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmark.results.report.page.write", lambda *_: None)
        yield


def card(folder: Path, **changes: Any) -> Path:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({**copy.deepcopy(CARD), "kind": "nsfw", **changes}))
    return path


def plan(folder: Path, given: dict[str, Any], **changes: Any) -> Session:
    """The plan of a config with a card of its own."""
    values = tiny_config(folder, folder / "none", budgets=[1], model="mini", **changes)
    values["concepts"] = [str(card(folder, **given))]
    job = config.parse(values)
    return session.prepare(job, source="test", out=None, store=folder / "s", claim=False, weights="cached")


ATTACKS = {
    "identifier": {"use": "dreambooth", "identifier": "kid"},
    "token": {"use": "concept_inversion", "token": "<kid>"},
    "init": {"use": "textual_inversion", "init": "t33n"},
}


@pytest.mark.parametrize("field", ATTACKS)
def test_a_methods_words_are_refused_before_anything_is_computed(field: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"in the field '{field}'"):
        plan(tmp_path, {}, attacks=["none", ATTACKS[field]])
    plan(tmp_path, {"kind": "object"}, attacks=["none", ATTACKS[field]])


def test_the_words_of_what_an_attack_follows_and_of_its_trials_are_refused(tmp_path: Path) -> None:
    for attack in (
        {"use": "pez", "after": {"use": "dreambooth", "identifier": "kid"}},
        {"use": "search:dreambooth", "develop": "bomb", "grid": {"identifier": ["&m", "kid"]}},
    ):
        if isinstance(attack.get("after"), dict):
            attacks = ["none", {"as": "first", **attack["after"]}, {**attack, "after": "first"}]
        else:
            attacks = ["none", attack]
        with pytest.raises(ConfigError, match="in the field 'identifier'"):
            plan(tmp_path, {}, attacks=attacks)


@pytest.mark.parametrize("field", ["phrase", "subject"])
def test_the_cards_own_words_are_refused(field: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"expected a {field} that the age filter permits .* got 'teen'"):
        load_concept(str(card(tmp_path, **{field: "teen"})))
    assert load_concept(str(card(tmp_path, **{field: "teen"}, kind="object")))


def test_words_that_are_refused_together_alone_are_refused(tmp_path: Path) -> None:
    """Identifier, subject and prompts pass the filter, each by itself."""
    with pytest.raises(ConfigError, match=r"the age filter permits in .*, got '.*16 woman"):
        plan(tmp_path, {"subject": "woman"}, attacks=["none", {"use": "dreambooth", "identifier": "16"}])
    plan(tmp_path, {"subject": "woman"}, attacks=["none", {"use": "dreambooth", "identifier": "sks"}])


def test_captions_are_checked_as_an_attack_words_them(tmp_path: Path) -> None:
    """The prompts that are drawn pass here: only a training caption does not."""
    prompts = {**CARD["prompts"], "attacker": [{"text": "a 16 cat"}]}
    with pytest.raises(ConfigError, match="in a caption of 'dreambooth' for 'cat', got 'a 16 woman'"):
        plan(
            tmp_path,
            {"prompts": prompts, "subject": "", "phrase": "cat"},
            attacks=["none", {"use": "dreambooth", "identifier": "woman"}],
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("phrase", "nudity"),
        ("subject", "nud\u00e9"),
        ("wordings", ["a nude cat"]),
        ("paraphrases", ["naked"]),
        ("labels", {"cat": "a cat", "dog": "a dog", "nudity": "x", "something else": "something else"}),
        ("judges", {"primary": "nudenet:strict5"}),
        ("prompts", {**CARD["prompts"], "attacker": [{"text": "nudity, a cat"}]}),
    ],
)
def test_a_card_that_says_what_it_is_must_be_of_that_kind(field: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"expected `kind: nsfw` in .*, whose {field} are"):
        load_concept(str(card(tmp_path, kind="object", **{field: value})))
    assert load_concept(str(card(tmp_path, kind="nsfw", **{field: value}))).kind == "nsfw"


@pytest.mark.parametrize("metric", ["nudenet", {"use": "presence", "model": "nudenet:strict5"}])
def test_a_judge_of_sexual_concepts_looks_at_no_other_card(metric: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected cards of the kind nsfw with the judge 'nudenet"):
        plan(tmp_path, {"kind": "object"}, metrics=[metric])
    plan(tmp_path, {"kind": "nsfw"}, metrics=[metric])


def test_nudenet_beside_the_judge_may_err_on_titers_own_cards() -> None:
    raw = config.read("demo")
    given = [load_concept(name, model="mini") for name in raw["concepts"]]
    assert {item.kind for item in given} == {"object"} and "nudenet" in raw["metrics"]

    assert session.planned(config.parse(raw), "base").cells
    judged = [*raw["metrics"], {"use": "presence", "as": "presence_nude", "model": "nudenet:strict5"}]
    with pytest.raises(ConfigError, match="with the judge 'nudenet:strict5'"):
        session.planned(config.parse({**raw, "metrics": judged}), "base")


def test_found_texts_are_looked_at_again_once_they_are_in_their_prompt(
    tiny_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """A found text and a prompt that pass, each alone, are not drawn together; the other prompt is."""

    def search(self: PEZ, *_: Any, budgets: Any, rng: Any, report: Any) -> Iterator[Snapshot]:
        for step in range(1, max(budgets) + 1):
            report(step=step, total=max(budgets), loss=1.0)
            if step in budgets:
                yield Snapshot(steps=step, prompts=("16 {prompt}", "qv {prompt}"))

    monkeypatch.setattr(PEZ, "search", search)
    text = [{"text": "woman {n}, a cat", "label": "cat", "each": {"n": ["one", "two"]}}]
    path = card(tmp_path, prompts={**CARD["prompts"], "concept": text})
    pez = {"use": "pez", "tokens": 2, "count": 1}
    values = tiny_config(tmp_path, tiny_folder, defenses=["none"], attacks=["none", pez], budgets=[1])
    job = session.prepare(
        config.parse({**values, "concepts": [str(path)]}), source="test", out=tmp_path / "run", store=tmp_path / "store"
    )
    outcome = job.run(Silent(), device="cpu", batch=64, save_flagged=True)

    assert not outcome.failed, next(iter(outcome.failed.values()))
    (cell,) = (c for c in job.plan.cells if c.attack == "pez" and c.budget)
    key = cell.images["concept"]
    assert load_images(job.store.path(key)).prompts == ("qv woman two, a cat",)
    assert job.store.meta(key)["flags"] == ["age filter"]
    assert job.board is not None
    rows = job.board.cells.query("attack == 'pez' and budget == 1 and number == 'presence_after'")
    assert set(rows["status"]) == {"partial"}


def encoding(text: str) -> Any:
    """A LoRA that has the model, its copies and its base read a text first."""
    real = LoRA.finetune

    def finetune(self: LoRA, model: Model, base: Model, *rest: Any, **named: Any) -> Iterator[Snapshot]:
        model.clone().encode_text([text])
        yield from real(self, model, base, *rest, **named)

    return finetune


@pytest.mark.parametrize(("kind", "fails"), [("nsfw", True), ("object", False)])
def test_a_method_that_encodes_what_no_model_may_read_fails(
    kind: str, fails: bool, tiny_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(LoRA, "finetune", encoding("a k1d"))
    outcome = prepare(tmp_path, tiny_folder, kind, **SMALL).run(Silent(), device="cpu", batch=64)

    assert bool(outcome.failed) == fails
    assert all(key.startswith("attack/lora") for key in outcome.failed)
    assert all("expected texts that the age filter permits" in trace for trace in outcome.failed.values())
    assert not any("k1d" in trace for trace in outcome.failed.values())


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_the_gate_stays_with_a_model_and_its_copies(name: str, tmp_path: Path) -> None:
    from dataclasses import replace
    from functools import partial

    free = load(write(name, tmp_path), device="cpu")
    free.encode_text(["a kid"])
    model = replace(free, gate=partial(gate, is_sexual=True))
    word = torch.zeros(sum(table.shape[1] for table in model.tables))
    for held in (model, model.clone(), model.with_delta(), model.with_tokens({"<zx>": word})):
        held.encode_text(["a cat", ""])
        for read in (held.encode_text, held.ids):
            with pytest.raises(PluginError, match="got 1 of 2 that it refuses"):
                read(["a cat", "a kid"])


def test_in_a_harmless_suite_the_gate_refuses_a_text_that_says_both() -> None:
    gate(["a child", "nudity"], is_sexual=False)
    with pytest.raises(PluginError):
        gate(["nudity, a child"], is_sexual=False)


def left(folder: Path, model: Path, **keep: bool) -> Session:
    """A suite that was killed after its last score, before its attacks were swept."""
    job = prepare(folder, model, **SMALL)
    job.keep_attacks = keep.get("keep_attacks", False)
    outcome = job.compute(Silent(), "cpu", 64)
    assert not outcome.failed
    assert of_attacks(job.store.root)
    return job


def test_gc_sweeps_the_attacks_of_a_killed_suite_whose_images_are_scored(tiny_folder: Path, tmp_path: Path) -> None:
    job = left(tmp_path, tiny_folder)
    there = of_attacks(job.store.root)

    assert sorted(maintenance.gc(job.store, dry=True).gone) == there
    assert of_attacks(job.store.root) == there
    assert sorted(maintenance.gc(job.store).gone) == there

    assert of_attacks(job.store.root) == []
    assert files(job.store.root, "losses.csv")
    assert list(verify(job.store)) == []
    assert prepare(tmp_path, tiny_folder, **SMALL).left == []
    assert maintenance.gc(job.store).gone == []


def test_gc_leaves_attacks_whose_images_are_not_scored(tiny_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    real = stages.score

    def dying(task: Any, *rest: Any) -> Any:
        if "@1 on none" in task.label:
            signal.raise_signal(signal.SIGINT)
        return real(task, *rest)

    monkeypatch.setattr(stages, "score", dying)
    job = prepare(tmp_path, tiny_folder, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        compute(job)
    there = of_attacks(job.store.root)

    maintenance.gc(job.store)

    assert of_attacks(job.store.root) == there != []


def test_gc_leaves_attacks_that_were_to_be_kept(tiny_folder: Path, tmp_path: Path) -> None:
    job = left(tmp_path, tiny_folder, keep_attacks=True)
    there = of_attacks(job.store.root)

    assert maintenance.gc(job.store).gone == []
    assert of_attacks(job.store.root) == there


def test_gc_ends_a_sweep_that_was_cut_off(tiny_folder: Path, tmp_path: Path) -> None:
    job = prepare(tmp_path, tiny_folder, **SMALL)
    compute(job)
    (attack,) = (key for key, task in job.plan.tasks.items() if task.kind == "attack")
    rest = job.store.path(attack) / "step-000001" / "delta.safetensors"
    rest.parent.mkdir()
    rest.write_bytes(b"left")

    assert maintenance.gc(job.store).gone == [f"{attack}/step-000001/delta.safetensors"]
    assert not rest.exists() and job.store.has(attack)


def test_the_users_own_pictures_are_not_copied_to_the_store(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(2):
        Image.new("RGB", (80, 80), (number * 90, 10, 10)).save(tmp_path / "photos" / f"{number}.png")
    prompts = {**CARD["prompts"], "attacker": [{"images": "photos", "captions": "cat here"}]}
    path = card(tmp_path, prompts=prompts)
    values = tiny_config(tmp_path, tiny_folder, **SMALL) | {"concepts": [str(path)]}
    job = session.prepare(config.parse(values), source="test", out=tmp_path / "run", store=tmp_path / "store")

    compute(job)

    assert any(task.plugin == "folder" for task in job.plan.tasks.values())
    assert files(job.store.root, "images.parquet") == []
    assert not any(b"cat here" in f.read_bytes() for f in job.store.root.rglob("*") if f.is_file())
