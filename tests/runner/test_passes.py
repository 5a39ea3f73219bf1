"""What a run spends is what the plan said: samples through the U-Net, a backward pass counted as two.

ESD and those after it draw at random how far each trajectory goes, and plan its mean: they may be off by half a
trajectory at each step. ResAlign draws its attacks, of which one
trains on a prior too. Everything else is exact.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from attacks.base import Attack, PromptAttack, SamplingAttack, WeightAttack
from benchmark.cli import app
from benchmark.config.registry import find, names
from benchmark.diffusion import Model, sample
from benchmark.kit import conformance
from benchmark.types import Concept, Examples
from tests.runs import write_config

RANDOM = {
    "esd",
    "aegis",
    "erase_anything",
    "sdd",
    "race",
    "spm",
    "spm_gate",
    "stereo",
    "advunlearn",
    "receler",
    "pgu",
} | {"trce"}
STEPS = 12


def spent(model: Model) -> int:
    return model.meter.unet_forward + 2 * model.meter.unet_backward


def attacks(of: type[Attack]) -> list[str]:
    return [name for name in names("attack") if issubclass(find("attack", name), of)]


def small(name: str) -> Any:
    """An attack with few steps."""
    cls = find("attack", name)
    fields = {"population": 4} if issubclass(cls, PromptAttack) else {}
    return conformance.small(cls, {k: v for k, v in fields.items() if k in cls.__dataclass_fields__})


@pytest.mark.parametrize("name", names("defense"))
def test_a_defense_spends_what_it_says(name: str, model: Model, concept: Concept, examples: Examples) -> None:
    method = conformance.small(find("defense", name))
    model = conformance.tiny_flow() if "joint" in method.requires(concept) else model
    before = spent(model)

    conformance.protect(method, model, concept, examples)

    phases = getattr(method, "rounds", 0) + 1
    drawn = method.steps * phases + getattr(method, "warm_steps", 0) if name in RANDOM else 0
    slack = drawn * getattr(method, "batch", 2) * (method.ddim_steps - 1) if drawn else 0
    if name == "resalign":  # DreamBooth at each step, or never
        slack = method.steps * method.attacks * 3 * method.inner_steps * method.batch
    assert abs(spent(model) - before - method.passes()) <= slack


@pytest.mark.parametrize("name", ["esd", "aegis"])
@pytest.mark.slow
def test_a_random_trajectory_is_planned_as_its_mean(name: str, model: Model, concept: Concept) -> None:
    """Over 20 steps the mean length of 0 to 4 guided steps, 4 predictions, is met within three standard errors."""
    method = conformance.small(find("defense", name), {"steps": 20, "batch": 1, "ddim_steps": 5})
    before = spent(model)

    conformance.protect(method, model, concept, conformance.tiny_examples())

    error = 2 * (2 * 20) ** 0.5  # a length has variance 2, and each of its steps two predictions
    assert abs(spent(model) - before - method.passes()) <= 3 * error


@pytest.mark.parametrize("name", attacks(WeightAttack))
def test_a_weight_attack_spends_what_it_says(name: str, model: Model, concept: Concept, examples: Examples) -> None:
    method, before = small(name), spent(model)
    card = replace(concept, paraphrases=("small pet",))

    last = conformance.finetuned(method, model, card, examples, method.budgets([1, 3]), conformance.silent)[-1]

    assert spent(model) - before == method.passes(last.steps)


@pytest.mark.parametrize("name", attacks(PromptAttack))
def test_a_prompt_attack_spends_what_it_says(name: str, model: Model, concept: Concept, examples: Examples) -> None:
    method, before = small(name), spent(model)

    conformance.searched(method, model, concept, examples, [1, 3])

    times = len(concept.of("concept")) if "concept" in method.reads else 1
    assert spent(model) - before == method.passes(3) * times


@pytest.mark.parametrize("name", attacks(SamplingAttack))
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_sampling_attack_spends_what_it_says(name: str, scale: float, model: Model) -> None:
    method = small(name)
    z_T = torch.randn(3, *model.latent_shape, generator=conformance.seeded(3))
    text = model.encode_text(["a cat", "a dog", "a"])
    null = model.encode_text([""]).expand_as(text)
    for budget in (budget for budget in method.budgets([1, 3]) if not method.misfit(budget, STEPS)):
        before = spent(model)

        z, at = method.begin(model, model, z_T, text, null, budget=budget, steps=STEPS, scale=scale)
        sample(model, z, text, null, steps=STEPS, guidance=scale, start=at)

        assert spent(model) - before == 3 * method.trajectory(budget, STEPS) * (1 if scale == 1.0 else 2)


@pytest.mark.slow
def test_the_record_of_a_run_shows_that_it_spent_what_was_planned(tiny_folder: Path, tmp_path: Path) -> None:
    """Without a method that draws its length, to the sample; run.json and each row of records.csv say so."""
    imma = {"use": "imma", "steps": 2, "batch": 1, "lr": 1e-3, "adapt_lr": 1e-3}
    listed = [
        "none",
        {"use": "lora", "rank": 2, "alpha": 2, "lr": 0.01},
        {"use": "unlearndiffatk", "count": 2},
        {"use": "img2img", "skipped": [50]},
        {"use": "diffusion_completion", "handovers": [1]},
    ]
    changes = {"sampling": {"steps": 4, "guidance": 2.0}, "budgets": [1], "metrics": ["black"]}
    config = write_config(tmp_path, tiny_folder, defenses=["none", imma], attacks=listed, **changes)

    done = CliRunner().invoke(
        app, ["run", str(config), "--out", str(tmp_path / "out"), "--store", str(tmp_path / "store"), "--device", "cpu"]
    )

    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert facts["planned_passes"] == facts["spent"]["passes"] > 0
    assert facts["spent"]["passes"] == facts["spent"]["unet_forward"] + 2 * facts["spent"]["unet_backward"]
    import pandas as pd

    rows = pd.read_csv(tmp_path / "out" / "records.csv").dropna(subset="passes")
    assert (rows["passes"] == rows["planned_passes"]).all()
    assert {"defend", "attack", "generate"} == set(rows["kind"])
