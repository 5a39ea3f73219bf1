"""DUO's loss is its equation, its adapters see the image alone, its pairs differ by the text."""

import math

import pytest
import torch

from benchmark.diffusion import Model
from benchmark.types import Concept, Examples
from defenses.duo import DUO, looking, preference
from tests.defenses.test_esd import silent

SMALL = {"steps": 2, "batch": 2, "rank": 2, "pairs": 3, "edit_steps": 4, "lr": 1e-3}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_at_the_base_it_is_log_2_and_pushes_both_errors_apart() -> None:
    """dL/dl- = -beta / 2 and dL/dl+ = beta / 2, shared by a batch of two."""
    minus, plus = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)

    loss = preference(minus, plus, 500.0)
    loss.backward()

    assert loss.item() == pytest.approx(math.log(2))
    assert minus.grad.tolist() == pytest.approx([-125.0, -125.0])
    assert plus.grad.tolist() == pytest.approx([125.0, 125.0])


def test_the_loss_is_the_equation(model: Model) -> None:
    """Written out on two random models, with one noise for both images and a t for each."""
    method = DUO(beta=3.0, keep=2.0)
    edited = model.clone()
    with torch.no_grad():
        edited.unet.conv_in.weight.mul_(1.1)
    minus, plus = torch.randn(2, 2, *model.latent_shape, generator=rng(1))
    null = model.encode_text([""])

    with torch.no_grad():
        loss = method.loss(edited, model, minus, plus, null, rng(5)).item()

    draws, gain = rng(5), []
    x_T, null = torch.randn(minus.shape, generator=draws), null.expand(2, -1, -1)
    with torch.no_grad():
        for z in (minus, plus):
            parts = torch.randint(75, (2,), generator=draws).tolist()
            t = torch.stack([torch.randint(10 * k, 10 * k + 10, (), generator=draws) for k in parts])
            assert t.max() < 750
            of = [(m.predict(model.noised(z, x_T, t), t, null) - x_T).square().mean((1, 2, 3)) for m in (edited, model)]
            gain.append(of[0] - of[1])
        t = torch.tensor(999)
        kept = (edited.predict(x_T, t, null) - model.predict(x_T, t, null)).square().mean()
        wanted = -torch.log(torch.sigmoid(3.0 * (gain[0] - gain[1]))).mean() + 2.0 * kept
    assert loss == pytest.approx(wanted.item(), rel=1e-5)


def test_only_the_images_own_attention_is_trained(model: Model, concept: Concept, examples: Examples) -> None:
    delta = DUO(**SMALL).protect(model, concept, {"concept": examples}, rng=rng(), report=silent)  # type: ignore[arg-type]

    endings = {name.split(".attn1.")[1] for name in delta.low_rank}
    assert not delta.dense and not delta.is_zero
    assert endings == {"to_q", "to_k", "to_v", "to_out.0"}
    assert all(down.shape[0] == up.shape[1] == 2 for down, up in delta.low_rank.values())
    assert {name.removeprefix("unet.") for name in delta.low_rank} == set(looking(model))


def test_pairs_are_edits_toward_the_anchor(model: Model, concept: Concept, examples: Examples) -> None:
    """The same images with two anchors differ in x+ alone; without strength little is left to the text."""

    def pairs(anchor: str, strength: float = 0.75) -> tuple[torch.Tensor, torch.Tensor]:
        return DUO(**SMALL, anchor=anchor, strength=strength).pictures(model, concept, examples, rng())  # type: ignore[arg-type]

    (minus, dog), (again, cow), (_, near) = pairs("dog"), pairs("cow"), pairs("dog", 0.25)

    assert torch.equal(minus, again) and not torch.equal(dog, cow)
    assert (near - minus).norm() < (dog - minus).norm()


def test_rates_follow_beta() -> None:
    """lr and lambda as the release has them; 0.75 of 50 steps are 38."""
    assert DUO().edited_steps == 38
    assert DUO(steps=1, batch=1, pairs=1, edit_steps=4).passes() == 3 * 2 + 12
