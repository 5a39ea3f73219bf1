"""Guards: what they do reaches whoever draws or searches with the model, and nobody who has its weights."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from benchmark.cli import app
from benchmark.config import config
from benchmark.data import load_concept
from benchmark.diffusion import Course, Model, sample
from benchmark.errors import ConfigError
from benchmark.guard import Guard, guarded
from benchmark.model.families import named
from benchmark.plan import build
from benchmark.plan.task import GUIDANCE
from benchmark.store.artifacts import load_guard, load_images
from defenses.negative_prompt import Away, NegativePrompt
from tests.pipelines import stock
from tests.runs import run, tiny_config

NEGATIVE = ["none", "negative_prompt"]


@dataclass(frozen=True, kw_only=True)
class Idle(Guard):
    """Does nothing."""


@dataclass(frozen=True, kw_only=True)
class Steps(Guard):
    """Predicts how far it has come."""

    def course(self, model: Model, text: Tensor, null: Tensor, scale: float) -> Course:
        return lambda z, t, done: (z, done.reshape(-1, 1, 1, 1).expand_as(z))


@dataclass(frozen=True, kw_only=True)
class Blind(Guard):
    """Reads the same in every text, and shows black."""

    def read(self, model: Model, texts: Sequence[str]) -> Tensor:
        return model.encode_text(["dog"] * len(texts))

    def finish(self, images: Tensor) -> Tensor:
        return torch.zeros_like(images)


def noise(model: Model, count: int = 2) -> Tensor:
    return torch.randn(count, *model.latent_shape, generator=torch.Generator().manual_seed(0))


def test_behind_an_idle_guard_nothing_changes(model: Model) -> None:
    z, t, behind = noise(model), torch.tensor([7, 800]), guarded(model, Idle(), 3.0)
    text, null = model.encode_text(["cat", "dog"]), model.encode_text(["", ""])

    assert torch.equal(behind.encode_text(["cat", "dog"]), text)
    assert torch.equal(behind.guided(z, t, text, null, 2.0), model.guided(z, t, text, null, 2.0))
    torch.testing.assert_close(behind.predict(z, t, text), model.predict(z, t, text), atol=1e-5, rtol=1e-4)
    settings = {"steps": 3, "guidance": 2.0}
    assert torch.equal(sample(behind, z, text, null, **settings), sample(model, z, text, null, **settings))
    assert torch.equal(behind.decode(z), model.decode(z))
    assert behind.parts.keys() == model.parts.keys()


def test_a_guarded_prediction_is_what_a_plain_model_would_have_to_predict_for_the_same_step(model: Model) -> None:
    z, t, w = noise(model), torch.tensor(300), 3.0
    text, null = model.encode_text(["cat", "dog"]), model.encode_text(["", ""])
    behind = guarded(model, Away(text="cat"), w)

    needed, of_null = behind.predict(z, t, text), model.predict(z, t, null)

    guided = of_null + w * (needed - of_null)
    avoided = model.encode_text(["cat", "cat"])
    torch.testing.assert_close(guided, model.guided(z, t, text, avoided, w), atol=1e-5, rtol=1e-4)


def test_the_guard_is_told_how_far_the_trajectory_has_come(model: Model) -> None:
    behind = guarded(model, Steps(), 3.0)
    text = model.encode_text(["cat"])
    seen = []

    class Seen(type(behind)):  # type: ignore[misc]
        def step(self, z: Tensor, predicted: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
            seen.append(float(predicted.flatten()[0]))
            return z

    own = {f.name: getattr(behind, f.name) for f in fields(behind)}
    sample(Seen(**own), noise(model, 1), text, text, steps=4, guidance=3.0)

    assert seen == [0.0, 0.25, 0.5, 0.75]
    late, early = behind.guided(noise(model), torch.tensor([1, 999]), text, text, 3.0)[:, 0, 0, 0].tolist()
    assert (early, late) == (0.0, pytest.approx(0.98))


def test_what_the_guard_reads_and_shows_is_what_the_model_reads_and_shows(model: Model) -> None:
    behind = guarded(model, Blind(), 3.0)

    assert torch.equal(behind.encode_text(["cat"]), model.encode_text(["dog"]))
    assert not behind.decode(noise(model)).any()


def test_a_copy_of_a_guarded_model_is_guarded_and_a_second_guard_takes_the_place_of_the_first(model: Model) -> None:
    behind = guarded(guarded(model, Blind(), 3.0), Idle(), 2.0)

    assert torch.equal(behind.encode_text(["cat"]), model.encode_text(["cat"]))
    assert replace(behind, precision="bfloat16").plain.precision == "bfloat16"  # type: ignore[attr-defined]


def test_a_negative_prompt_is_that_of_the_pipeline_of_diffusers(model: Model) -> None:
    pipe = stock(model)
    z = noise(model)
    theirs = pipe(
        ["a dog", "a key"],
        negative_prompt=["cat", "cat"],
        latents=z.clone(),
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="latent",
    ).images

    behind = guarded(model, Away(text="cat"), 3.0)
    text, null = behind.encode_text(["a dog", "a key"]), behind.encode_text(["", ""])
    ours = sample(behind, z, text, null, steps=4, guidance=3.0)

    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_negative_prompt_has_the_phrase_the_wordings_or_the_users_words() -> None:
    card = replace(load_concept("cigarette"), phrase="cigarette", wordings=("smoke",))

    assert NegativePrompt().guard(card).text == "cigarette"
    assert NegativePrompt(wordings=True).guard(card).text == "cigarette, smoke"
    assert NegativePrompt(words=("a", "b")).guard(card).text == "a, b"


def planned(tmp_path: Path, **changes: Any) -> Any:
    raw = config.parse(tiny_config(tmp_path, Path("model"), **changes))
    return build(raw, "base", [load_concept(name) for name in raw.raw.concepts])


def test_a_family_with_distilled_guidance_has_no_negative_prompt() -> None:
    assert NegativePrompt().requires(load_concept("cigarette")) == ("null",)
    assert "distilled" in named("flux").lacks["null"]
    assert "null" not in named("sd3").lacks


def test_who_trains_weights_does_so_without_the_guard_and_who_searches_prompts_meets_it(tmp_path: Path) -> None:
    attacks = ["none", {"use": "lora", "rank": 2}, {"use": "unlearndiffatk", "count": 1}, "pez"]
    plan = planned(tmp_path, defenses=NEGATIVE, attacks=attacks, budgets=[1])
    at = {(c.defense, c.attack, c.budget): plan.tasks[c.images["concept"]] for c in plan.cells}

    def ran(defense: str, attack: str) -> Any:
        return plan.tasks[at[defense, attack, 1].parents["attack"]]

    assert ran("none", "lora").key == ran("negative_prompt", "lora").key
    assert at["none", "lora", 1].key != at["negative_prompt", "lora", 1].key
    assert "defense" in at["negative_prompt", "lora", 1].parents
    assert ran("negative_prompt", "unlearndiffatk").fields[GUIDANCE] == 2.0
    assert "defense" in ran("negative_prompt", "unlearndiffatk").parents
    assert GUIDANCE not in ran("none", "unlearndiffatk").fields
    assert ran("none", "pez").key == ran("negative_prompt", "pez").key  # it reads the text encoder alone


def test_a_guard_may_stand_on_a_trained_defense_and_removed_leaves_it(tmp_path: Path) -> None:
    esd = {"use": "esd", "steps": 2, "ddim_steps": 3}
    plan = planned(tmp_path, defenses=["none", esd, "esd+negative_prompt"])
    at = {(c.defense, c.attack): c for c in plan.cells if c.budget in (0, 1)}

    assert at["esd+negative_prompt", "removal"].images["concept"] == at["esd", "none"].images["concept"]
    assert ("esd", "removal") not in at
    with pytest.raises(ConfigError, match="expected at most one guard"):
        planned(tmp_path, defenses=["none", "negative_prompt+negative_prompt"])
    with pytest.raises(ConfigError, match="expected at most one guard, and as the last part"):
        planned(tmp_path, defenses=["none", "negative_prompt+uce"])


@pytest.mark.slow
def test_a_run_with_a_guard_and_with_parts_that_can_be_put_back(tmp_path: Path, tiny_folder: Path) -> None:
    patronus = {"use": "patronus", "as": "decoder", "parts": "decoder", "perceptual": "pixels", "features": 2}
    patronus |= {"d1_steps": 1, "d2_steps": 1, "d1_batch": 1, "d2_batch": 1, "d2_images": 2, "d2_latents": 2}
    patronus |= {"ddim_steps": 2, "latent_batch": 1, "d1_lr": 0.1}
    gate = {"use": "spm_gate", "steps": 2, "ddim_steps": 1, "lr": 0.1}
    defenses = [*NEGATIVE, patronus, {"use": "uce", "lam": 1e-3}, "uce+negative_prompt", gate]
    attacks = ["none", {"use": "lora", "rank": 2, "alpha": 2, "lr": 0.01}, {"use": "unlearndiffatk", "count": 1}]
    result = run(tmp_path, tiny_folder, defenses=defenses, attacks=attacks, budgets=[1])

    assert result.exit_code == 0, result.output
    board = pd.read_csv(tmp_path / "out" / "leaderboard.csv").set_index("defense")
    assert board["removable"].to_dict() == {
        "none": pytest.approx(float("nan"), nan_ok=True),
        "negative_prompt": "guard",
        "decoder": "vae",
        "uce": "keys_values",
        "uce+negative_prompt": "guard",
        "spm_gate": "guard",
    }
    before = board["presence_before"]
    for name in ("negative_prompt", "decoder", "uce", "spm_gate"):
        assert board.loc[name, "presence_removed"] == before["none"], name
    assert board.loc["uce+negative_prompt", "presence_removed"] == before["uce"]
    cells = pd.read_csv(tmp_path / "out" / "cells.csv")
    assert set(cells.loc[cells["attack"] == "removal", "status"]) <= {"ok", "invalid"}
    matrix = pd.read_csv(tmp_path / "out" / "matrix.csv")
    assert "removal" not in matrix and "removal" not in set(board["worst_attack"].astype(str).str.partition("@")[0])
    assert not board["flags"].fillna("").str.contains("zero delta").any()
    records = pd.read_csv(tmp_path / "out" / "records.csv")
    told = records[records["kind"].isin(["generate", "defend"])]
    assert (told["passes"].fillna(0) == told["planned_passes"]).all()
    drawn = records[records["kind"] == "generate"].set_index("label")["key"]
    base = load_images(tmp_path / "store" / drawn["concept images of none@0 on none, cat"]).images.float()
    gated = load_images(tmp_path / "store" / drawn["concept images of none@0 on spm_gate, cat"]).images.float()
    assert (gated - base).abs().max() > 1
    for name in ("decoder", "uce"):
        put_back = load_images(tmp_path / "store" / drawn[f"concept images of removal on {name}, cat"]).images.float()
        defended = load_images(tmp_path / "store" / drawn[f"concept images of none@0 on {name}, cat"]).images.float()
        assert (put_back - base).abs().max() <= 1 < (defended - base).abs().max(), name

    words = ["export", str(tmp_path / "tiny.yaml"), "cat/uce+negative_prompt", "--to", str(tmp_path / "exported")]
    exported = CliRunner().invoke(app, [*words, "--store", str(tmp_path / "store")])
    assert exported.exit_code == 0, exported.output
    assert load_guard(tmp_path / "exported") == ("negative_prompt", {"text": "cat"}, {})

    spm = ["export", str(tmp_path / "tiny.yaml"), "cat/spm_gate", "--to", str(tmp_path / "beside")]
    assert CliRunner().invoke(app, [*spm, "--store", str(tmp_path / "store")]).exit_code == 0
    defense, _, modules = load_guard(tmp_path / "beside") or ("", {}, {})
    assert defense == "spm_gate" and any(t.any() for name, t in modules.items() if name.endswith(".up"))

    again = run(
        tmp_path / "again", tiny_folder, store=tmp_path / "store", defenses=defenses, attacks=attacks, budgets=[1]
    )
    assert "ran 0" in again.output
