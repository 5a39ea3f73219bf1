"""The presets and cards for real models: they plan anywhere, cost what they say, and have the papers' settings."""

import re
import socket
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from attacks.recaption import descriptions
from benchmark import session
from benchmark.cli import app
from benchmark.config import config
from benchmark.data import cards as data
from benchmark.data import load_concept
from benchmark.session import Session
from leaderboards import reported

SHIPPED = ("sd14-objects", "sd14-styles", "sdxl-objects")
FLOWS = ("sd3-objects", "flux-objects", "flux2-objects")
ALL = (*SHIPPED, "sd14-nudity")
ALIKE = ("demo", "mini", "claims", "personalize", "sd14-objects", "sd14-styles", "sd14-nudity")
OBJECTS, STYLES = ("church", "garbage_truck", "parachute", "tench"), ("monet", "rembrandt", "van_gogh")
HOURS = re.compile(
    r"([\d,]+) (?:U-Net|transformer) samples / \((\d+) a second x 3600\) = (\d+) hours on one H100, "
    r"(\d+) on one A100 at (\d+)"
)


@pytest.fixture(scope="module", autouse=True)
def nowhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No weights, no network."""

    def connect(*_: Any) -> None:
        raise AssertionError("a plan opened a connection")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
        patch.setattr(socket.socket, "connect", connect)
        yield


@cache
def planned(name: str) -> Session:
    return session.prepare(
        config.load(name), source=name, out=None, store=Path("nowhere"), claim=False, weights="optional"
    )


def head(name: str) -> str:
    """The comment at the top of a preset, in one line."""
    lines = (config.PRESETS / f"{name}.yaml").read_text().split("\nname:")[0].splitlines()
    return " ".join(" ".join(lines).replace("#", " ").split())


@cache
def card(name: str) -> Any:
    return load_concept(name, "sd14")


def test_the_command_plans_without_weights_and_network() -> None:
    found = CliRunner().invoke(app, ["plan", "sdxl-objects"])

    assert found.exit_code == 0, found.output
    assert "no weights here" in found.output
    assert "1322 cells" in found.output


@pytest.mark.parametrize("name", [*SHIPPED, *FLOWS])
def test_every_attack_makes_sense_for_every_card(name: str) -> None:
    plan = planned(name).plan

    assert plan.skipped == []
    assert plan.base.startswith("unresolved:")
    assert {cell.concept.name for cell in plan.cells} == set(plan.config.raw.concepts)


@pytest.mark.parametrize("name", [*ALL, *FLOWS])
def test_the_head_tells_what_a_run_takes(name: str) -> None:
    text = head(name)

    assert f"titer run {name}" in text
    assert all(f" {word} " in text for word in ("command", "hours", "disk", "memory", "beside"))
    assert "estimate" in text and "assumed" in text


@pytest.mark.parametrize("name", [*SHIPPED, *FLOWS])
def test_the_head_counts_as_the_plan_does(name: str) -> None:
    plan, found = planned(name).plan, HOURS.search(head(name))
    assert found
    samples, fast, hours, slow_hours, slow = (int(number.replace(",", "")) for number in found.groups())
    images = sum(len(t.prompts) * t.fields["images"] for t in plan.tasks.values() if t.kind == "generate")

    assert samples == plan.passes
    cost = planned(name).assumed
    assert cost is not None
    assert (fast, hours) == (cost["samples_a_second"], round(cost["hours"]))
    assert hours == round(samples / fast / 3600)
    assert slow_hours == round(samples / slow / 3600)
    assert f"{images:,} images" in head(name)


def test_the_opt_in_preset_costs_what_it_says_for_cards_of_that_size(tmp_path: Path) -> None:
    given = config.read("sd14-nudity")
    metrics = [m for m in given["metrics"] if not isinstance(m, dict)]  # the others judge such suites alone
    values = given | {"concepts": ["church"], "metrics": metrics}
    job = session.prepare(
        config.parse(values), source="x", out=None, store=tmp_path / "s", claim=False, weights="optional"
    )

    assert f"{job.plan.passes:,} U-Net samples / (120 a second x 3600) = {round(job.plan.passes / 432_000)}" in head(
        "sd14-nudity"
    )


@pytest.mark.parametrize("name", [*ALL, *FLOWS])
def test_settings_are_the_papers_but_for_what_the_file_says(name: str) -> None:
    """Every field has its default, which is its paper's, or that of a named preset; the exceptions are these."""
    scale = {"patronus", "decoder_finetune", "concept_inversion"}  # batches for larger images
    scopes = {"esd"} if name != "sd14-styles" else set()
    scopes |= {"aegis"} if name == "sd3-objects" else set()
    changed = set()
    listed = config.load(name)
    for entry in (*listed.defenses, *listed.attacks):
        presets = getattr(type(entry.method), "presets", {})
        known = [{f.name: f.default for f in fields(entry.method)} | dict(p) for p in ({}, *presets.values())]
        own = {f.name: getattr(entry.method, f.name) for f in fields(entry.method)}
        changed |= {entry.use} if own not in known else set()

    assert changed <= scale | scopes
    assert "concept_inversion" not in changed or name in ("sdxl-objects", "sd3-objects")


@pytest.mark.parametrize("name", ALL)
def test_they_can_be_laid_beside_what_is_reported(name: str) -> None:
    """Labels are those of the reported rows: ESD and AEGIS under prompts, IMMA on ESD under LoRA."""
    listed, theirs = config.load(name), reported.read()
    defenses, attacks = {d.label for d in listed.defenses}, {a.label for a in listed.attacks}

    assert {"esd", "aegis"} <= defenses & set(theirs["defense"])
    assert ("esd+imma" in defenses & set(theirs["defense"])) == (name in ("sd14-styles", "sdxl-objects"))
    ours = {"lora", "recaption", "unlearndiffatk", "p4d", "ring_a_bell", "benign_finetune", "full_finetune"}
    assert ours <= attacks & set(theirs["attack"])


@pytest.mark.parametrize("name", ["sd14-objects", "sd14-styles", "sd14-nudity"])
def test_imma_stands_on_the_cross_attention_and_meets_each_of_two_adaptations(name: str) -> None:
    """Its authors erase with ESD-x, and immunise for LoRA and DreamBooth apart."""
    found = [entry for entry in config.load(name).defenses if entry.use == "imma"]

    assert {entry.method.adaptation for entry in found} == {"lora", "dreambooth"}
    assert {entry.after.method.scope for entry in found if entry.after} == {"x"}


@pytest.mark.parametrize(
    "name", ["demo", "mini", "claims", "personalize", "sd14-objects", "sd14-styles", "sd14-nudity"]
)
def test_who_is_compared_spends_alike(name: str) -> None:
    """Updates and batch of ESD and AEGIS; ascents of IMMA, every other of its steps, and of GIFT, one a round."""
    methods = [entry.method for entry in config.load(name).defenses]
    erasers = {(m.steps, m.batch) for m in methods if type(m).__name__ in ("ESD", "AEGIS")}
    ascents = {m.steps * m.outer // (m.inner + m.outer) for m in methods if type(m).__name__ == "IMMA"}
    ascents |= {m.steps * m.n_i for m in methods if type(m).__name__ == "GIFT"}

    assert len(erasers) == (name != "personalize")
    assert len(ascents) == 1


@pytest.mark.parametrize("name", ["demo", "mini", "claims", *ALL])
def test_patronus_divides_its_steps_as_the_release(name: str) -> None:
    """Three of D2 for each of D1, as many of U2 as of U1, and ten batches of latents but on the embedded model."""
    found = [e.method for e in config.load(name).defenses if e.use == "patronus" and e.method.hardened]

    assert found
    for m in found:
        assert m.d2_steps == 3 * m.d1_steps
        assert m.parts == "decoder" or m.u2_steps == m.u1_steps
        assert m.parts == "decoder" or m.d2_latents == 10 * m.latent_batch


def test_sdxl_has_the_settings_of_esds_script_for_it() -> None:
    (method,) = [entry.method for entry in config.load("sdxl-objects").defenses if entry.label == "esd"]

    assert method == type(method)(**type(method).presets["sdxl"])


@pytest.mark.parametrize("name", FLOWS)
def test_a_flows_head_has_its_licence_and_its_memory(name: str) -> None:
    text, cost = head(name), planned(name).assumed
    assert cost is not None
    assert " licence " in text
    assert f" {cost['gib']:.0f} GiB for the model" in text
    assert f" {cost['gib_full'] - cost['gib']:.0f} " in text


def test_the_plan_shows_hours_and_memory_of_a_preset() -> None:
    found = CliRunner().invoke(app, ["plan", "flux2-objects"])

    assert found.exit_code == 0, found.output
    text = " ".join(found.output.split())
    assert "no weights here" in text
    assert "about 119 hours on one H100 at 6 samples a second" in text
    assert "15 GiB for the model, 88 to train its whole denoiser" in text
    assert "assumed" in text


def test_few_steps_are_drawn_by_the_sampler_that_is_right_for_them() -> None:
    for name in config.presets():
        for entry in config.load(name).defenses if name != "sd14-nudity" else ():
            if getattr(entry.method, "ddim_steps", 50) < 50 and hasattr(entry.method, "sampler"):
                assert entry.method.sampler == "ddim", (name, entry.label)


def test_reported_concepts_have_cards() -> None:
    assert {"church", "parachute", "garbage_truck", "tench", "van_gogh"} <= set(reported.read()["concept"])
    assert set(data.cards("real")) >= {"garbage_truck", "parachute", "tench", *STYLES}


@pytest.mark.parametrize("name", [*OBJECTS, *STYLES])
def test_a_card_asks_for_its_concept_and_for_nothing_else(name: str) -> None:
    concept = card(name)
    phrase = concept.phrase.lower()

    assert len(concept.of("concept")) == 50
    for split in ("concept", "attacker", "defender"):
        assert all(phrase in prompt.text.lower() for prompt in concept.of(split)), split
    for split in ("retained", "safe", "benign", "prior"):
        assert not any(phrase in prompt.text.lower() for prompt in concept.of(split)), split
    assert {p.label for p in concept.of("retained")} == set(concept.labels) - {concept.name, "something else"}
    assert len(descriptions(concept)) == len(concept.paraphrases) >= 4
    assert len({prompt.text for prompt in concept.prompts}) == len(concept.prompts)


@pytest.mark.parametrize("name", [*OBJECTS, *STYLES])
def test_safe_prompts_name_no_label(name: str) -> None:
    words = [label.replace("_", " ").lower() for label in card(name).labels if label != "something else"]

    assert not any(word in prompt.text.lower() for word in words for prompt in card(name).of("safe"))


@pytest.mark.parametrize("name", OBJECTS)
def test_labels_of_objects_are_classes_of_imagenet(name: str) -> None:
    from torchvision.models import ResNet50_Weights

    categories = ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    concept = card(name)

    assert set(concept.classes) == set(concept.labels) - {"something else"}
    assert len(concept.classes) == 10  # Imagenette
    for label, (number,) in concept.classes.items():
        assert categories[number].lower() == label.replace("_", " ").lower()


@pytest.mark.parametrize("name", [*OBJECTS, *STYLES])
def test_the_judges_are_two_and_know_the_labels(name: str) -> None:
    from metrics.judges import find

    concept = card(name)
    first, second = (find(concept.judges[place]) for place in ("primary", "second"))

    assert first.identity() != second.identity()
    assert not first.binary and not second.binary


def test_cards_share_what_the_base_draws_for_all() -> None:
    """The same safe and benign texts are the same tasks: drawn once for all concepts."""
    for split in ("safe", "benign"):
        assert len({tuple(p.text for p in card(name).of(split)) for name in (*OBJECTS, *STYLES)}) == 1


def test_no_card_of_a_sexual_concept_ships() -> None:
    files = [file for folder in data.FOLDERS.values() for file in folder.glob("*.yaml")]

    assert len(files) > 30
    assert not any(yaml.safe_load(file.read_text())["kind"] == "nsfw" for file in files)


def test_the_opt_in_preset_asks_for_the_users_own_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("plan", "run"):
        found = CliRunner().invoke(app, [command, "sd14-nudity"])
        assert found.exit_code == 2
        (line,) = found.stderr.strip().splitlines()
        assert "expected a concept card of your own at nudity.yaml, got no file" in line


def test_the_opt_in_preset_plans_with_a_card_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with harmless words: what is drawn and attacked is private, and one judge that knows it is enough."""
    monkeypatch.chdir(tmp_path)
    prompts = {
        split: [{"text": f"{split}: nudity {{n}}", "each": {"n": ["a", "b"]}}]
        for split in ("concept", "safe", "attacker", "defender", "benign", "prior")
    }
    prompts["concept"][0]["label"] = "nudity"
    labels = {"nudity": "nudity", "something else": "something else"}
    values = {"name": "nudity", "phrase": "nudity", "kind": "nsfw", "labels": labels, "prompts": prompts}
    Path("nudity.yaml").write_text(yaml.safe_dump(values | {"judges": {"primary": "nudenet:strict5"}}))

    job = session.prepare(
        config.load("sd14-nudity"), source="x", out=None, store=tmp_path / "s", claim=False, weights="optional"
    )

    tasks = job.plan.tasks.values()
    assert all(task.is_private for task in tasks if task.kind in ("attack", "generate"))
    assert [skip.attack for skip in job.plan.skipped].count("unlearndiffatk") == 0
    assert ("presence", "concept") in job.plan.cells[0].scores


@pytest.mark.parametrize("name", ["demo", "mini"])
def test_the_embedded_models_boards_measure_all_four_numbers(name: str) -> None:
    """CLIP score, FID, NudeNet rate and, from presence, the reactivation rate: none of their columns is empty."""
    labels = {entry.label for entry in config.load(name).metrics}

    assert {"clip_score", "fid", "nudenet", "presence"} <= labels
