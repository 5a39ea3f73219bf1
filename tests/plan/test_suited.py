"""What does not apply to a family is refused with the plan, in one line that names each entry and why."""

from typing import Any

import pytest
from typer.testing import CliRunner

from benchmark.cli import app
from benchmark.config import config
from benchmark.config.entries import Entry
from benchmark.config.imported import Imported
from benchmark.data import load_concept
from benchmark.errors import PlanError
from benchmark.model.families import families, named
from benchmark.plan.suited import check_family, required
from benchmark.types import Concept, Requirement
from tests.runs import write_config

GIVEN = {"name": "x", "model": "mini", "concepts": ["cigarette"], "metrics": ["psnr"], "budgets": [5]}


def refused(family: str, **given: Any) -> str:
    """What is said of a config on a family; empty if it may run."""
    read = config.parse({**GIVEN, "defenses": ["none"], "attacks": ["none"], **given})
    found = list[str]()
    try:
        check_family(read, [load_concept("cigarette", "mini")], family, named(family).lacks)
    except PlanError as error:
        found = str(error).splitlines()
    assert len(found) < 2
    return "".join(found)


WORDS = (
    "textual_inversion",
    "concept_inversion",
    "unlearndiffatk",
    "p4d",
    "pez",
    "ring_a_bell",
    "mma_text",
    "random_prefix",
)
REST = ("lora", "full_finetune", "dreambooth", "xattn", "recaption", "benign_finetune", "img2img")


@pytest.mark.parametrize(
    ("family", "words", "readers"), [("sd", 1, 1), ("sdxl", 1, 1), ("sd3", 1, 1), ("flux", 0, 1), ("flux2", 0, 0)]
)
def test_words_are_searched_where_there_are_some(family: str, words: int, readers: int) -> None:
    swap = {"use": "component_swap", "preset": "text_encoder"}
    said = refused(family, attacks=[*WORDS, *REST, swap, "paraphrase"])

    assert [name for name in WORDS if name in said] == ([] if words else list(WORDS))
    assert ("component_swap (readers: " in said) == (not readers)
    assert not any(name in said for name in (*REST, "paraphrase"))


@pytest.mark.parametrize("family", ["sd3", "flux", "flux2"])
def test_what_needs_a_noise_schedule_or_a_unet_is_no_flows(family: str) -> None:
    pndm = {"use": "esd", "preset": "fast"}
    old = {"use": "esd", "as": "old", "scope": "u-old"}
    said = refused(family, defenses=[pndm, old, {"use": "imma", "after": "esd"}, "gift", {"use": "esd", "as": "plain"}])

    assert "esd, esd+imma (schedule: it is a flow and has no noise schedule); old (u-old: it is a transformer)" in said
    assert "gift" not in said and "plain" not in said
    assert "float16" in refused(family, precision="float16")
    assert not refused(family, precision="bfloat16")
    assert "scheduler that applies" in refused(family, sampling={"scheduler": "dpmpp"})
    assert not refused(family, sampling={"scheduler": "ddim"}) and not refused("sd", sampling={"scheduler": "dpmpp"})


@pytest.mark.parametrize("family", ["sd3", "flux", "flux2"])
def test_maps_of_an_attention_to_the_text_alone_are_no_flows(family: str) -> None:
    """The second stage of MACE and Receler's mask, and only where they are asked for."""
    without = [{"use": "mace", "lora_steps": 0}, {"use": "receler", "reg": 0}]

    said = refused(family, defenses=["mace", "receler", {"use": "receler", "as": "free", "reg": 0}])

    assert "mace, receler (apart: text and image attend together)" in said and "free" not in said
    assert not refused(family, defenses=without)
    assert not refused("sd", defenses=["mace", "receler"])


def test_a_method_is_asked_with_its_fields_and_what_it_is_made_of() -> None:
    aegis = {"use": "aegis", "scope": "x"}
    assert "words" in refused("flux", defenses=[aegis])
    assert not refused("sd3", defenses=[aegis])
    assert "u-old" in refused("sd3", defenses=["aegis"])  # its habit for objects
    assert not refused("flux", defenses=["imma"])
    assert "words" in refused("flux", defenses=[{"use": "imma", "preset": "textual-inversion"}])
    assert "lora>unlearndiffatk (words" in refused("flux", attacks=["lora>unlearndiffatk"])
    tuned = {"use": "search:textual_inversion", "develop": "bomb", "grid": {"lr": [1e-3, 1e-2]}}
    assert "search:textual_inversion (words" in refused("flux", attacks=[tuned])
    teacher = {"subject": "robot", "attack": "textual_inversion", "judge": "similarity"}
    assert "textual_inversion (words" in refused("flux", adaptation=teacher)


def test_each_family_says_only_what_methods_can_require() -> None:
    known = {*Requirement.__args__, "float16"}  # type: ignore[attr-defined]
    for family in families().values():
        assert set(family.lacks) <= known, family.name
        assert family.is_flow == ("schedule" in family.lacks)
        assert all(family.lacks.values())


@pytest.mark.parametrize("model", ["flux-dev", "black-forest-labs/FLUX.2-klein-base-4B", "sd3-medium"])
def test_the_command_refuses_before_weights_are_here(model: str, tmp_path: Any) -> None:
    source = write_config(
        tmp_path, "mini", model=model, defenses=["none"], attacks=["none", "p4d"], precision="float16"
    )

    found = CliRunner().invoke(app, ["plan", str(source)])

    assert found.exit_code == 2, found.output
    assert "float16: a flow transformer overflows" in found.output.replace("\n", " ")


def test_imported_weights_require_nothing(concept: Concept) -> None:
    entry = Entry(use="imported", label="official", method=Imported(changes={}))

    assert list(required(entry, concept)) == []
