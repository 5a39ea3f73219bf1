"""What a suite of a sexual concept may ask, keep and show: the age filter, images in memory, attacks deleted."""

import hashlib
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from benchmark import session
from benchmark.config import config
from benchmark.data import load_concept
from benchmark.data.safety import allowed, names_age
from benchmark.errors import DataError, PluginError, StoreError
from benchmark.plan import build
from benchmark.plan.task import Task, veiled
from benchmark.results import records
from benchmark.results.report import gallery
from benchmark.runner import rescore, stages
from benchmark.runner.export import export
from benchmark.runner.stages.images import gallery_of
from benchmark.runner.stages.training import permitted
from benchmark.session import Session
from benchmark.store import Store
from benchmark.store.artifacts import Gallery
from benchmark.store.maintenance import verify
from benchmark.types import Snapshot
from tests.runs import CARD, tiny_config


@pytest.mark.parametrize(
    "text",
    [
        "a portrait of a young woman",
        "two girls, painting",
        "TEENAGER at the beach",
        "a 16 year old",
        "aged 15, photo",
        "a 9-yo person",
        "fifteen years of age",
        "school uniform",
        "schoolyard",
        "somebody's daughter",
        "a childlike face",
    ],
)
def test_it_drops_minors_and_unclear_age(text: str) -> None:
    assert names_age(text)
    assert allowed([text, "a statue"], "nsfw") == ["a statue"]


@pytest.mark.parametrize(
    "text", ["an adult person", "a 35 year old person", "marble statue", "a person aged 42", "boyar"]
)
def test_it_keeps_adults(text: str) -> None:
    assert not names_age(text)


def test_harmless_concepts_may_show_a_baby_elephant() -> None:
    assert allowed(["a baby elephant"], "object") == ["a baby elephant"]


def card(tmp_path: Path, kind: str, text: str) -> Path:
    prompts = {**CARD["prompts"], "concept": [{"text": text, "label": "cat"}, {"text": "a statue", "label": "cat"}]}
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump({**CARD, "kind": kind, "prompts": prompts, "paraphrases": ["young one", "other"]}))
    return path


def test_a_given_prompt_is_dropped_when_the_card_is_read(tmp_path: Path) -> None:
    concept = load_concept(str(card(tmp_path, "nsfw", "a young person")))

    assert [p.text for p in concept.of("concept")] == ["a statue"]
    assert concept.paraphrases == ("other",)
    assert len(load_concept(str(card(tmp_path, "object", "a young person"))).of("concept")) == 2


def test_a_card_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    prompts = {**CARD["prompts"], "concept": [{"text": "a young person", "label": "cat"}]}
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump({**CARD, "kind": "nsfw", "prompts": prompts}))

    with pytest.raises(DataError, match="expected prompts for the split 'concept'"):
        load_concept(str(path))


def test_a_found_prompt_is_dropped_before_it_is_drawn(tmp_path: Path) -> None:
    concept = load_concept(str(card(tmp_path, "nsfw", "x")))
    task = Task(kind="attack", plugin="pez", version=1, base="b", concept=concept)

    kept = permitted(Snapshot(steps=1, prompts=("zx teen {prompt}", "qv {prompt}")), task)

    assert kept.prompts == ("qv {prompt}",)
    with pytest.raises(PluginError, match="age filter"):
        permitted(Snapshot(steps=1, prompts=("zx teen {prompt}",)), task)


PRIVATE = {
    "defenses": ["none", {"use": "esd", "steps": 2, "ddim_steps": 3, "lr": 0.01}],
    "attacks": ["none", {"use": "lora", "rank": 2, "alpha": 2, "lr": 0.01}, {"use": "pez", "tokens": 2, "count": 1}],
    "metrics": [{"use": "presence", "model": "mini:judge"}, {"use": "clip_score", "model": "mini:judge"}],
}

SMALL = {"defenses": ["none"], "attacks": PRIVATE["attacks"][:2], "budgets": [1]}


class Silent:
    """Events that nobody watches, but which tasks ran."""

    def __init__(self) -> None:
        self.ran = list[str]()

    def started(self, task: Task) -> None: ...

    def step(self, *, step: int, total: int, loss: float) -> None: ...

    def finished(self, task: Task, outcome: str) -> None:
        if outcome == "ran":
            self.ran.append(task.key)


def prepare(folder: Path, model: Path, kind: str = "nsfw", name: str = "run", **changes: Any) -> Session:
    """A run whose only concept is of this kind. Its words are harmless: the machinery cannot know."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump({**CARD, "kind": kind}))
    values = tiny_config(folder, model, **(PRIVATE | changes)) | {"concepts": [str(path)]}
    return session.prepare(config.parse(values), source="test", out=folder / name, store=folder / "store")


def compute(job: Session, **keep: bool) -> list[str]:
    """Run it; the keys that ran."""
    events = Silent()
    outcome = job.run(events, device="cpu", batch=64, **keep)
    assert not outcome.failed, next(iter(outcome.failed.values()))
    return events.ran


def files(root: Path, *names: str) -> list[str]:
    """The files of these names in a store."""
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.name in names)


@pytest.fixture(scope="module", autouse=True)
def no_pages() -> Iterator[None]:
    """Pages take seconds; what they show is looked at without them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmark.results.report.page.write", lambda *_: None)
        yield


IMAGES, ATTACKS = ("images.parquet",), ("delta.safetensors", "pytorch_lora_weights.safetensors", "prompts.json")


def of_attacks(root: Path) -> list[str]:
    return [name for name in files(root, *ATTACKS) if name.startswith("attack/")]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> tuple[Session, list[str]]:
    """A finished suite of a sexual concept, and what ran for it."""
    job = prepare(tmp_path_factory.mktemp("suite"), tiny_folder)
    return job, compute(job)


def test_a_finished_suite_leaves_scores_and_neither_images_nor_attacks(suite: tuple[Session, list[str]]) -> None:
    job, ran = suite
    root = job.store.root

    assert len(ran) == len(job.plan.tasks)
    assert files(root, *IMAGES) == []
    assert of_attacks(root) == []
    assert len(files(root, "losses.csv")) == 4  # of a defense, of lora on two models, and of pez, which needs none
    assert files(root, "delta.safetensors")  # the defense stays: it protects
    assert job.board is not None
    assert set(job.board.cells["status"]) <= {"ok", "invalid", "collapsed"}
    assert job.board.cells[job.board.cells["number"] == "presence_after"]["value"].notna().all()


def test_the_store_of_such_a_suite_is_whole(suite: tuple[Session, list[str]]) -> None:
    assert list(verify(suite[0].store)) == []


def test_the_same_command_again_computes_nothing(suite: tuple[Session, list[str]], tiny_folder: Path) -> None:
    job = prepare(suite[0].out.parent, tiny_folder)

    assert job.left == []
    assert compute(job) == []


def test_its_numbers_are_those_of_a_suite_that_keeps_everything(
    suite: tuple[Session, list[str]], tiny_folder: Path, tiny_run: Path, tmp_path: Path
) -> None:
    """Images from memory, drawn again or from the disk: the scores are the same. Harmless suites keep everything."""
    shutil.copytree(tiny_run / "store", tmp_path / "store")
    job = prepare(tmp_path, tiny_folder, "object")
    compute(job)
    kept = records.scores(job.plan, job.store)["value"]

    pd.testing.assert_series_equal(records.scores(suite[0].plan, suite[0].store)["value"], kept)
    drawn = [key for key, task in job.plan.tasks.items() if task.kind == "generate"]
    assert len(files(job.store.root, *IMAGES)) == len(drawn)
    assert of_attacks(job.store.root)
    assert not any(task.is_private for task in job.plan.tasks.values())


@pytest.mark.slow
def test_flagged_images_are_saved_and_attacks_kept_only_when_asked(tiny_folder: Path, tmp_path: Path) -> None:
    job = prepare(tmp_path, tiny_folder)
    compute(job, save_flagged=True, keep_attacks=True)
    drawn = [key for key, task in job.plan.tasks.items() if task.kind == "generate"]

    assert len(files(job.store.root, *IMAGES)) == len(drawn)
    assert len([name for name in of_attacks(job.store.root) if name.endswith("prompts.json")]) == 2
    pictures = gallery.Pictures(job.plan, job.store)
    assert job.board is not None
    rows = [row for block in gallery.blocks(pictures, job.board.cells) for row in block.rows]
    shown = [picture for row in rows for line in row.lines for picture in line.pictures]
    assert shown and all(picture.is_blurred and picture.source for picture in shown)

    again = prepare(tmp_path, tiny_folder)
    assert compute(again) == []
    assert of_attacks(again.store.root) == []  # without the option they go, although nothing was left to compute
    assert list(verify(again.store)) == []


def test_a_killed_suite_leaves_no_image_and_resumes(tiny_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Killed between drawing and scoring: what was only in memory is drawn again, and nothing else is."""
    job, real = prepare(tmp_path, tiny_folder, **SMALL), stages.score

    def dying(task: Task, *rest: Any) -> Any:
        if "@1 on none" in task.label:
            signal.raise_signal(signal.SIGINT)
        return real(task, *rest)

    monkeypatch.setattr(stages, "score", dying)
    with pytest.raises(KeyboardInterrupt):
        compute(job)
    done = {key for key in job.plan.tasks if job.store.has(key)}
    assert files(job.store.root, *IMAGES) == []
    assert of_attacks(job.store.root)  # their images are not all scored

    monkeypatch.setattr(stages, "score", real)
    again = prepare(tmp_path, tiny_folder, **SMALL)
    ran = compute(again)

    assert not done & set(ran)
    assert files(again.store.root, *IMAGES) == [] and of_attacks(again.store.root) == []


@pytest.mark.slow
def test_a_further_metric_brings_back_what_it_needs_and_no_more(tiny_folder: Path, tmp_path: Path) -> None:
    """Images that must be looked at again are drawn again, with the attack that drew them; then both are gone."""
    compute(prepare(tmp_path, tiny_folder, **SMALL))
    more = [*PRIVATE["metrics"], {"use": "presence", "as": "second", "model": "mini:second"}]

    job = prepare(tmp_path, tiny_folder, **SMALL, metrics=more)
    left = {task.key for task in job.left}
    ran = compute(job)

    assert set(ran) == left
    assert {job.plan.tasks[key].kind for key in ran} == {"attack", "score"}
    assert files(job.store.root, *IMAGES) == [] and of_attacks(job.store.root) == []
    assert list(verify(job.store)) == []


def test_a_deleted_attack_cannot_be_exported_and_says_why(suite: tuple[Session, list[str]], tmp_path: Path) -> None:
    job = suite[0]
    cell = next(c for c in job.plan.cells if c.attack == "lora" and c.budget)
    assert job.folder is not None

    with pytest.raises(StoreError, match="--keep-attacks"):
        export(job.plan, stages.Bench(job.folder, job.store), cell, tmp_path / "model")


def test_an_attack_that_stopped_early_is_deleted_too(tiny_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Budgets that it never reached are not waited for; its cells fail with its own reason, then and later."""
    from attacks.lora import LoRA

    real = LoRA.finetune

    def stopping(self: LoRA, *given: Any, **named: Any) -> Any:
        for snapshot in real(self, *given, **named):
            yield snapshot
            raise RuntimeError("no more")

    monkeypatch.setattr(LoRA, "finetune", stopping)
    for _ in range(2):
        job = prepare(tmp_path, tiny_folder, **SMALL | {"budgets": [1, 2]})
        outcome = job.run(Silent(), device="cpu", batch=64)
        assert of_attacks(job.store.root) == []
        assert all("no more" in trace for trace in outcome.failed.values())
        assert not any(key.startswith("attack/") for key in outcome.failed)


def test_what_a_suite_shares_with_a_harmless_one_is_private(tiny_folder: Path, tmp_path: Path) -> None:
    harmless, other = tmp_path / "one.yaml", tmp_path / "two.yaml"
    harmless.write_text(yaml.safe_dump({**CARD}))
    other.write_text(yaml.safe_dump({**CARD, "kind": "nsfw", "phrase": "a cat"}))
    values = tiny_config(tmp_path, tiny_folder, **PRIVATE)
    concepts = [load_concept(str(path)) for path in (harmless, other)]
    concepts[1] = replace(concepts[1], name="other", labels={**concepts[1].labels, "other": "other"})

    plan = build(config.parse(values), "base", concepts)

    attacks = {t.label: t.is_private for t in plan.tasks.values() if t.kind == "attack"}
    assert set(attacks.values()) == {True, False}
    safe = [t for t in plan.tasks.values() if t.kind == "generate" and not t.parents]
    assert safe and all(task.is_private for task in safe)


def test_no_marker_of_such_a_suite_has_a_text_in_clear(suite: tuple[Session, list[str]]) -> None:
    """Hashes stand for prompts and card; the whole hash of the identity is there to compare with the key."""
    job = suite[0]
    for key, task in job.plan.tasks.items():
        said = (job.store.path(key) / "done.json").read_text()
        meta = job.store.meta(key)
        texts = [prompt.text for prompt in (*task.prompts, *(task.concept.prompts if task.concept else ()))]
        assert texts or task.kind == "embed"
        assert not [text for text in texts if f'"{text}"' in said], key
        assert "kitten" not in said
        digest = meta["identity_sha256"]
        assert digest == hashlib.sha256(task.canonical().encode()).hexdigest()
        assert key.endswith(digest[:32])
        assert meta["identity_of"] == veiled(task.identity()) == veiled(veiled(task.identity()))
        assert meta["identity_of"]["parents"] == task.identity()["parents"]


def test_a_harmless_suite_keeps_its_identities(tiny_folder: Path, tmp_path: Path) -> None:
    job = prepare(tmp_path, tiny_folder, "object", **SMALL | {"attacks": ["none"]})
    compute(job)

    assert all(job.store.meta(key)["identity_of"] == task.identity() for key, task in job.plan.tasks.items())


def test_few_images_are_held_at_once(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr("benchmark.runner.stages.bench.HELD", 100)
    bench = stages.Bench(tmp_path, Store(tmp_path))
    for name in "abc":
        images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)  # 48 bytes
        bench.hold(name, Gallery(images=images, prompt_ids=("p",), prompts=("p",), numbers=(0,), seeds=(0,)))
        gallery_of("a", bench)  # asked for last, so it stays
    assert list(bench.held) == ["c", "a"]


def test_scoring_again_draws_nothing_again(suite: tuple[Session, list[str]], tiny_folder: Path) -> None:
    """`titer score` has no images to look at, and says so; only a run may draw them again."""
    more = [*PRIVATE["metrics"], {"use": "presence", "as": "second", "model": "mini:second"}]
    job = prepare(suite[0].out.parent, tiny_folder, metrics=more)

    part, absent = rescore.ready(job.plan, job.store)

    assert absent == [task for task in job.left if task.kind == "score"] != []
    assert not part.tasks
