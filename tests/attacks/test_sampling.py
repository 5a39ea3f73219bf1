"""Sampling attacks start where they say: on the base's trajectory, or at the base's image, noised."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline
from torch import Tensor

from attacks.base import SamplingAttack
from attacks.diffusion_completion import DiffusionCompletion
from attacks.img2img import Img2Img
from attacks.latent_inversion import LatentInversion
from attacks.noise import fresh
from attacks.noise_probe import NoiseProbe
from benchmark.diffusion import Model, sample
from benchmark.kit import conformance

STEPS, SCALE = 12, 2.0
METHODS = [DiffusionCompletion(), Img2Img()]


def ddim(steps: int) -> DDIMScheduler:
    """As Stable Diffusion ships it."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    found = DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    found.set_timesteps(steps)
    return found


@pytest.fixture
def start(model: Model) -> tuple[Tensor, Tensor, Tensor]:
    """z_T, text and null of two images."""
    z_T = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    text = model.encode_text(["a cat", "a dog"])
    return z_T, text, model.encode_text([""]).expand_as(text)


def begin(
    method: SamplingAttack, base: Model, start: tuple[Tensor, Tensor, Tensor], budget: int, steps: int = STEPS
) -> tuple[Tensor, int]:
    """Without a defended model: neither attack may read one to start."""
    return method.begin(None, base, *start, budget=budget, steps=steps, scale=SCALE)  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [h for h in DiffusionCompletion().handovers if h < STEPS])
def test_the_base_completes_its_own_image(model: Model, start: tuple[Tensor, Tensor, Tensor], budget: int) -> None:
    """With the base as the defended model the image is the base's own: the positive control."""
    z_T, text, null = start

    z, at = begin(DiffusionCompletion(), model, start, budget)

    assert at == budget
    whole = sample(model, z_T, text, null, steps=STEPS, guidance=SCALE)
    torch.testing.assert_close(sample(model, z, text, null, steps=STEPS, guidance=SCALE, start=at), whole)
    assert not torch.equal(z, z_T)


def test_a_handover_costs_its_steps(model: Model, start: tuple[Tensor, Tensor, Tensor]) -> None:
    """Two images, two predictions a guided step."""
    before = model.meter.unet_forward

    begin(DiffusionCompletion(), model, start, 5)

    assert model.meter.unet_forward - before == 5 * 2 * 2


@pytest.mark.parametrize("budget", [0, -1, STEPS, STEPS + 3])
def test_the_base_may_not_draw_everything(model: Model, start: tuple[Tensor, Tensor, Tensor], budget: int) -> None:
    with pytest.raises(ValueError, match=f"expected a handover from 1 to 11 of 12 steps, got {budget}: lower it"):
        begin(DiffusionCompletion(), model, start, budget)


@pytest.mark.parametrize("budget", Img2Img().skipped)
def test_img2img_noises_the_bases_image(model: Model, start: tuple[Tensor, Tensor, Tensor], budget: int) -> None:
    """Against float64: the schedule and the timestep are worked out by hand."""
    z_T, text, null = start

    z, at = begin(Img2Img(), model, start, budget)

    t = 1000 // STEPS * (STEPS - 1 - at) + 1  # leading spacing, as Stable Diffusion ships it
    ab = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2)[t]
    z_0 = sample(model, z_T, text, null, steps=STEPS, guidance=SCALE).double()
    torch.testing.assert_close(
        z.double(), ab**0.5 * z_0 + (1 - ab) ** 0.5 * fresh(z_T, "img2img").double(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("steps", [10, 25, 50])
@pytest.mark.parametrize(("budget", "strength"), [(10, 0.9), (30, 0.7), (50, 0.5), (70, 0.3)])
def test_img2img_starts_where_diffusers_starts(
    model: Model,
    start: tuple[Tensor, Tensor, Tensor],
    steps: int,
    budget: int,
    strength: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the base draws first is of no account here."""
    monkeypatch.setattr("attacks.img2img.sample", lambda _, z_T, *__, **___: z_T)
    pipe = SimpleNamespace(scheduler=ddim(steps))
    timesteps, left = StableDiffusionImg2ImgPipeline.get_timesteps(pipe, steps, strength, "cpu")  # type: ignore[arg-type]

    _, at = begin(Img2Img(), model, start, budget, steps)

    assert steps - at == left
    assert torch.equal(model.trajectory(steps)[at:-1], timesteps)


def test_the_noise_of_a_start_is_independent_of_the_noise_that_drew_the_image() -> None:
    """Of 16,384 pairs: no correlation above five standard errors; another image or name has other noise."""
    z_T = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))

    noise = fresh(z_T, "img2img")

    for one, other in ((noise[0], z_T[0]), (noise[0], noise[1]), (noise[0], fresh(z_T, "other")[0])):
        assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < 5 / 128
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    assert torch.equal(fresh(z_T[1:], "img2img")[0], noise[1])


def test_published_handovers_are_steps_that_the_base_has_done(
    model: Model, start: tuple[Tensor, Tensor, Tensor]
) -> None:
    for budget in DiffusionCompletion().handovers:
        before = model.meter.unet_forward
        _, at = begin(DiffusionCompletion(), model, start, budget, 50)
        assert (at, model.meter.unet_forward - before) == (budget, 2 * 2 * budget)


def test_skipping_more_starts_nearer_to_the_image(model: Model, start: tuple[Tensor, Tensor, Tensor]) -> None:
    z_T, text, null = start
    z_0 = sample(model, z_T, text, null, steps=STEPS, guidance=SCALE)

    away = [(begin(Img2Img(), model, start, budget)[0] - z_0).norm().item() for budget in (10, 30, 50, 70, 90)]

    assert away == sorted(away, reverse=True)
    assert away[-1] < away[0] / 2


@pytest.mark.parametrize("budget", [0, 96, 100, 120])
def test_img2img_leaves_a_step(model: Model, start: tuple[Tensor, Tensor, Tensor], budget: int) -> None:
    with pytest.raises(ValueError, match=f"expected to skip less than the 12 steps, got {budget} percent: lower it"):
        begin(Img2Img(), model, start, budget)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_an_images_start_does_not_depend_on_the_batch(
    method: SamplingAttack, model: Model, start: tuple[Tensor, Tensor, Tensor]
) -> None:
    together, _ = begin(method, model, start, 10)

    for i in range(2):
        z_T, text, null = start
        alone, _ = begin(method, model, (z_T[i : i + 1], text[i : i + 1], null[i : i + 1]), 10)
        torch.testing.assert_close(alone[0], together[i])


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_budgets_are_the_attacks_own(method: SamplingAttack) -> None:
    """The grid of optimizer steps means nothing here."""
    assert method.budgets([10, 400]) == method.budgets([1]) != ()
    assert method.uses_base


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "flow"])
def test_inverted_noise_leads_back_to_the_picture(name: str) -> None:
    """Of a base, on another model: the more fixed-point steps, the nearer, and at last the picture itself."""
    base = conformance.tiny_model() if name == "unet" else conformance.tiny_flow()
    defended, rng = base.clone().frozen(), torch.Generator().manual_seed(1)
    for parameter in defended.denoiser.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=rng), alpha=0.02)
    few = STEPS // 2
    z_T = torch.randn(2, *base.latent_shape, generator=rng)
    text = base.encode_text(["a cat", "a dog"])
    null = base.encode_text([""]).expand_as(text)
    z_0 = sample(base, z_T, text, null, steps=few, guidance=SCALE)

    away, method = list[float](), LatentInversion(typical=False)
    for budget in (1, 15):
        z, at = method.begin(defended, base, z_T, text, null, budget=budget, steps=few, scale=SCALE)
        drawn = sample(defended, z, text, null, steps=few, guidance=SCALE)
        away.append((drawn - z_0).norm().item() / z_0.norm().item())

    assert at == 0
    assert (sample(defended, z_T, text, null, steps=few, guidance=SCALE) - z_0).norm() > 20 * away[-1] * z_0.norm()
    assert away == sorted(away, reverse=True) and away[-1] < 1e-3
    likely, _ = LatentInversion().begin(defended, base, z_T, text, null, budget=1, steps=few, scale=SCALE)
    torch.testing.assert_close(likely.flatten(1).norm(dim=1), z_T.flatten(1).norm(dim=1))


def test_an_inversion_costs_what_the_plan_foresees(model: Model, start: tuple[Tensor, Tensor, Tensor]) -> None:
    """Two images, two predictions a guided step; what the defended model then draws is not begun yet."""
    before = model.meter.unet_forward

    LatentInversion().begin(model, model, *start, budget=3, steps=STEPS, scale=SCALE)

    assert model.meter.unet_forward - before == (LatentInversion().trajectory(3, STEPS) - STEPS) * 2 * 2


def test_a_noise_probe_draws_more_of_the_same(model: Model, start: tuple[Tensor, Tensor, Tensor]) -> None:
    method = NoiseProbe(draws=7, deviation=1.02)

    z, at = method.begin(model, model, *start, budget=7, steps=STEPS, scale=SCALE)

    assert at == 0 and torch.equal(z, 1.02 * start[0])
    assert method.budgets([10, 400]) == (7,) and method.images(1, 7) == 7
    assert DiffusionCompletion().images(3, 5) == 3
