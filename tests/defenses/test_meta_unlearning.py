"""Meta-Unlearning adds the right first-order gradients, and without them it is the erasing method alone."""

from typing import Any

import pytest
import torch

import defenses.esd
import defenses.meta_unlearning
from benchmark.diffusion import Model, denoising_loss
from benchmark.types import Concept, Delta, Examples
from defenses.esd import ESD
from defenses.meta import fork
from defenses.meta_unlearning import MetaUnlearning, nearest

NONE = dict.fromkeys(("gamma_11", "gamma_12", "gamma_21", "gamma_22", "gamma_23"), 0.0)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(seed: int, *shape: int) -> torch.Tensor:
    """Two of that shape, in float64."""
    return torch.randn((2, *shape), generator=rng(seed), dtype=torch.float64)


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


def small(**fields: Any) -> MetaUnlearning:
    return MetaUnlearning(**{"steps": 2, "meta_batch": 2, "looks": 1, "inner_steps": 1, "ddim_steps": 3} | fields)


def protected(method: Any, model: Model, concept: Concept, examples: Examples) -> Delta:
    data = {"concept": examples, "safe": examples}
    delta: Delta = method.protect(model, concept, data, rng=rng(), report=silent)
    return delta


def test_without_gammas_it_is_esd(
    model: Model, concept: Concept, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ESD with eta 3, all weights and AdamW, on the same z_t and t, whose gradients are too small to be clipped."""

    def fixed(model: Model, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(1, *model.latent_shape, generator=rng(7)), torch.tensor(400)

    for module in (defenses.esd, defenses.meta_unlearning):
        monkeypatch.setattr(module, "partial_sample", fixed)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)
    monkeypatch.setattr(torch.optim, "Adam", lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=1e-4))

    found = protected(small(unlearn="esd", lr=1e-3, **NONE), model, concept, examples)
    expected = protected(ESD(eta=3.0, scope="full", lr=1e-3, steps=2), model, concept, examples)

    assert not found.is_zero and found.dense.keys() == expected.dense.keys()
    for name, change in expected.dense.items():
        torch.testing.assert_close(found.dense[name], change, rtol=1e-5, atol=1e-8)


def test_the_looks_are_the_first_order_gradient(model: Model, examples: Examples) -> None:
    """With th' = th - d, d constant: the slope of g11 L(th; irt) + ... - g23 L(th - d; irt) along a direction."""
    edited = model.clone()
    edited.denoiser.requires_grad_(True)
    parts: list[Any] = [edited.denoiser]
    for part in (*parts, edited.text_encoder, edited.vae):
        part.double()
    theta = list(edited.denoiser.parameters())
    method = small(looks=2, inner_lr=1e-2, gamma_11=0.3, gamma_12=0.2, gamma_21=0.7, gamma_22=0.4, gamma_23=0.5)
    names = ("attack", "hrm", "tgt", "irt")
    batches = {
        name: [(numbers(i, *model.latent_shape), numbers(9 + i, *model.text_shape))] * 4 for i, name in enumerate(names)
    }
    value = method.meta(edited, {name: iter(batches[name]) for name in names}, rng(5))
    gradient = [p.grad.clone() for p in theta if p.grad is not None]
    seen: list[Model] = []
    forked = fork(edited, every=True)
    draws = rng(5)

    def spied(model: Model, *, every: bool = False) -> Model:
        seen.append(forked)
        return forked

    with pytest.MonkeyPatch.context() as patch:  # the same attack again, to have d
        patch.setattr(defenses.meta_unlearning, "fork", spied)
        edited.denoiser.zero_grad()
        method.meta(edited, {name: iter(batches[name]) for name in names}, draws)
    d = [p.detach() - q.detach() for p, q in zip(theta, seen[0].denoiser.parameters(), strict=True)]
    direction = [torch.randn(p.shape, generator=rng(9), dtype=p.dtype) for p in theta]
    start = [p.detach().clone() for p in theta]

    def total(h: float) -> float:
        with torch.no_grad():
            draws, sums = rng(5), 0.0
            order: list[tuple[str, float, bool]] = [("irt", 0.3, False), ("tgt", 0.2, False), ("attack", 0.0, False)]
            order += [("hrm", -0.7, True), ("tgt", -0.4, True), ("irt", -0.5, True)]
            for name, gamma, attacked in order:
                for p, p_0, v, d_p in zip(theta, start, direction, d, strict=True):
                    p.copy_(p_0 + h * v - (d_p if attacked else 0))
                for _ in range(1 if name == "attack" else 2):
                    sums += gamma * denoising_loss(edited, *batches[name][0], rng=draws).item()
        return sums

    slope = (total(1e-6) - total(-1e-6)) / 2e-6
    along = sum((g * v).sum().item() for g, v in zip(gradient, direction, strict=True))
    assert along == pytest.approx(slope, rel=1e-4)
    assert value.item() > 0


def test_the_presets_pass_one_gamma_for_three_or_each_its_own() -> None:
    intended, as_run = (MetaUnlearning(**MetaUnlearning.presets[name]) for name in ("intended", "as-run"))

    assert (intended.gamma_21, intended.gamma_22, intended.gamma_23) == (0.1, 0.1, 0.01)
    assert (as_run.gamma_21, as_run.gamma_22, as_run.gamma_23) == (0.01, 1.0, 1.0)


@pytest.mark.parametrize("unlearn", ["none", "esd", "sdd"])
def test_every_loss_trains_all_weights_and_spends_what_it_says(
    model: Model, concept: Concept, examples: Examples, unlearn: Any
) -> None:
    method = small(unlearn=unlearn, sampler="ddim", ddim_steps=1, lr=1e-3)  # one step: nothing is drawn at random
    before = model.meter.unet_forward + 2 * model.meter.unet_backward

    delta = protected(method, model, concept, examples)

    assert model.meter.unet_forward + 2 * model.meter.unet_backward - before == method.passes()
    assert set(delta.dense) == {f"unet.{name}" for name, _ in model.unet.named_parameters()}


def test_the_harmful_images_are_halved_and_the_safe_ones_go_by_their_captions(
    model: Model, concept: Concept, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Examples] = []
    monkeypatch.setattr(defenses.meta_unlearning, "draw", lambda m, part, *_, **__: seen.append(part))
    safe = Examples(images=examples.images, captions=("zz", "a cat", "qq", "cat"))

    small().sets(model, concept, {"concept": examples, "safe": safe}, rng())

    attack, hrm, tgt, irt = seen
    both = torch.cat([attack.images, hrm.images])
    assert len(attack.captions) == len(hrm.captions) == 2
    assert {tuple(x.flatten().tolist()) for x in both} == {tuple(x.flatten().tolist()) for x in examples.images}
    assert nearest(model, "cat", safe.captions)[0] == 3
    assert "cat" in tgt.captions and sorted((*tgt.captions, *irt.captions)) == sorted(safe.captions)


def test_one_image_cannot_be_halved(model: Model, concept: Concept, examples: Examples) -> None:
    one = Examples(images=examples.images[:1], captions=("a cat",))

    with pytest.raises(ValueError, match=r"expected 2 or more images .* got 1"):
        small().protect(model, concept, {"concept": one, "safe": examples}, rng=rng(), report=silent)
