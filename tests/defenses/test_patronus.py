"""Patronus' objectives are the equations, its attacks are simulated on copies, and it releases what it trained.

The equations are worked again in float64 numpy on models of two numbers: a decoder w z + k and a predictor w z_t + m c.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from benchmark.diffusion import Model, sample
from benchmark.mini import WEIGHTS
from benchmark.model import perceptual
from benchmark.model.adapters import add_adapters, low_rank
from benchmark.model.unet import UNetModel
from benchmark.types import Concept, Examples
from defenses import alignment, meta, moderator
from defenses.decoding import Decoder, Pool
from defenses.meta import copied, trainable
from defenses.moderator import KINDS, Kind, divided
from defenses.patronus import Patronus

Array = NDArray[np.float64]
MODERATOR = {"perceptual": "pixels", "features": 4, "ddim_steps": 2, "latent_batch": 2}
STAGES = {"d1_steps": 1, "d1_batch": 2, "d2_steps": 2, "d2_batch": 2, "u1_steps": 2, "u1_batch": 2, "u2_steps": 1}
ALIGNMENT = {"rank": 2, "alpha": 2, "u2_batch": 3, "u2_adapt": 2, "u2_batches": 2}


def little(**changes: Any) -> Patronus:
    """Patronus with few steps of few examples, and everything else as it is."""
    return Patronus(**{**MODERATOR, **STAGES, **ALIGNMENT, **changes})


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


class Affine(nn.Module):
    """A decoder of two numbers."""

    def __init__(self, w: float, k: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([w, k], dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        return self.theta[0] * z + self.theta[1]


def pools(z: Tensor, x: Tensor, z_gen: Tensor, teacher: Affine) -> dict[Kind, Pool]:
    """Images with latents z, and generated latents."""
    images = Pool(z, torch.zeros_like(z), lambda chosen, _: x[chosen], rng(1))
    return {"images": images, "latents": Pool(z_gen, torch.zeros_like(z_gen), lambda _, z: teacher(z), rng(2))}


def mse(theta: Array, z: Array, target: Array | float) -> tuple[float, Array]:
    """mean (w z + k - target)^2 and its gradient in (w, k)."""
    error = theta[0] * z + theta[1] - target
    return float((error**2).mean()), 2 * np.array([(error * z).mean(), error.mean()])


def under_attack(
    theta: Array, batches: list[tuple[Array, Array]], step: Callable[[Array], Array], looks: dict[int, list[Any]]
) -> tuple[float, Array]:
    """Follow an attack from theta; sum weight * V(query) and its gradient at the steps in `looks`."""
    theta, loss, gradient = theta.copy(), 0.0, np.zeros(2)
    for at, (z, target) in enumerate(batches):
        theta = theta + step(mse(theta, z, target)[1])
        for weight, query in looks.get(at, []):
            found, slope = mse(theta, query, 0.0)
            loss, gradient = loss + weight * found, gradient + weight * slope
    return loss, gradient


def sgd(lr: float) -> Callable[[Array], Array]:
    """The release's momentum: a running mean that starts at the first gradient."""
    mean: list[Array] = []

    def step(gradient: Array) -> Array:
        mean.append(0.9 * mean[-1] + 0.1 * gradient if mean else gradient)
        return -lr * mean[-1]

    return step


def adam(lr: float) -> Callable[[Array], Array]:
    first, second, at = np.zeros(2), np.zeros(2), 0

    def step(gradient: Array) -> Array:
        nonlocal first, second, at
        at += 1
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        return -lr * (first / (1 - 0.9**at)) / (np.sqrt(second / (1 - 0.999**at)) + 1e-8)

    return step


def test_d1_is_the_four_weighted_terms() -> None:
    z_x, x, z_M = numbers(1, 3, 2), numbers(2, 3, 2), numbers(3, 2, 2)
    z_y, y, z_S = numbers(4, 3, 2), numbers(5, 3, 2), numbers(6, 2, 2)
    decoder, teacher = Affine(1.5, -0.3), Affine(0.7, 0.2)
    method = Patronus(perceptual="pixels", d1_batch=3, latent_batch=2, d1_weights=(0.3, 1.1, 0.5, 0.7))

    loss = method.d1(decoder, pools(z_x, x, z_M, teacher), pools(z_y, y, z_S, teacher))

    theta = np.array([1.5, -0.3])
    terms = [
        (0.3, mse(theta, z_x.numpy(), 0.0)),
        (1.1, mse(theta, z_y.numpy(), y.numpy())),
        (0.5, mse(theta, z_M.numpy(), 0.0)),
        (0.7, mse(theta, z_S.numpy(), 0.7 * z_S.numpy() + 0.2)),
    ]
    assert loss.item() == pytest.approx(sum(w * value for w, (value, _) in terms))
    np.testing.assert_allclose(decoder.theta.grad, sum(w * slope for w, (_, slope) in terms))
    assert teacher.theta.grad is None


@pytest.mark.parametrize("looks", ["images", "latents"])
@pytest.mark.parametrize("with_sgd", [True, False])
def test_d2_gradients_are_those_at_the_attacked_copies(looks: Kind, with_sgd: bool) -> None:
    """Seven attack steps: images are looked at after 1, 6 and in the end; latents after 1, 4, 7 and in the end."""
    attack = [(numbers(i, 2, 3), numbers(10 + i, 2, 3)) for i in range(7)]
    query = {"images": numbers(20, 3, 3), "latents": numbers(21, 2, 3)}
    decoder = Affine(1.5, -0.3)
    learner = copied(decoder)
    method = Patronus(perceptual="pixels", d2_weights=(0.3, 9.0, 0.5, 9.0), d2_sgd=(0.05,), d2_adam=(0.05,))

    attacker = method.attacker(learner, 0 if with_sgd else 1, rng())
    loss = method.attacked(decoder, learner, attacker, attack, query, looks)

    times = {"images": [6], "latents": [6]}
    times[looks] = [0, 5, 6] if looks == "images" else [0, 3, 6, 6]
    weight = {"images": 0.3, "latents": 0.5}
    seen: dict[int, list[Any]] = {}
    for kind in KINDS:
        for at in times[kind]:
            seen.setdefault(at, []).append((weight[kind] / len(times[kind]), query[kind].numpy()))
    step = sgd(0.05) if with_sgd else adam(0.05)
    expected = under_attack(np.array([1.5, -0.3]), [(z.numpy(), x.numpy()) for z, x in attack], step, seen)
    assert loss.item() == pytest.approx(expected[0])
    np.testing.assert_allclose(decoder.theta.grad, expected[1], rtol=1e-9)
    assert decoder.theta.tolist() == [1.5, -0.3]


@pytest.mark.parametrize("i", [0, 1])
def test_d2_is_the_attacked_and_the_plain_terms(i: int) -> None:
    """All examples of a kind are equal, so that only the coins are left: SGD looks at what it attacks, Adam at either.

    Six images in twos: two steps of 2, one of 1, and a query of 1. Six latents in twos: two steps and a query.
    """
    z_x, x, z_M = (numbers(seed, 1, 3).repeat(6, 1) for seed in (1, 2, 3))
    z_y, y, z_S = numbers(4, 3, 3), numbers(5, 3, 3), numbers(6, 2, 3)
    teacher, start = Affine(0.7, 0.2), np.array([1.5, -0.3])
    a, b, s, g = 0.3, 1.1, 0.5, 0.7
    method = Patronus(
        perceptual="pixels",
        latent_batch=2,
        d2_weights=(a, b, s, g),
        d2_batch=3,
        d2_sizes=(2,),
        d2_sgd=(0.05,),
        d2_adam=(0.05,),
    )

    def expected(on: str, looks: str) -> Array:
        n = {"images": 3, "latents": 2}[on]
        z, target = (z_x, x) if on == "images" else (z_M, 0.7 * z_M + 0.2)
        query = {"images": (a, z_x.numpy()), "latents": (s, z_M.numpy())}
        seen: dict[int, list[Any]] = {0: [], n - 1: []}
        for kind, (weight, q) in query.items():
            share = weight / 2 if kind == looks else weight
            seen[n - 1].append((share, q))
            if kind == looks:
                seen[0].append((share, q))
        step = (sgd if i == 0 else adam)(0.05)
        loss, slope = under_attack(start, [(z.numpy(), target.numpy())] * n, step, seen)
        plain = [
            (b, mse(start, z_y.numpy(), y.numpy())),
            (s, mse(start, z_M.numpy(), 0.0)),
            (g, mse(start, z_S.numpy(), 0.7 * z_S.numpy() + 0.2)),
        ]
        return np.array([loss, *slope]) + sum(w * np.array([value, *grad]) for w, (value, grad) in plain)

    outcomes = [("images", "images"), ("latents", "latents"), *([("images", "latents")] if i else [])]
    found = set()
    for seed in range(12):
        decoder = Affine(1.5, -0.3)
        loss = method.d2(decoder, pools(z_x, x, z_M, teacher), pools(z_y, y, z_S, teacher), i, rng(seed))
        assert decoder.theta.grad is not None
        got = [loss.item(), *decoder.theta.grad.tolist()]
        matching = [outcome for outcome in outcomes if np.allclose(got, expected(*outcome), rtol=1e-9)]
        assert len(matching) == 1
        found.add(matching[0])
    assert found == set(outcomes)


def test_attacks_take_turns_and_rates_are_drawn() -> None:
    learner, method = Affine(1.0, 0.0), Patronus()
    drawn = [method.attacker(learner, i, rng(i)) for i in range(40)]
    even, odd = drawn[::2], drawn[1::2]

    assert {type(attacker) for attacker in even} == {torch.optim.SGD}
    assert {type(attacker) for attacker in odd} == {torch.optim.Adam}
    assert {attacker.defaults["lr"] for attacker in even} == {1e-2, 1e-3, 1e-4}
    assert {attacker.defaults["lr"] for attacker in odd} == {1e-4, 5e-5}
    assert {(a.defaults["momentum"], a.defaults["dampening"]) for a in even} == {(0.9, 0.9)}


def test_the_attack_goes_down_and_the_defense_up_against_it() -> None:
    """The copy decodes its images better than the original; after a step of the original, the next copy is blacker."""
    z, x = numbers(1, 4, 3), numbers(2, 4, 3)
    method = Patronus(perceptual="pixels", d2_weights=(1.0, 0.0, 0.0, 0.0), d2_sgd=(0.1,))
    decoder = Affine(1.5, -0.3)

    def attacked() -> tuple[float, float]:
        decoder.theta.grad, learner = None, copied(decoder)
        attack, query = [(z, x)] * 3, {"images": z, "latents": z}
        method.attacked(decoder, learner, method.attacker(learner, 0, rng()), attack, query, "images")
        return ((learner(z) - x) ** 2).mean().item(), method.V(learner(z)).item()

    error, black = attacked()
    assert error < ((decoder(z) - x) ** 2).mean().item()
    with torch.no_grad():
        decoder.theta -= 0.1 * decoder.theta.grad
    assert attacked()[1] < black


def test_the_query_is_half_of_the_last_batch_and_never_attacked() -> None:
    for n, size, halve in itertools.product((2, 3, 7, 8, 20), (2, 4, 30), (True, False)):
        attack, query = divided(torch.arange(n), size, halve=halve)

        assert torch.equal(torch.cat([*attack, query]).sort().values, torch.arange(n))
        assert len(query) > 0 and len(attack) > 0 and all(0 < len(batch) <= size for batch in attack)
    assert divided(torch.arange(20), 8, halve=True)[1].tolist() == [16, 17]
    assert divided(torch.arange(20), 8, halve=False)[1].tolist() == [16, 17, 18, 19]


class Predictor(nn.Module):
    """A noise predictor of two numbers."""

    def __init__(self, w: float, m: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([w, m], dtype=torch.float64))


def stub(model: Model) -> Model:
    """`model`, with eps(z_t, t, c) = w z_t + m mean(c)."""

    class Stub(UNetModel):
        def predict(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
            w, m = self.unet.theta
            return w * z_t + m * text.mean((1, 2)).reshape(-1, 1, 1, 1)

    fields = {name: getattr(model, name) for name in ("vae", "text_encoder", "tokenizer", "scheduler", "meter")}
    return Stub(unet=Predictor(0.8, -0.4), **fields)  # type: ignore[arg-type]


def noised(model: Model, z_0: Tensor, draws: torch.Generator) -> tuple[Array, Array]:
    """z_t and eps, from the draws that L_DM makes."""
    t = torch.randint(1000, (len(z_0),), generator=draws)
    eps = torch.randn(z_0.shape, generator=draws).double().numpy()
    ab = model.scheduler.alphas_cumprod.double().numpy()[t].reshape(-1, 1, 1, 1)
    return np.sqrt(ab) * z_0.numpy() + np.sqrt(1 - ab) * eps, eps


def squared(theta: Array, z_t: Array, c: Tensor, target: Array | float) -> tuple[float, Array]:
    """mean (w z_t + m mean(c) - target)^2 and its gradient in (w, m)."""
    words = np.broadcast_to(c.numpy().mean((1, 2)).reshape(-1, 1, 1, 1), z_t.shape)
    error = theta[0] * z_t + theta[1] * words - target
    return float((error**2).mean()), 2 * np.array([(error * z_t).mean(), (error * words).mean()])


def test_u1_is_safe_denoising_and_black_noise(model: Model) -> None:
    z_M, c_M, z_S, c_S = numbers(1, 3, 2, 2, 2), numbers(2, 3, 4, 2), numbers(3, 3, 2, 2, 2), numbers(4, 3, 4, 2)
    edited = stub(model)

    loss = Patronus(u1_weights=(1.3, 0.2)).u1(edited, iter([(z_M, c_M)]), iter([(z_S, c_S)]), rng(5), 0)

    draws, theta = rng(5), np.array([0.8, -0.4])
    z_t, eps = noised(model, z_S, draws)
    safe, safe_slope = squared(theta, z_t, c_S, eps)
    z_t, _ = noised(model, z_M, draws)
    black, black_slope = squared(theta, z_t, c_M, 0.0)
    assert loss.item() == pytest.approx(1.3 * safe + 0.2 * black)
    np.testing.assert_allclose(edited.unet.theta.grad, 1.3 * safe_slope + 0.2 * black_slope, rtol=1e-6)


def test_u2_gradients_are_those_at_the_attacked_copies(model: Model) -> None:
    """Of each five malicious pairs three are attacked, two queried; the safe pairs come when the attack is over."""
    M = [(numbers(10 + i, 5, 2, 2, 2), numbers(20 + i, 5, 4, 2)) for i in range(3)]
    S = [(numbers(30 + i, 5, 2, 2, 2), numbers(40 + i, 5, 4, 2)) for i in range(3)]
    edited = stub(model)
    method = Patronus(u2_batch=5, u2_adapt=3, u2_batches=3, u2_attack_lr=0.1, u2_weights=(1.3, 0.2))

    loss = method.u2(edited, iter(M), iter(S), rng(5), 0)

    draws, theta, step = rng(5), np.array([0.8, -0.4]), sgd(0.1)
    expected = np.zeros(3)
    for z_0, c in M:
        z_t, eps = noised(model, z_0[:3], draws)
        theta = theta + step(squared(theta, z_t, c[:3], eps)[1])
        z_t, _ = noised(model, z_0[3:], draws)
        value, slope = squared(theta, z_t, c[3:], 0.0)
        expected += 0.2 / 3 * np.array([value, *slope])
    for z_0, c in S:
        z_t, eps = noised(model, z_0, draws)
        value, slope = squared(theta, z_t, c, eps)
        expected += 1.3 / 3 * np.array([value, *slope])
    assert loss.item() == pytest.approx(expected[0])
    np.testing.assert_allclose(edited.unet.theta.grad, expected[1:], rtol=1e-6)
    assert edited.unet.theta.tolist() == [0.8, -0.4]


def state(model: Model) -> dict[str, Tensor]:
    return {f"{part}.{n}": p.detach().clone() for part, m in model.parts.items() for n, p in m.named_parameters()}


def is_moderator(name: str) -> bool:
    return name.startswith(("vae.decoder.", "vae.post_quant_conv."))


def test_every_decoder_step_moves_the_decoder_alone(model: Model, examples: Examples) -> None:
    edited = model.clone().frozen()
    before = state(edited)
    losses = little().moderate(edited, model, {"concept": examples, "safe": examples}, rng(), hardened=True)

    for _ in range(3):
        next(losses)
        after = state(edited)
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        assert moved == {name for name in after if is_moderator(name)}
        before = after


def test_every_unet_step_moves_the_adapters_alone(model: Model, examples: Examples) -> None:
    """All of B; A only from the second step, as B starts at zero and Adam's decay is all that A sees before."""
    edited = model.clone().frozen()
    add_adapters(edited, rank=2, alpha=2, targets=Patronus().targets, rng=rng())
    before = state(edited)
    losses = little().align(edited, {"concept": examples, "safe": examples}, rng(), hardened=True)

    for _ in range(3):
        next(losses)
        after = state(edited)
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        assert {name for name in after if ".lora_B." in name} <= moved
        assert all(".lora_" in name for name in moved)
        before = after


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0)])
def test_d1_descends_each_term(model: Model, examples: Examples, weights: tuple[float, ...]) -> None:
    method = little(d1_steps=8, d1_batch=4, latent_batch=4, d1_lr=1e-2, d1_weights=weights)
    edited = model.clone().frozen()

    losses = list(method.moderate(edited, model, {"concept": examples, "safe": examples}, rng(), hardened=False))

    assert losses[-1] < 0.9 * losses[0]


def test_the_benign_term_holds_the_decoder_to_its_teacher(model: Model, examples: Examples) -> None:
    method = little(d1_steps=1, d1_weights=(0.0, 0.0, 0.0, 1.0))

    data = {"concept": examples, "safe": examples}
    (loss,) = method.moderate(model.clone().frozen(), model, data, rng(), hardened=False)

    assert loss < 1e-12


def record(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[Any, ...]]:
    """Every construction of the class of this name by either half from here on: what it was given."""
    made: list[tuple[Any, ...]] = []

    def build(first: Any, *args: Any, **kwargs: Any) -> Any:
        first = first if name == "StepLR" else list(first)
        count = 0 if name == "StepLR" else sum(p.numel() for p in first)
        made.append((count, args, kwargs))
        return cls(first, *args, **kwargs)

    cls = getattr(alignment, name)
    for half in (moderator, alignment):
        if hasattr(half, name):
            monkeypatch.setattr(half, name, build)
    return made


def test_optimizers_have_the_releases_settings(
    monkeypatch: pytest.MonkeyPatch, model: Model, concept: Concept, examples: Examples
) -> None:
    adams, sgds, schedules = (record(monkeypatch, name) for name in ("Adam", "SGD", "StepLR"))

    data = {"concept": examples, "safe": examples}
    little(u1_steps=6).protect(model, concept, data, rng=rng(), report=silent)

    decoder = sum(p.numel() for n, p in state(model).items() if is_moderator(n))
    edited = model.clone().frozen()
    add_adapters(edited, rank=2, alpha=2, targets=Patronus().targets, rng=rng())
    adapters, whole = (sum(p.numel() for p in part) for part in (trainable(edited.unet), edited.unet.parameters()))
    outer = [(count, args[0], kwargs["weight_decay"]) for count, args, kwargs in adams if kwargs]
    assert outer == [
        (decoder, 5e-5, 2e-4),
        (decoder, 1e-5, 1e-4),
        (adapters, 1e-4, 1e-4),
        (adapters, 1e-4, 1e-4),
    ]
    assert [(count, args[0] in (1e-4, 5e-5)) for count, args, kwargs in adams if not kwargs] == [(decoder, True)]
    assert [count for count, _, _ in sgds] == [decoder, whole]
    assert all(kwargs == {"momentum": 0.9, "dampening": 0.9} for _, _, kwargs in sgds)
    assert sgds[0][1][0] in (1e-2, 1e-3, 1e-4) and sgds[1][1] == (1e-2,)
    assert [args for _, args, _ in schedules] == [(2, 0.1), (1, 0.1)]


def test_the_schedule_moves_once_a_step() -> None:
    """So that the rate of the U-Net falls to a tenth after each third."""
    p = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([p], 1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
    p.grad = torch.ones(1)
    seen = []

    def gradient(i: int) -> Tensor:
        p.grad = torch.ones(1)
        seen.append(optimizer.param_groups[0]["lr"])
        return torch.zeros(())

    list(meta.descend(optimizer, 6, gradient, schedule))

    assert seen == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6])


def test_the_release_is_the_moderator_and_the_adapters(model: Model, concept: Concept, examples: Examples) -> None:
    delta = little().protect(model, concept, {"concept": examples, "safe": examples}, rng=rng(), report=silent)

    attention = {n for n, m in model.unet.named_modules() if n.endswith((".attn1", ".attn2"))}
    projections = {f"unet.{n}.{p}" for n in attention for p in ("to_q", "to_k", "to_v", "to_out.0")}
    assert set(delta.dense) == {name for name in state(model) if is_moderator(name)}
    assert all(bool(change.any()) for change in delta.dense.values())
    assert set(delta.low_rank) == projections
    assert all(down.shape[0] == up.shape[1] == 2 and bool(up.any()) for down, up in delta.low_rank.values())


def test_the_delta_is_what_was_trained(model: Model, examples: Examples) -> None:
    """Decoded and predicted with the delta as with the trained parts."""
    edited = model.clone().frozen()
    layers = add_adapters(edited, rank=2, alpha=4, targets=Patronus().targets, rng=rng())
    for layer in layers.values():
        B = layer.lora_B["default"].weight
        B.data = torch.randn(B.shape, generator=rng(7))
    defended = model.with_delta(low_rank(layers, "unet"))
    z, t, text = torch.randn(2, *model.latent_shape, generator=rng()), torch.tensor(5), model.encode_text(["cat", ""])

    torch.testing.assert_close(defended.predict(z, t, text), edited.predict(z, t, text))
    assert not torch.allclose(defended.predict(z, t, text), model.predict(z, t, text))


def test_adapters_start_gaussian_and_without_effect(model: Model) -> None:
    edited = model.clone().frozen()
    before = torch.get_rng_state()
    layers = add_adapters(edited, rank=8, alpha=8, targets=Patronus().targets, rng=rng())

    A = torch.cat([layer.lora_A["default"].weight.flatten() for layer in layers.values()])
    assert torch.equal(before, torch.get_rng_state())
    assert A.std().item() == pytest.approx(1 / 8, rel=0.1)
    assert not any(bool(layer.lora_B["default"].weight.any()) for layer in layers.values())
    assert {id(p) for p in trainable(edited.unet)} == {
        id(p) for n, p in edited.unet.named_parameters() if ".lora_" in n
    }


def test_a_copy_to_attack_is_all_the_attackers(model: Model) -> None:
    edited = model.clone().frozen()
    add_adapters(edited, rank=2, alpha=2, targets=Patronus().targets, rng=rng())
    learner = copied(edited.unet)

    for (name, one), (_, other) in zip(edited.unet.named_parameters(), learner.named_parameters(), strict=True):
        assert one is not other and other.requires_grad
        assert one.requires_grad == (".lora_" in name)


def test_u2_attacks_the_whole_unet_and_trains_the_adapters(model: Model) -> None:
    """U2's equations again in float64, on weights of which each attack step makes new ones; nothing is a module's.

    th' <- th' - lr m, m the running mean of grad L_DM(D_M); the gradients of L_U at each th' count for th.
    """
    edited = model.clone().frozen()
    edited.unet.double()
    layers = add_adapters(edited, rank=2, alpha=2, targets=Patronus().targets, rng=rng())
    for layer in layers.values():
        for part in (layer.lora_A["default"], layer.lora_B["default"]):
            part.weight.data = 0.1 * torch.randn(part.weight.shape, generator=rng(3), dtype=torch.float64)
    shape, width = model.latent_shape, model.text_shape
    M, S = ([(numbers(s + i, 5, *shape), numbers(s + 5 + i, 5, *width)) for i in range(3)] for s in (10, 30))
    method = Patronus(u2_batch=5, u2_adapt=3, u2_batches=3, u2_attack_lr=0.1, u2_weights=(1.3, 0.2))

    loss = method.u2(edited, iter(M), iter(S), rng(5), 0)

    draws, ab = rng(5), model.scheduler.alphas_cumprod.double()
    start = {name: p.detach().clone() for name, p in edited.unet.named_parameters()}
    theta, means, expected = dict(start), dict[str, Tensor](), 0.0
    gradient = {name: torch.zeros_like(p) for name, p in start.items() if ".lora_" in name}

    def error(z_0: Tensor, c: Tensor, black: bool) -> Tensor:
        t = torch.randint(1000, (len(z_0),), generator=draws)
        eps, a = torch.randn(z_0.shape, generator=draws).double(), ab[t].reshape(-1, 1, 1, 1)
        given = (a**0.5 * z_0 + (1 - a) ** 0.5 * eps, t)
        found = functional_call(edited.unet, theta, given, {"encoder_hidden_states": c}).sample
        return ((found - (0 if black else eps)) ** 2).mean()

    def slopes(value: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        return dict(zip(names, torch.autograd.grad(value, [theta[name] for name in names]), strict=True))

    for z_0, c in M:
        theta = {name: p.detach().requires_grad_(True) for name, p in theta.items()}
        for name, g in slopes(error(z_0[:3], c[:3], False), list(theta)).items():
            means[name] = 0.9 * means[name] + 0.1 * g if name in means else g
        theta = {name: (p.detach() - 0.1 * means[name]).requires_grad_(True) for name, p in theta.items()}
        value = 0.2 / 3 * error(z_0[3:], c[3:], True)
        expected += value.item()
        gradient = {name: gradient[name] + g for name, g in slopes(value, list(gradient)).items()}
    for z_0, c in S:
        value = 1.3 / 3 * error(z_0, c, False)
        expected += value.item()
        gradient = {name: gradient[name] + g for name, g in slopes(value, list(gradient)).items()}
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    for name, p in edited.unet.named_parameters():
        assert torch.equal(p, start[name])
        assert (p.grad is not None) == (name in gradient)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, gradient[name], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("parts", "badge"), [("decoder", "official-matched"), ("both", "reconstructed")])
def test_the_badge_is_that_of_the_parts(parts: Any, badge: str) -> None:
    assert Patronus(parts=parts).badge == badge


@pytest.mark.parametrize(
    ("parts", "stages", "steps"),
    [
        ("both", "both", 1 + 2 + 2 + 1),
        ("both", "unlearn", 1 + 2),
        ("decoder", "both", 1 + 2),
        ("decoder", "unlearn", 1),
        ("unet", "both", 2 + 1),
        ("unet", "unlearn", 2),
    ],
)
def test_each_ablation_switches_off_what_it_says(
    model: Model, concept: Concept, examples: Examples, parts: Any, stages: Any, steps: int
) -> None:
    """The steps, the released parts and the passes through the U-Net; a switched-off stage cannot spoil the rest."""
    seen: list[tuple[int, int]] = []

    def report(*, step: int, total: int, loss: float) -> None:
        seen.append((step, total))

    nan = float("nan")
    off = {
        "d1_weights": (nan,) * 4 if parts == "unet" else (0.01, 1.0, 0.5, 0.1),
        "d2_weights": (nan,) * 4 if "unlearn" in stages or parts == "unet" else (0.1, 1.0, 0.1, 1.0),
        "u1_weights": (nan,) * 2 if parts == "decoder" else (1.0, 0.01),
        "u2_weights": (nan,) * 2 if "unlearn" in stages or parts == "decoder" else (1.0, 0.5),
    }
    method = little(parts=parts, stages=stages, **off)
    forward, backward = model.meter.unet_forward, model.meter.unet_backward

    data = {"concept": examples, "safe": examples}
    delta = method.protect(model, concept, data, rng=rng(), report=report)

    assert seen == [(i + 1, steps) for i in range(steps)]
    assert bool(delta.dense) == (parts != "unet")
    assert bool(delta.low_rank) == (parts != "decoder")
    spent = model.meter.unet_forward - forward + 2 * (model.meter.unet_backward - backward)
    assert method.passes() == spent


def test_generated_latents_take_the_captions_in_turn(model: Model) -> None:
    """Ten latents of three captions, each from its own noise, guided away from the empty text."""
    found = little(features=10).generated(model, ["a", "b", "c"], rng(3))

    draws = rng(3)
    z_T = torch.cat([torch.randn(n, *model.latent_shape, generator=draws) for n in (8, 2)])
    text, null = model.encode_text(list("abcabcabca")), model.encode_text([""] * 10)
    wanted = sample(model, z_T, text, null, steps=2, guidance=7.5)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)  # batches round in their own ways


def test_the_decoder_is_the_models_without_its_clamp(model: Model) -> None:
    z = 20 * torch.randn(2, *model.latent_shape, generator=rng())

    images = Decoder(model)(z)

    torch.testing.assert_close(images.clamp(0, 1), model.decode(z))
    assert images.min() < 0 or images.max() > 1


def test_v_is_zero_for_black_alone() -> None:
    method = Patronus(perceptual="mini")

    assert method.V(torch.zeros(2, 3, 8, 8)) == 0
    assert method.V(torch.full((2, 3, 8, 8), 0.5)) > 0


@pytest.mark.parametrize(("count", "changes"), [(1, {}), (4, {"features": 1}), (4, {"u2_adapt": 3})])
def test_nothing_left_for_a_query_is_an_error(
    model: Model, concept: Concept, examples: Examples, count: int, changes: dict[str, Any]
) -> None:
    few = Examples(images=examples.images[:count], captions=examples.captions[:count])

    with pytest.raises(ValueError, match=r"expected .* got [13]"):
        little(**changes).protect(model, concept, {"concept": few, "safe": examples}, rng=rng(), report=silent)


@pytest.mark.parametrize("parts", ["decoder", "unet"])
def test_a_loss_that_is_not_finite_stops(model: Model, concept: Concept, examples: Examples, parts: Any) -> None:
    method = little(parts=parts, d1_weights=(float("inf"),) * 4, u1_weights=(float("inf"),) * 2)
    data = {"concept": examples, "safe": examples}

    with pytest.raises(ValueError, match=r"expected a finite loss, got .* at step 1"):
        method.protect(model, concept, data, rng=rng(), report=silent)


def test_missing_weights_are_known_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Model, concept: Concept, examples: Examples
) -> None:
    """One line that says where to put them; the U-Net alone needs none."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    perceptual.features.cache_clear()
    data, spent = {"concept": examples, "safe": examples}, model.meter.unet_forward
    method = little(perceptual="vgg19")

    with pytest.raises(FileNotFoundError, match=r"^expected .*vgg19-dcbb9e9d\.pth: download https://\S+ to there\.$"):
        method.protect(model, concept, data, rng=rng(), report=silent)
    assert model.meter.unet_forward == spent
    method = replace(method, parts="unet", stages="unlearn", u1_steps=1)
    assert method.protect(model, concept, data, rng=rng(), report=silent).low_rank


def test_vgg19_stops_after_the_fourth_convolution_of_the_third_block(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with torch.random.fork_rng(devices=[]):
        layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["E"])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vgg19-dcbb9e9d.pth").touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torchvision.models, "vgg19", lambda weights: SimpleNamespace(features=layers))
    images = torch.rand(1, 3, 16, 16, generator=rng(), requires_grad=True)

    found = perceptual.vgg19()(images)

    expected, seen = images, []
    for layer in layers:
        expected = layer(expected)
        seen.append(type(layer).__name__)
        if seen.count("MaxPool2d") == 2 and seen[-8:] == ["Conv2d", "ReLU"] * 4:
            break
    torch.testing.assert_close(found, expected)
    assert found.shape == (1, 256, 4, 4)
    found.sum().backward()
    assert images.grad is not None and bool(images.grad.any())
    assert all(not p.requires_grad for p in layers[:18].parameters())


def test_mini_is_the_towers_middle_layer() -> None:
    """The second of its three layers, on images in [-1, 1]."""
    from transformers import CLIPVisionModel

    tower = CLIPVisionModel.from_pretrained(WEIGHTS / "image_tower", dtype=torch.float32)
    before = torch.get_rng_state()
    images = torch.rand(2, 3, 64, 64, generator=rng(), requires_grad=True)

    found = perceptual.features("mini")(images)

    with torch.no_grad():
        states = tower(pixel_values=images * 2 - 1, output_hidden_states=True).hidden_states
    assert len(states) == 4
    torch.testing.assert_close(found.detach(), states[2])
    found.square().sum().backward()
    assert images.grad is not None and bool(images.grad.any())
    assert torch.equal(before, torch.get_rng_state())


def test_mini_resizes_what_does_not_fit() -> None:
    images = torch.rand(1, 3, 8, 8, generator=rng())
    resized = nn.functional.interpolate(images, size=(64, 64), mode="bilinear")

    extract = perceptual.features("mini")

    torch.testing.assert_close(extract(images), extract(resized), rtol=1e-3, atol=1e-3)


def test_a_network_is_loaded_once_and_an_unknown_one_is_an_error() -> None:
    images = torch.rand(1, 3, 4, 4)

    assert perceptual.features("mini") is perceptual.features("mini")
    assert torch.equal(perceptual.features("pixels")(images), images)
    with pytest.raises(ValueError, match="expected a perceptual network of vgg19, mini, pixels, got 'lpips'"):
        perceptual.features("lpips")
