"""Every solver draws what diffusers' own pipeline draws with that scheduler, and begins in the middle as it should."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

from benchmark.diffusion import Model, sample
from benchmark.model import load
from benchmark.model.generate import start_noise
from benchmark.solvers import CLASSES, Solver, predictions
from tests.pipelines import BETAS

TEXTS = ["a cat", "dog! on a mat"]
STEPS, GUIDANCE = 7, 3.0


@pytest.fixture(scope="module")
def model(tiny_folders: dict[str, Path]) -> Model:
    return load(tiny_folders["sd1"])


def pipeline(folder: Path, prediction: str) -> Any:
    """diffusers' own, with Stable Diffusion's schedule."""
    found = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    found.scheduler = DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction
    )
    found.set_progress_bar_config(disable=True)
    return found


def drawn(model: Model, solver: Solver, steps: int = STEPS, start: int = 0, z: Any = None) -> torch.Tensor:
    """Latents of two texts."""
    solved = model.__class__(**{**vars(model), "solver": solver})
    z = start_noise([5, 6], model.latent_shape) if z is None else z
    text, null = model.encode_text(TEXTS), model.encode_text(["", ""])
    return sample(solved, z, text, null, steps=steps, guidance=GUIDANCE, start=start)


@pytest.mark.parametrize(("base", "prediction"), [("sd1", "epsilon"), ("sd21", "v_prediction")])
def test_solvers_draw_what_the_stock_pipeline_draws(tiny_folders: dict[str, Path], base: str, prediction: str) -> None:
    model, pipe = load(tiny_folders[base]), pipeline(tiny_folders[base], prediction)
    z_T, plain = start_noise([5, 6], model.latent_shape), drawn(model, "ddim")
    settings = {
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "height": 8,
        "width": 8,
        "output_type": "latent",
    }
    config = pipe.scheduler.config
    for solver in CLASSES if prediction == "epsilon" else ("lms", "euler", "dpmpp"):  # diffusers' PLMS combines v
        own = {"skip_prk_steps": True} if solver == "pndm" else {}
        pipe.scheduler = getattr(diffusers, CLASSES[solver]).from_config(config, **own)

        theirs = pipe(TEXTS, latents=z_T, **settings).images

        torch.testing.assert_close(drawn(model, solver), theirs, atol=2e-4, rtol=2e-4, msg=solver)
        assert not torch.allclose(theirs, plain, atol=1e-3)


@pytest.mark.parametrize(("solver", "other"), [("pndm", "ddim"), ("lms", "euler"), ("dpmpp", "euler")])
def test_solvers_agree_where_steps_are_many(model: Model, solver: Solver, other: Solver) -> None:
    """One differential equation: with short steps all come to where others with the same times come."""
    assert apart(drawn(model, solver, 30), drawn(model, other, 30)) < 0.1


@pytest.mark.parametrize("solver", CLASSES)
def test_a_solver_can_begin_in_the_middle(model: Model, solver: Solver) -> None:
    """As an attack does that hands a trajectory over: it comes to where DDIM comes from there."""
    middle = start_noise([7, 8], model.latent_shape)
    wanted = drawn(model, "ddim", 30, 18, middle)
    assert (
        apart(drawn(model, solver, 30, 18, middle), wanted) < 0.1 < apart(drawn(model, solver, 30, 9, middle), wanted)
    )


def apart(z: torch.Tensor, wanted: torch.Tensor) -> float:
    """How far latents are from others, as a share of their size."""
    return float((z - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("solver", ["ddim", *CLASSES])
def test_as_many_predictions_as_the_plan_counts(model: Model, solver: Solver) -> None:
    for steps in (1, STEPS):
        before = model.meter.unet_forward
        drawn(model, solver, steps)
        assert model.meter.unet_forward - before == 2 * 2 * predictions(solver, steps)
