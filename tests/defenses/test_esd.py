"""ESD's loss is the paper's equation, and its scopes are the releases' parameter sets."""

from dataclasses import replace

import pytest
import torch

from benchmark.diffusion import Model
from benchmark.model.unet import UNetModel
from benchmark.types import Concept
from defenses.esd import ESD


class Linear(torch.nn.Module):
    """A stand-in predictor: eps(z_t, t, c) = weight * mean(c), so that the equation can be worked by hand."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))


def predictor(model: Model, weight: float) -> Model:
    """`model`, with the stand-in as its U-Net."""

    class Stub(UNetModel):
        def predict(self, z_t: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            return self.unet.weight * text.mean((1, 2)).reshape(-1, 1, 1, 1).expand_as(z_t)

    fields = {name: getattr(model, name) for name in ("vae", "text_encoder", "tokenizer", "scheduler", "meter")}
    return Stub(unet=Linear(weight), **fields)  # type: ignore[arg-type]


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


@pytest.mark.parametrize("eta", [0.5, 1.0, 3.0])
def test_loss_is_the_papers_equation(model: Model, eta: float) -> None:
    """eps_0(c) = 2 * 3 = 6, eps_0(null) = 2 * 1 = 2, target = 2 - eta * 4; eps_th(c) = 5 * 3 = 15."""
    frozen, edited = predictor(model, 2.0), predictor(model, 5.0)
    z_t, t = torch.zeros(2, 4, 2, 2), torch.tensor(3)
    c, null = torch.full((1, 3, 4), 3.0), torch.full((1, 3, 4), 1.0)

    loss = ESD(eta=eta).loss(edited, frozen, z_t, t, c, null)

    assert loss.item() == pytest.approx((15 - (2 - eta * 4)) ** 2)


def test_gradient_reaches_only_the_edited_model(model: Model) -> None:
    frozen, edited = predictor(model, 2.0), predictor(model, 5.0)
    c, null = torch.full((1, 3, 4), 3.0), torch.full((1, 3, 4), 1.0)

    ESD().loss(edited, frozen, torch.zeros(1, 4, 2, 2), torch.tensor(3), c, null).backward()

    assert frozen.unet.weight.grad is None
    assert edited.unet.weight.grad.item() == pytest.approx(2 * (15 + 2) * 3)


def test_the_diffusers_release_has_the_same_target() -> None:
    """Its e_from - 2 (e_p - e_0) equals e_0 - 1 (e_p - e_0) when one erases from the concept itself... with eta 1."""
    e_p, e_0 = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(e_p - 2 * (e_p - e_0), e_0 - 1.0 * (e_p - e_0))


def test_on_sdxl_the_target_is_the_empty_prompts_prediction(model: Model) -> None:
    """esd_sdxl.py: e_from - 1 (e_p - e_0) with e_from = e_p, that is e_0. The loss and its gradient in float64."""
    method = ESD(**ESD.presets["sdxl"])
    frozen = model.clone().frozen()
    frozen.unet.double()
    edited = frozen.clone()
    theta = [p.requires_grad_(True) for p in edited.unet.parameters()]
    with torch.no_grad():
        theta[0] += 0.1
    draws = torch.Generator().manual_seed(1)
    z_t = torch.randn(2, *model.latent_shape, generator=draws, dtype=torch.float64)
    c, null = (torch.randn(1, *model.text_shape, generator=draws, dtype=torch.float64) for _ in range(2))
    t = torch.tensor(300)

    loss = method.loss(edited, frozen, z_t, t, c, null)

    e_p, e_0 = (frozen.unet(z_t, t, encoder_hidden_states=x.expand(2, -1, -1)).sample for x in (c, null))
    e_n = edited.unet(z_t, t, encoder_hidden_states=c.expand(2, -1, -1)).sample
    theirs = ((e_n - (e_p - 1 * (e_p - e_0)).detach()) ** 2).sum() / z_t.numel()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-12)
    assert loss.item() == pytest.approx(((e_n - e_0) ** 2).mean().item(), rel=1e-12)
    for ours, other in zip(torch.autograd.grad(loss, theta), torch.autograd.grad(theirs, theta), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("paper", (1000, 1e-5, 1, "x", "edited", 3.0, 50, "compvis", 1.0)),  # train-esd.py
        ("fast", (200, 5e-5, 1, "x", "frozen", 3.0, 50, "pndm", 1.0)),  # esd_sd.py: negative_guidance 2, from e_p
        ("sdxl", (200, 2e-4, 1, "x-strict", "frozen", 2.0, 50, "ddim", 0.0)),  # esd_sdxl.py: negative_guidance 1
        ("flux", (1400, 1e-4, 1, "x", "frozen", 3.5, 28, "ddim", 1.0)),
        ("klein", (1400, 1e-4, 1, "x", "frozen", 4.0, 50, "ddim", 1.0)),
    ],
)
def test_presets_have_the_releases_settings(preset: str, settings: tuple[object, ...]) -> None:
    m = ESD(**ESD.presets[preset])

    found = (m.steps, m.lr, m.batch, m.scope, m.sampled_from, m.start_guidance, m.ddim_steps, m.sampler, m.eta)
    assert found == settings


def test_scopes_partition_the_unet(model: Model) -> None:
    everything = {name for name, _ in model.unet.named_parameters()}
    x, strict, u, old = (model.scope(s) for s in ("x", "x-strict", "u", "u-old"))

    assert all(".attn2." in name for name in x)
    assert {n.split(".attn2.")[1].split(".")[0] for n in strict} == {"to_k", "to_v"}
    assert strict < x
    assert not (u & x)
    assert not (old & x)
    assert any(name.startswith("time_embedding") for name in u)
    assert not any(name.startswith(("time_embedding", "conv_out", "conv_norm_out")) for name in old)
    assert not any("norm" in name and "attn" not in name for name in u)
    assert model.scope("full") == everything
    assert all(".attn1." in name for name in model.scope("selfattn"))


def test_a_scope_without_parameters_is_an_error(model: Model) -> None:
    plain = replace(model, unet=torch.nn.Sequential(torch.nn.Linear(2, 2)))  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="expected scope 'x' to select parameters"):
        plain.scope("x")


@pytest.mark.parametrize("scope", ["x", "x-strict", "u", "u-old", "selfattn", "full"])
def test_only_the_scope_moves(model: Model, concept: Concept, scope: str) -> None:
    method = ESD(steps=1, ddim_steps=3, lr=1e-2, scope=scope)  # type: ignore[arg-type]

    delta = method.protect(model, concept, {}, rng=torch.Generator().manual_seed(0), report=silent)

    moved = {name.removeprefix("unet.") for name, t in delta.dense.items() if bool(t.any())}
    assert moved
    assert moved <= model.scope(method.scope)


@pytest.mark.parametrize("source", ["edited", "frozen"])
def test_erasing_brings_the_prediction_to_the_target(model: Model, concept: Concept, source: str) -> None:
    method = ESD(steps=25, ddim_steps=3, lr=1e-3, batch=4, sampled_from=source)  # type: ignore[arg-type]
    losses: list[float] = []

    def report(*, step: int, total: int, loss: float) -> None:
        losses.append(loss)

    method.protect(model, concept, {}, rng=torch.Generator().manual_seed(0), report=report)

    assert sum(losses[-10:]) < sum(losses[:10])


def test_timesteps_lie_in_the_schedule(model: Model) -> None:
    c, null = model.encode_text(["cat"]), model.encode_text([""])
    for sampler in ("compvis", "pndm", "ddim"):
        method = ESD(ddim_steps=7, sampler=sampler)  # type: ignore[arg-type]
        drawn = [int(method.draw(model, c, null, torch.Generator().manual_seed(s))[1]) for s in range(10)]

        assert min(drawn) >= 0
        assert max(drawn) < 1000
        assert len(set(drawn)) > 4


def test_a_loss_that_is_not_finite_stops(model: Model, concept: Concept) -> None:
    broken = model.clone()
    with torch.no_grad():
        broken.unet.conv_out.bias.fill_(float("nan"))

    with pytest.raises(ValueError, match="expected a finite loss"):
        ESD(steps=1, ddim_steps=2).protect(broken, concept, {}, rng=torch.Generator(), report=silent)


def test_reads_no_image(model: Model, concept: Concept) -> None:
    blind = replace(model, vae=None)  # type: ignore[arg-type]
    c, null = model.encode_text(["cat"]), model.encode_text([""])

    ESD(ddim_steps=2).draw(blind, c, null, torch.Generator())

    assert ESD.needs == frozenset()


def test_erasing_wordings_reads_each_of_them(model: Model, concept: Concept) -> None:
    """One wording a step; the default erases the phrase alone, as the paper does."""
    many = replace(concept, wordings=("one", "two", "three"))
    one, several = ESD(steps=6, ddim_steps=2, lr=1e-3), ESD(steps=6, ddim_steps=2, lr=1e-3, erase="wordings")

    def delta(method: ESD, card: Concept) -> dict[str, torch.Tensor]:
        return dict(method.protect(model, card, {}, rng=torch.Generator().manual_seed(0), report=silent).dense)

    alone, first, each = delta(one, concept), delta(one, many), delta(several, many)
    assert all(torch.equal(t, alone[n]) for n, t in first.items())
    assert any(not torch.equal(t, first[n]) for n, t in each.items())
