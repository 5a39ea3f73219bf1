"""IMMA takes turns as its release does: phi goes down the adaptation's loss, theta goes up it, and only theta stays."""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call

import defenses.imma
from benchmark.diffusion import Model, denoising_loss
from benchmark.model.adapters import add_adapters
from benchmark.model.unet import UNetModel
from benchmark.types import Concept, Delta, Examples
from defenses.data import draw, latents
from defenses.imma import IMMA, TARGETS, new_word, projections

ADAPTATIONS = ("lora", "dreambooth", "textual_inversion")


class Hand(torch.nn.Module):
    """A U-Net of two numbers: eps(z_t, t, c) = to_q z_t + conv (1 + mean(c))."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.conv = torch.nn.Parameter(torch.tensor(6.0, dtype=torch.float64))

    def forward(self, z_t: torch.Tensor, t: torch.Tensor, encoder_hidden_states: torch.Tensor) -> SimpleNamespace:
        c = 1 + encoder_hidden_states.mean((1, 2)).reshape(-1, 1, 1, 1)
        return SimpleNamespace(sample=self.to_q * z_t + self.conv * c)


class AdamW:
    """AdamW by hand, after the norm of the gradient is clipped to 1."""

    def __init__(self, lr: float) -> None:
        self.lr, self.m, self.v, self.k, self.norms = lr, np.zeros(()), np.zeros(()), 0, []

    def step(self, p: np.ndarray, g: np.ndarray) -> np.ndarray:
        self.norms.append(float(np.linalg.norm(g)))
        g = g * min(1.0, 1.0 / (self.norms[-1] + 1e-6))
        self.k += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        m_hat, v_hat = self.m / (1 - 0.9**self.k), self.v / (1 - 0.999**self.k)
        return p - self.lr * 0.01 * p - self.lr * m_hat / (np.sqrt(v_hat) + 1e-8)


def recorded(model: Model, draws: list[tuple[torch.Tensor, ...]]) -> Model:
    """`model` in float64; `draws` collects each (z_0, eps, t)."""

    class Recorded(UNetModel):
        def noised(self, z_0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            draws.append((z_0, eps, t))
            return super().noised(z_0, eps, t)

        def posterior(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mean = images[:, :1, ::2, ::2].double().expand(-1, 4, -1, -1)
            return mean, torch.full_like(mean, 0.1)

    copy = model.clone()
    for part in copy.parts.values():
        part.double()
    return Recorded(**{field.name: getattr(copy, field.name) for field in fields(copy)})


def run(method: IMMA, model: Model, concept: Concept, examples: Examples) -> tuple[Delta, list[float]]:
    losses: list[float] = []

    def report(*, step: int, total: int, loss: float) -> None:
        losses.append(loss)

    rng = torch.Generator().manual_seed(0)
    return method.protect(model, concept, {"concept": examples}, rng=rng, report=report), losses


def noisy(model: Model, z_0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    ab = model.scheduler.alphas_cumprod.double()[t].reshape(-1, 1, 1, 1)
    return ab.sqrt() * z_0 + (1 - ab).sqrt() * eps


def test_dreambooth_is_the_papers_program_by_hand(model: Model, concept: Concept, examples: Examples) -> None:
    """phi = (to_q, conv) goes down, theta = to_q goes up; L = mean((to_q z_t + conv m - eps)^2), derived by hand."""
    draws: list[tuple[torch.Tensor, ...]] = []
    small = recorded(model, draws)
    object.__setattr__(small, "unet", Hand())
    one = Examples(images=examples.images, captions=("a cat",) * 4)
    m = 1 + small.encode_text(["a cat"]).mean().item()
    method = IMMA(adaptation="dreambooth", steps=6, batch=2, lr=0.1, adapt_lr=0.05)

    delta, losses = run(method, small, concept, one)

    p, descent, ascent = np.array([0.7, 6.0]), AdamW(0.05), AdamW(0.1)
    for i, drawn in enumerate(draws):
        z_t, eps = noisy(model, *drawn).numpy(), drawn[1].numpy()
        error = p[0] * z_t + p[1] * m - eps
        assert losses[i] == pytest.approx((error**2).mean(), rel=1e-5)
        if i % 2 == 0:
            p = descent.step(p, np.array([2 * (error * z_t).mean(), 2 * error.mean() * m]))
        else:
            p = np.array([ascent.step(p[:1], -np.array([2 * (error * z_t).mean()]))[0], p[1]])
    assert len(draws) == 6
    assert max(descent.norms) > 1 and max(ascent.norms) > 1  # the clip is in force

    assert delta.dense.keys() == {"unet.to_q"}
    assert delta.dense["unet.to_q"].item() == pytest.approx(p[0] - 0.7, rel=1e-5)


def test_lora_is_the_papers_program_on_merged_weights(
    model: Model, concept: Concept, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same steps on a U-Net without adapters, whose weights are W + B A, in float64."""
    draws: list[tuple[torch.Tensor, ...]] = []
    small, start = recorded(model, draws), {}

    def spy(model: Model, **settings: Any) -> Any:
        found = add_adapters(model, **settings)
        start.update({n: p.detach().clone() for n, p in model.denoiser.named_parameters() if ".lora_" in n})
        return found

    monkeypatch.setattr(defenses.imma, "add_adapters", spy)
    one = Examples(images=examples.images, captions=("a cat",) * 4)

    delta, losses = run(IMMA(steps=6, batch=2, rank=2, lr=0.01, adapt_lr=0.02), small, concept, one)

    text = small.encode_text(["a cat", "a cat"]).detach()
    weights = {n: p.detach().clone() for n, p in small.unet.named_parameters()}
    theta = {n: weights[n] for n in weights if ".attn" in n and ".to_" in n}
    first = {n: w.clone() for n, w in theta.items()}
    down, up = {n: AdamW(0.02) for n in start}, {n: AdamW(0.01) for n in theta}
    for i, drawn in enumerate(draws):
        active: dict[str, torch.Tensor] = start if i % 2 == 0 else theta
        for group in (start, theta):
            for w in group.values():
                w.requires_grad_(group is active)
        merged = weights | theta
        for name in start:
            if ".lora_A." in name:
                base = name.replace(".lora_A.default", "")
                merged[base] = merged[base] + start[name.replace("lora_A", "lora_B")] @ start[name]
        z_t = noisy(model, *drawn)
        eps_hat = functional_call(small.unet, merged, (z_t, drawn[2]), {"encoder_hidden_states": text}).sample
        loss = ((eps_hat - drawn[1]) ** 2).mean()
        assert losses[i] == pytest.approx(loss.item(), rel=1e-5)
        gradients = torch.autograd.grad(loss if active is start else -loss, list(active.values()))
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        for (name, w), g in zip(list(active.items()), gradients, strict=True):
            step = (down if active is start else up)[name]
            clipped = g * min(1.0, 1.0 / (norm.item() + 1e-6))
            active[name] = torch.from_numpy(step.step(w.detach().numpy(), clipped.numpy()))
    assert delta.dense.keys() == {f"unet.{n}" for n in theta}
    for name, w in theta.items():
        torch.testing.assert_close(delta.dense[f"unet.{name}"], (w - first[name]).float(), atol=1e-6, rtol=1e-3)


class Spy(torch.optim.AdamW):
    """AdamW that remembers every instance and the order of their steps."""

    made: list["Spy"] = []
    turns: list[int] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Spy.made.append(self)

    def step(self, closure: Any = None) -> None:
        Spy.turns.append(Spy.made.index(self))
        super().step()


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> type[Spy]:
    """The optimizers a run makes: first phi's, then theta's."""
    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    monkeypatch.setattr(Spy, "made", [])
    monkeypatch.setattr(Spy, "turns", [])
    return Spy


@pytest.mark.parametrize(
    ("fields", "turns"),
    [
        ({}, [0, 1, 0, 1, 0, 1, 0]),
        ({"inner": 2}, [0, 0, 1, 0, 0, 1, 0]),
        ({"inner": 1, "outer": 3}, [0, 1, 1, 1, 0, 1, 1]),
        ({"ascent_only": True}, [1] * 7),
    ],
)
def test_phi_and_theta_take_turns(
    model: Model, concept: Concept, examples: Examples, spy: type[Spy], fields: dict[str, Any], turns: list[int]
) -> None:
    run(IMMA(steps=7, **fields), model, concept, examples)

    assert spy.turns == turns


@pytest.mark.parametrize(
    ("adaptation", "adapt_lr", "lr"),
    [("lora", 1e-4, 1e-5), ("dreambooth", 5e-6, 2e-5), ("textual_inversion", 5e-4, 1e-6)],
)
def test_optimizers_are_the_releases(
    model: Model, concept: Concept, examples: Examples, spy: type[Spy], adaptation: Any, adapt_lr: float, lr: float
) -> None:
    run(IMMA(steps=1, adaptation=adaptation), model, concept, examples)

    phi, theta = spy.made
    assert (phi.defaults["lr"], theta.defaults["lr"]) == (adapt_lr, lr)
    for optimizer in (phi, theta):
        assert optimizer.defaults["betas"] == (0.9, 0.999)
        assert optimizer.defaults["eps"] == 1e-8
        assert optimizer.defaults["weight_decay"] == 1e-2
    sizes = {"lora": None, "dreambooth": len(list(model.unet.parameters())), "textual_inversion": 1}
    assert len(phi.param_groups[0]["params"]) == (sizes[adaptation] or 2 * len(theta_weights(model)))
    assert len(theta.param_groups[0]["params"]) == len(projections(model))


def theta_weights(model: Model) -> list[str]:
    return [name for name in projections(model) if name.endswith("weight")]


def test_rates_given_replace_the_tables() -> None:
    assert IMMA(lr=1.0, adapt_lr=0.0).rates() == {"adapt_lr": 0.0, "lr": 1.0}


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_exactly_the_attention_projections_are_released(
    model: Model, concept: Concept, examples: Examples, adaptation: Any
) -> None:
    delta, _ = run(IMMA(steps=2, adaptation=adaptation, lr=1e-2), model, concept, examples)

    pattern = re.compile(r"\.attn[12]\.to_(q|k|v|out\.0)\.(weight|bias)$")
    assert delta.dense.keys() == {f"unet.{n}" for n, _ in model.unet.named_parameters() if pattern.search(n)}
    assert not delta.low_rank
    assert all(bool(t.any()) for t in delta.dense.values())


@pytest.mark.parametrize("adaptation", ["lora", "textual_inversion"])
def test_an_adaptation_beside_theta_leaves_theta(
    model: Model, concept: Concept, examples: Examples, adaptation: Any
) -> None:
    """One step is phi's: it changes nothing that is released."""
    delta, _ = run(IMMA(steps=1, adaptation=adaptation, adapt_lr=1.0), model, concept, examples)

    assert delta.is_zero


def test_the_whole_unet_shares_its_storage_with_theta(model: Model, concept: Concept, examples: Examples) -> None:
    delta, _ = run(IMMA(steps=1, adaptation="dreambooth"), model, concept, examples)

    assert not delta.is_zero


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_ascent_alone_is_no_inner_step(model: Model, concept: Concept, examples: Examples, adaptation: Any) -> None:
    fields: Mapping[str, Any] = {"steps": 3, "adaptation": adaptation, "lr": 1e-3}

    naive, _ = run(IMMA(ascent_only=True, **fields), model, concept, examples)
    outer, _ = run(IMMA(inner=0, **fields), model, concept, examples)
    full, _ = run(IMMA(**fields), model, concept, examples)

    assert all(torch.equal(t, outer.dense[n]) for n, t in naive.dense.items())
    assert any(not torch.equal(t, full.dense[n]) for n, t in naive.dense.items())


def test_ascent_raises_the_loss(model: Model, concept: Concept, examples: Examples) -> None:
    """Before and after on the same latents, timesteps and noise."""
    delta, _ = run(IMMA(steps=20, batch=4, lr=1e-2, ascent_only=True), model, concept, examples)
    z_0, text = latents(model, examples.images)[0], model.encode_text(examples.captions)

    before, after = (
        denoising_loss(m, z_0, text, rng=torch.Generator().manual_seed(5)) for m in (model, model.with_delta(delta))
    )

    assert after > 1.02 * before


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_every_adaptation_is_a_function_of_its_generator(
    model: Model, concept: Concept, examples: Examples, adaptation: Any
) -> None:
    before = torch.get_rng_state()
    first, second = (run(IMMA(steps=3, adaptation=adaptation), model, concept, examples)[0] for _ in range(2))

    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(t, second.dense[n]) for n, t in first.dense.items())


def test_the_adapter_starts_as_the_identity(model: Model) -> None:
    copy = model.clone()
    unet = copy.denoiser
    z, text = torch.ones(1, *model.latent_shape), model.encode_text(["cat"])

    add_adapters(copy, rank=4, alpha=4, targets=TARGETS, rng=torch.Generator().manual_seed(0))

    a = torch.cat([p.flatten() for n, p in unet.named_parameters() if ".lora_A." in n])
    assert a.std().item() == pytest.approx(1 / 4, rel=0.1)
    before, after = (u(z, torch.tensor(3), encoder_hidden_states=text).sample for u in (model.unet, unet))
    assert torch.equal(before, after)


def test_the_new_word_of_one_known_word_is_that_word(model: Model) -> None:
    v, encode = new_word(model, "a")

    text = encode(torch.zeros(3, 1, 1))

    torch.testing.assert_close(text, model.encode_text(["a"] * 3))
    text.sum().backward()
    assert v.grad is not None
    assert bool(v.grad.any())


def test_the_new_word_of_a_phrase_starts_as_its_mean(model: Model) -> None:
    table, vocabulary = model.text_encoder.get_input_embeddings().weight, model.tokenizer.get_vocab()
    rows = [table[vocabulary[w]] for w in ("c", "a", "t</w>", "b</w>")]

    v, _ = new_word(model, "cat b")

    torch.testing.assert_close(v.data, torch.stack(rows).mean(0))


def test_passes_are_those_made(model: Model, concept: Concept, examples: Examples) -> None:
    method, meter = IMMA(steps=3, batch=2), model.meter
    before = meter.unet_forward + 2 * meter.unet_backward

    run(method, model, concept, examples)

    assert meter.unet_forward + 2 * meter.unet_backward - before == method.passes()


def test_a_loss_that_is_not_finite_stops(model: Model, concept: Concept, examples: Examples) -> None:
    broken = model.clone()
    with torch.no_grad():
        broken.unet.conv_out.bias.fill_(float("nan"))

    with pytest.raises(ValueError, match=r"expected a finite loss, got nan at step 0: lower .*1e-05"):
        run(IMMA(steps=1), broken, concept, examples)


def test_a_unet_without_attention_is_an_error(model: Model) -> None:
    with pytest.raises(ValueError, match="expected parameters named to_q"):
        projections(replace(model, unet=torch.nn.Linear(2, 2)))  # type: ignore[call-arg]


def test_a_draw_keeps_images_with_their_captions(model: Model, examples: Examples) -> None:
    """Every latent is a sample of its image's posterior and comes with its caption; each epoch has every image once."""
    small = recorded(model, [])
    mean, std = latents(small, examples.images)
    text = small.encode_text(examples.captions)
    draws = draw(small, examples, 2, rng=torch.Generator().manual_seed(0))
    seen, noise = [], []
    for _ in range(200):
        z_0, c = next(draws)
        for z, words in zip(z_0, c, strict=True):
            nearest = int((z - mean).square().mean((1, 2, 3)).argmin())
            seen.append(nearest)
            noise.append((z - mean[nearest]) / std[nearest])
            torch.testing.assert_close(words, text[nearest])

    assert sorted(seen[:4]) == sorted(seen[4:8]) == [0, 1, 2, 3]
    assert torch.stack(noise).mean().item() == pytest.approx(0, abs=0.03)
    assert torch.stack(noise).std().item() == pytest.approx(1, abs=0.03)
