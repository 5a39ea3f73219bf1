"""CLAMP's numbers are what they stand for on a parabola, and their slopes those of the numbers."""

from typing import Any

import pytest
import torch

from benchmark.diffusion import Model, denoising_loss
from benchmark.types import Concept, Examples
from defenses.clamp import CLAMP, Point, dot, scaled, unit
from defenses.data import latents


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Bowl:
    """1/2 w^T H w + b sum w^3 of five numbers in two tensors, eigenvalues of H from 0.5 to 2."""

    def __init__(self, b: float = 0.0) -> None:
        self.Q = torch.linalg.qr(numbers(1, 5, 5))[0]
        self.H = self.Q @ torch.diag(torch.linspace(0.5, 2, 5, dtype=torch.float64)) @ self.Q.T
        self.b, whole = b, numbers(2, 5)
        self.w: list[Any] = [whole[:2].clone().requires_grad_(True), whole[2:].clone().requires_grad_(True)]

    def value(self, w: torch.Tensor) -> torch.Tensor:
        return w @ self.H @ w / 2 + self.b * (w**3).sum()

    def loss(self) -> torch.Tensor:
        return self.value(torch.cat(self.w))

    def split(self, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return v[:2], v[2:]


def seen(bowl: Bowl, method: CLAMP, v: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """L_H(w_0), kap_t, L_H(w_K), || g_K ||, c^ of one look."""
    found: list[float] = []
    total = CLAMP.total

    def spy(self: CLAMP, given: Any) -> torch.Tensor:
        found.extend(number.item() for number in given)
        return total(self, given)

    monkeypatch.setattr(CLAMP, "total", spy)
    method.gain(bowl.loss, bowl.w, bowl.split(v))
    return found


def test_curvature_and_contraction_are_exact_on_a_parabola(monkeypatch: pytest.MonkeyPatch) -> None:
    """kap_t = u^T H u along each step, c^ = || (I - lr H) v ||."""
    bowl, v = Bowl(), unit((numbers(3, 5),))[0]
    w = torch.cat(bowl.w).detach()

    first, *kaps, last, n, c = seen(bowl, CLAMP(inner_lr=0.2, inner_steps=3), v, monkeypatch)

    assert first == pytest.approx(bowl.value(w).item())
    for kap in kaps:
        u = unit((bowl.H @ w,))[0]
        assert kap == pytest.approx((u @ bowl.H @ u).item(), rel=1e-8)
        w = w - 0.2 * bowl.H @ w
    assert (last, n) == pytest.approx((bowl.value(w).item(), (bowl.H @ w).norm().item()))
    assert c == pytest.approx((v - 0.2 * bowl.H @ v).norm().item(), rel=1e-8)


def test_the_tail_is_no_less_than_what_is_left_to_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """With v where T contracts least."""
    method = CLAMP(inner_lr=0.2)
    bowl = Bowl()
    _, *kaps, last, n, c = seen(bowl, method, bowl.Q[:, 0], monkeypatch)

    tail = method.tail(torch.tensor(n), torch.tensor(c), torch.tensor(max(kaps))).item()

    assert c == pytest.approx(0.9)
    assert tail >= last > 0


def test_the_slopes_are_those_of_the_numbers() -> None:
    """On a curve of third order, beside automatic second and third derivatives."""
    bowl, method, v = Bowl(b=0.1), CLAMP(inner_lr=0.3, probe=1e-3), unit((numbers(3, 5),))[0]
    at, w = Point(bowl.loss, bowl.w), torch.cat(bowl.w).detach().requires_grad_(True)
    slope = torch.func.grad(bowl.value)

    def contraction(w: torch.Tensor) -> torch.Tensor:
        T = [x - 0.3 * slope(x) for x in (w + 1e-3 * v, w)]
        return (T[0] - T[1]).norm() / 1e-3

    c, found = method.contraction(at, bowl.split(v), at.look()[1])
    bend = method.along(at, unit(at.look()[1]))

    assert c.item() == pytest.approx(contraction(w).item())
    torch.testing.assert_close(torch.cat(found), torch.func.grad(contraction)(w), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.cat(bend), torch.func.grad(lambda x: slope(x).norm())(w), rtol=1e-4, atol=1e-6)


def test_a_gain_that_stays_below_the_margin_weighs_nothing() -> None:
    """What is left then is contraction, curvature and ascent."""
    method = CLAMP(m=100.0, weight_contraction=0.0, weight_curvature=0.0, weight_ascent=0.5, inner_lr=0.1)
    bowl = Bowl()
    g = torch.cat(bowl.w).detach() @ bowl.H

    loss, gradient = method.gain(bowl.loss, bowl.w, bowl.split(numbers(3, 5)))

    assert loss.item() == pytest.approx(-0.5 * bowl.value(torch.linalg.solve(bowl.H, g)).item())
    torch.testing.assert_close(torch.cat(gradient), -0.5 * g)


def test_a_look_leaves_the_weights_and_sums_are_plain() -> None:
    bowl = Bowl()
    before = [p.detach().clone() for p in bowl.w]

    Point(bowl.loss, bowl.w).look((bowl.split(numbers(4, 5)), 0.1), (bowl.split(numbers(5, 5)), -0.3))

    assert all(torch.equal(a, b) for a, b in zip(before, bowl.w, strict=True))
    one, other = (torch.tensor([1.0, 2.0]),), (torch.tensor([3.0, 4.0]),)
    assert dot(one, other).item() == 11
    assert scaled(one, other, 2, -1)[0].tolist() == [-1, 0]


def test_the_attention_is_immunised_and_ascent_alone_raises_the_loss(
    model: Model, concept: Concept, examples: Examples
) -> None:
    off = dict.fromkeys(("weight_primary", "weight_gain", "weight_contraction", "weight_curvature"), 0.0)
    method = CLAMP(steps=4, batch=4, lr=1e-2, inner_steps=1, weight_ascent=1.0, **off)
    rng, before = torch.Generator().manual_seed(0), model.meter.unet_forward + 2 * model.meter.unet_backward

    delta = method.protect(
        model, concept, {"concept": examples, "safe": examples}, rng=rng, report=lambda *, step, total, loss: None
    )

    assert model.meter.unet_forward + 2 * model.meter.unet_backward - before == method.passes()
    assert all(".attn" in name and ".to_" in name for name in delta.dense)
    z_0, text = latents(model, examples.images)[0], model.encode_text(examples.captions)
    one, other = (
        denoising_loss(m, z_0, text, rng=torch.Generator().manual_seed(5)).item()
        for m in (model, model.with_delta(delta))
    )
    assert other > one
