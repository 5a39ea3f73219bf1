"""A matrix on every family, from the command to folders and files that diffusers loads."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from typer.testing import CliRunner

from benchmark import session
from benchmark.cli import app
from benchmark.config import config
from benchmark.plan import Cell
from benchmark.runner.export import export, find_cell
from benchmark.runner.stages import Bench
from tests.runs import write_config

NAMES = (pytest.param("sd21", marks=pytest.mark.slow), "sdxl")  # the second has all that the first has, and more
WORD = "<concept>"
ATTACKS = [
    "none",
    {"use": "lora", "rank": 2, "alpha": 2, "lr": 0.01},
    {"use": "full_finetune", "lr": 0.001},
    {"use": "textual_inversion", "lr": 0.5, "batch": 2},
    {"use": "unlearndiffatk", "count": 2},
]
runner = CliRunner()


@pytest.fixture(scope="module", params=NAMES)
def ran(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_folders: dict[str, Path]
) -> tuple[session.Session, Path]:
    """A finished matrix of one defense and an attack of each kind, run by the command."""
    root = tmp_path_factory.mktemp(request.param)
    settings = {
        "attacks": ATTACKS,
        "budgets": [1],
        "metrics": [{"use": "black"}],
        "prompts": {"concept": 1, "retained": 1, "safe": 1, "attacker": 2},
    }
    source = write_config(root, tiny_folders[request.param], **settings)
    words = ["run", str(source), "--store", str(root / "store"), "--out", str(root / "out"), "--device", "cpu"]
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.output
    job = session.prepare(
        config.load(str(source)), source=str(source), out=None, store=root / "store", claim=False, weights="cached"
    )
    return job, source


def written(ran: tuple[session.Session, Path], name: str, folder: Path, *, attack_only: bool = False) -> Cell:
    """Export the cell of that name."""
    job, _ = ran
    assert job.folder is not None
    cell = find_cell(job.plan, name)
    export(job.plan, Bench(job.folder, job.store), cell, folder, attack_only=attack_only)
    return cell


def image(pipe: DiffusionPipeline, text: str) -> torch.Tensor:
    """What a pipeline draws from fixed noise."""
    pipe.set_progress_bar_config(disable=True)
    z_T = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    settings = {"num_inference_steps": 3, "height": 8, "width": 8, "output_type": "pt"}
    return pipe(text, latents=z_T, **settings).images


def test_every_kind_of_method_runs_on_every_family(ran: tuple[session.Session, Path]) -> None:
    job, _ = ran

    assert job.left == []
    assert {cell.kind for cell in job.plan.cells} == {"none", "weights", "prompts"}
    costs = [job.store.meta(key)["cost"] for key, task in job.plan.tasks.items() if task.kind in ("defend", "attack")]
    assert sum(cost["unet_forward"] > 0 for cost in costs) >= 5


@pytest.mark.parametrize("attack", ["none@0", "full_finetune@1", "textual_inversion@1"])
def test_an_exported_cell_has_the_weights_that_drew_its_images(
    ran: tuple[session.Session, Path], tmp_path: Path, attack: str
) -> None:
    job, _ = ran
    cell = written(ran, f"cat/esd/{attack}#0", tmp_path / "model")

    pipe = DiffusionPipeline.from_pretrained(tmp_path / "model", local_files_only=True)

    assert job.folder is not None
    model = Bench(job.folder, job.store).model_for(job.plan.tasks[cell.images["concept"]])
    for name, part in model.parts.items():
        theirs = getattr(pipe, name).state_dict()
        assert all(torch.equal(theirs[key], value) for key, value in part.state_dict().items()), name
    assert len(pipe.tokenizer) == len(model.tokenizer) == 56 + (attack == "textual_inversion@1")


def test_an_attacks_adapters_load_on_the_defended_model(ran: tuple[session.Session, Path], tmp_path: Path) -> None:
    """And draw what the exported whole draws."""
    for name, cell, alone in (("defended", "cat/esd", False), ("whole", "cat/esd/lora@1#0", False)):
        written(ran, cell, tmp_path / name, attack_only=alone)
    written(ran, "cat/esd/lora@1#0", tmp_path / "attack", attack_only=True)
    pipe, whole = (DiffusionPipeline.from_pretrained(tmp_path / name) for name in ("defended", "whole"))
    before = image(pipe, "a cat")

    pipe.load_lora_weights(tmp_path / "attack")

    assert [file.name for file in (tmp_path / "attack").iterdir()] == ["pytorch_lora_weights.safetensors"]
    torch.testing.assert_close(image(pipe, "a cat"), image(whole, "a cat"), atol=1e-5, rtol=1e-4)
    assert not torch.equal(image(pipe, "a cat"), before)


def test_a_learned_word_loads_into_each_text_encoder(ran: tuple[session.Session, Path], tmp_path: Path) -> None:
    written(ran, "cat/esd", tmp_path / "defended")
    cell = written(ran, "cat/esd/textual_inversion@1#0", tmp_path / "whole")
    written(ran, "cat/esd/textual_inversion@1#0", tmp_path / "attack", attack_only=True)
    pipe, whole = (DiffusionPipeline.from_pretrained(tmp_path / name) for name in ("defended", "whole"))

    pipe.load_textual_inversion(tmp_path / "attack", weight_name="learned_embeds.safetensors")
    if hasattr(pipe, "text_encoder_2"):
        second = {"text_encoder": pipe.text_encoder_2, "tokenizer": pipe.tokenizer_2}
        pipe.load_textual_inversion(tmp_path / "attack", weight_name="learned_embeds_2.safetensors", **second)

    for name in ("text_encoder", "text_encoder_2"):
        if hasattr(pipe, name):
            ours, theirs = (getattr(p, name).get_input_embeddings().weight for p in (pipe, whole))
            assert torch.equal(ours, theirs)
    torch.testing.assert_close(image(pipe, f"a {WORD}"), image(whole, f"a {WORD}"))
    job, _ = ran
    assert job.folder is not None
    text = Bench(job.folder, job.store).model_for(job.plan.tasks[cell.images["concept"]]).encode_text([f"a {WORD}"])
    settings = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    h, _, *pooled = pipe.encode_prompt(f"a {WORD}", **settings)
    torch.testing.assert_close(text[:, : h.shape[1]], h)
    for p in pooled[:1]:
        torch.testing.assert_close(text[:, -1, : p.shape[1]], p)  # where the text ends, not at the new word


def test_found_prompts_are_written_and_whole_weights_are_no_file_of_an_attack(
    ran: tuple[session.Session, Path], tmp_path: Path
) -> None:
    _, source = ran
    at = ["--store", str(source.parent / "store"), "--attack-only"]
    cells = ("cat/esd/unlearndiffatk@1#0", "cat/esd/full_finetune@1#0", "cat/esd")

    found, whole, none = (
        runner.invoke(app, ["export", str(source), cell, "--to", str(tmp_path / str(i)), *at])
        for i, cell in enumerate(cells)
    )

    assert found.exit_code == 0, found.output
    assert [file.name for file in (tmp_path / "0").iterdir()] == ["prompts.json"]
    assert (whole.exit_code, none.exit_code) == (2, 2)
    assert "got whole weights: export the model" in whole.stderr
    assert "got none of them: export the model" in none.stderr
