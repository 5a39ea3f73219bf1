"""LCFDSD's release trains on clean data alone, or by plain ascent; its contrast pulls to one of two centres."""

from typing import Any

import pytest
import torch

from benchmark.diffusion import Model, denoising_loss
from benchmark.types import Concept, Examples
from defenses.lcfdsd import LCFDSD


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


@pytest.fixture
def edited(model: Model) -> Model:
    copy = model.clone(only={model.part})
    copy.denoiser.requires_grad_(True)
    return copy


def batch(model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, *model.latent_shape, generator=rng(1)), model.encode_text(["a", "cat"]).detach()


def gradient(method: LCFDSD, edited: Model, harmful: list[bool], centres: Any = None) -> list[torch.Tensor]:
    loss = method.loss(edited, *batch(edited), torch.tensor(harmful), {} if centres is None else centres, rng=rng(2))
    return list(torch.autograd.grad(loss, list(edited.denoiser.parameters())))


@pytest.mark.parametrize("variant", ["ng", "lt"])
def test_as_released_harmful_data_leave_no_gradient(edited: Model, variant: Any) -> None:
    method = LCFDSD(variant=variant)

    assert not any(bool(g.any()) for g in gradient(method, edited, [True, True]))
    assert any(bool(g.any()) for g in gradient(method, edited, [True, False]))


def test_lt_as_released_is_the_plain_loss_of_clean_data(edited: Model) -> None:
    z_0, text = batch(edited)

    found = LCFDSD(variant="lt").loss(edited, z_0, text, torch.tensor([False, False]), {}, rng=rng(2))

    torch.testing.assert_close(found, denoising_loss(edited, z_0, text, rng=rng(2)))


def test_high_is_descent_and_half_an_ascent(edited: Model) -> None:
    """Of two samples, by hand: (L_clean - L_harmful / 2) / 2."""
    z_0, text = batch(edited)
    t, e = edited.times(2, rng=(draws := rng(2))), torch.randn(z_0.shape, generator=draws)
    clean, harmful = (edited.predict(edited.noised(z_0, e, t), t, text) - e).square().flatten(1).mean(1)

    found = LCFDSD(variant="high").loss(edited, z_0, text, torch.tensor([False, True]), {}, rng=rng(2))

    torch.testing.assert_close(found, (clean - 0.5 * harmful) / 2)


def test_ng_gives_noise_of_mean_one_and_asks_for_noise_of_mean_zero(edited: Model) -> None:
    z_0, text = batch(edited)
    t, e = edited.times(2, rng=(draws := rng(2))), torch.randn(z_0.shape, generator=draws)
    expected = (edited.predict(edited.noised(z_0, e + 1, t), t, text) - e).square().mean()

    found = LCFDSD(variant="ng").loss(edited, z_0, text, torch.tensor([False, False]), {}, rng=rng(2))

    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("variant", ["ng", "lt", "high"])
def test_a_contrast_reaches_harmful_data(edited: Model, variant: Any) -> None:
    method, size = (
        LCFDSD(variant=variant, contrast=True, weight=1.0),
        edited.latent_shape[0] * edited.latent_shape[1] ** 2,
    )
    centres = {False: torch.zeros(size), True: torch.ones(size)}

    with_it = gradient(method, edited, [True, True], dict(centres))
    without = gradient(LCFDSD(variant=variant), edited, [True, True])

    assert any(not torch.equal(a, b) for a, b in zip(with_it, without, strict=True))


def test_the_contrast_by_hand() -> None:
    """Centres move first; d(x, own) - lc max(0, d(x, other) - l)."""
    method = LCFDSD(push=0.5, margin=1.0, momentum=0.75)
    centres = {False: torch.tensor([0.0, 0.0]), True: torch.tensor([4.0, 3.0])}

    found = method.apart(torch.tensor([[0.0, 4.0]]), [False], centres)

    assert centres[False].tolist() == [0.0, 1.0]
    assert found.item() == pytest.approx(3 - 0.5 * (17**0.5 - 1))


def test_all_weights_are_released_and_the_rate_falls_to_zero(
    model: Model, concept: Concept, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []

    class Spy(torch.optim.AdamW):
        def step(self, closure: Any = None) -> None:
            rates.append(self.param_groups[0]["lr"])
            super().step()

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    method = LCFDSD(steps=4, lr=1e-3, batch=2)

    delta = method.protect(model, concept, {"concept": examples, "safe": examples}, rng=rng(), report=silent)

    assert set(delta.dense) == {f"unet.{name}" for name, _ in model.unet.named_parameters()}
    assert rates == pytest.approx([1e-3, 0.853553e-3, 0.5e-3, 0.146447e-3], rel=1e-4)
