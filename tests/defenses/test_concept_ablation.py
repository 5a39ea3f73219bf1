"""Concept Ablation's losses are its equations; the begin token moves nothing; what it reads and draws is as it says."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmark.diffusion import Model
from benchmark.types import Concept, Prompt
from defenses.concept_ablation import ConceptAblation, first_row_detached
from defenses.erasing import student
from tests.defenses.test_esd import predictor, silent

C, ANCHOR = torch.full((1, 3, 4), 3.0), torch.full((1, 3, 4), 2.0)
SMALL = partial(ConceptAblation, steps=2, batch=2, lr=1e-3, anchor_images=3, image_steps=2)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_target_is_the_model_as_it_is_now_without_gradient(model: Model) -> None:
    """eps_th(c*) = 15, eps_th(c_a) = 10, not the frozen model's: 25, and dL/dw = 30, not 2 * 5 * (3 - 2)."""
    edited = predictor(model, 5.0)

    loss = ConceptAblation().loss(edited, torch.zeros(1, 4, 2, 2), torch.tensor([3]), C, ANCHOR)
    loss.backward()

    assert loss.item() == pytest.approx(25)
    assert edited.unet.weight.grad.item() == pytest.approx(30)


def test_the_other_variant_has_the_noise_as_its_target(model: Model) -> None:
    loss = ConceptAblation().loss(
        predictor(model, 5.0), torch.zeros(1, 4, 2, 2), torch.tensor([3]), C, ANCHOR, torch.full((1, 4, 2, 2), 12.0)
    )

    assert loss.item() == pytest.approx(9)


def test_the_first_row_moves_no_key_and_no_value(model: Model) -> None:
    """A text that is 0 behind its first row has no gradient, and has one where nothing is detached."""
    edited, theta = student(model, model.scope("x-strict"))
    text, z = torch.zeros(1, *model.text_shape), torch.randn(1, *model.latent_shape, generator=rng())
    text[:, 0] = 1.0

    def largest() -> float:
        found = torch.autograd.grad(edited.predict(z, torch.tensor(3), text).square().sum(), theta)
        return max(float(g.abs().max()) for g in found)

    free = largest()
    with first_row_detached(edited):
        detached = largest()

    assert detached == 0 < free
    assert largest() == free


def test_what_is_answered_is_the_same_while_rows_are_detached(model: Model) -> None:
    text, z = model.encode_text(["cat"]), torch.randn(1, *model.latent_shape, generator=rng())
    plain = model.predict(z, torch.tensor(3), text)

    with first_row_detached(model.clone()), torch.no_grad():
        assert torch.equal(model.predict(z, torch.tensor(3), text), plain)


@pytest.mark.parametrize("scope", ["x-strict", "attn"])
def test_the_releases_parameters_are_trained(model: Model, concept: Concept, scope: str) -> None:
    delta = SMALL(scope=scope).protect(model, concept, {}, rng=rng(), report=silent)

    wanted = [".attn2.to_k.", ".attn2.to_v."] if scope == "x-strict" else [".attn1.", ".attn2."]
    names = [name for name, _ in model.unet.named_parameters() if any(one in f".{name}" for one in wanted)]
    assert {name.removeprefix("unet.") for name in delta.dense} == set(names)


def test_anchors_are_the_defenders_prompts_without_the_concept(model: Model, concept: Concept) -> None:
    """Other prompts of the defender change the result; without one that names the phrase it is refused."""
    method = SMALL(texts="defender", anchor="dog")
    of = [tuple(Prompt(text=text, split="defender") for text in texts) for texts in (("a cat",), ("cat x",), ("x",))]
    cards = [replace(concept, prompts=prompts) for prompts in of]

    first, second = (method.protect(model, card, {}, rng=rng(), report=silent).dense for card in cards[:2])

    assert method.reads == ("defender",) and SMALL().reads == ()
    assert any(not torch.equal(t, second[name]) for name, t in first.items())
    with pytest.raises(ValueError, match="expected defender prompts with 'cat'"):
        method.protect(model, cards[2], {}, rng=rng(), report=silent)


def test_the_prior_and_the_noise_are_paid_for(model: Model, concept: Concept) -> None:
    for method in (SMALL(prior=0.2), SMALL(aim="noise"), SMALL(image_guidance=1.0)):
        before = model.meter.unet_forward + 2 * model.meter.unet_backward

        method.protect(model, concept, {}, rng=rng(), report=silent)

        assert model.meter.unet_forward + 2 * model.meter.unet_backward - before == method.passes()
