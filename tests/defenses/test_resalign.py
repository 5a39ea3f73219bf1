"""ResAlign's hypergradient is the truncated Neumann series, and its parts are what the notes on its release say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import defenses.resalign
from benchmark.diffusion import Model, denoising_loss
from benchmark.model.adapters import add_adapters, low_rank
from benchmark.types import Concept, Delta, Examples
from defenses.curvature import hessian, neumann, norm, powers
from defenses.meta import trainable
from defenses.resalign import DOWN, TARGETS, UP, ResAlign, begin, gated
from defenses.simulated import CONFIGURATIONS, Configuration, Data, adapted, finetune


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


class Bowl:
    """l_in(w) = 1/2 (w - a)^T H (w - a) of six numbers in two tensors, || H || = `size`."""

    def __init__(self, size: float = 0.7) -> None:
        Q = torch.linalg.qr(torch.randn(6, 6, generator=rng(1), dtype=torch.float64))[0]
        self.H = Q @ torch.diag(size * torch.linspace(0.1, 1, 6, dtype=torch.float64)) @ Q.T
        self.a = torch.randn(6, generator=rng(2), dtype=torch.float64)
        whole = torch.randn(6, generator=rng(3), dtype=torch.float64)
        self.w = [whole[:2].clone().requires_grad_(True), whole[2:].clone().requires_grad_(True)]
        self.g = torch.randn(6, generator=rng(4), dtype=torch.float64)

    def loss(self) -> torch.Tensor:
        away = torch.cat(self.w) - self.a
        return away @ self.H @ away / 2

    def powers(self, way: Any, count: int) -> list[tuple[torch.Tensor, ...]]:
        return powers(hessian(self.loss, self.w, way), (self.g[:2], self.g[2:]), count)


@pytest.mark.parametrize("way", ["exact", "difference"])
def test_five_terms_are_the_truncated_neumann_series(way: Any) -> None:
    """sum_{j<5} (-H)^j g."""
    bowl = Bowl()

    found = torch.cat(neumann(bowl.powers(way, 5), 1.0, 0, 4))

    expected = sum(torch.linalg.matrix_power(-bowl.H, j) @ bowl.g for j in range(5))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_many_terms_invert_i_plus_h() -> None:
    bowl = Bowl()

    found = torch.cat(neumann(bowl.powers("exact", 200), 1.0, 0, 199))

    torch.testing.assert_close(found, torch.linalg.solve(torch.eye(6).double() + bowl.H, bowl.g), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("s", [1.0, 0.5, 0.125])
def test_any_step_is_summed_from_the_same_products(s: float) -> None:
    """v_1 = g, v_{k+1} = J v_k + g by hand, J = (1 - s) I - s H."""
    bowl = Bowl(3.0)
    J = (1 - s) * torch.eye(6).double() - s * bowl.H
    v = bowl.g
    for _ in range(4):
        v = J @ v + bowl.g

    torch.testing.assert_close(torch.cat(neumann(bowl.powers("exact", 5), s, 0, 4)), v, rtol=1e-9, atol=1e-9)


def test_one_term_is_first_order_maml() -> None:
    g_w, g_h = (torch.tensor([0.1, 0.0]),), (torch.tensor([0.0, 0.05]),)

    (G,) = gated([g_w], g_h, 0.2)

    assert torch.equal(G, g_w[0] + g_h[0])


def test_the_gate_halves_the_step_and_gives_up() -> None:
    """1 is halved until || G || passes; what never passes leaves g_h alone, and so does what grows."""
    g_h = (torch.zeros(1),)

    def first(size: float, gate: float | None = 0.2) -> float:
        return gated([(torch.tensor([size]),)], g_h, gate)[0].item()

    assert first(0.19) == pytest.approx(0.19)
    assert first(0.3) == pytest.approx(0.15)
    assert first(6.0) == pytest.approx(6.0 / 32)
    assert first(7.0) == 0.0
    assert first(7.0, None) == 7.0
    steep = Bowl(1e4)
    g = (torch.zeros(2).double(), torch.zeros(4).double())
    assert norm(gated(steep.powers("exact", 5), g, None)) == 0.0


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Delta, list[Configuration]]]:
    """What a small ResAlign returns, and which attacks it made."""

    def run(model: Model, concept: Concept, data: Any, **fields: Any) -> tuple[Delta, list[Configuration]]:
        seen: list[Configuration] = []

        def spy(learner: Model, base: Model, how: Configuration, *rest: Any, **more: Any) -> None:
            seen.append(how)
            if how.steps:
                finetune(learner, base, how, *rest, **more)

        monkeypatch.setattr(defenses.resalign, "finetune", spy)
        small: dict[str, Any] = {"steps": 2, "inner_steps": 1, "rank": 2, "batch": 2, "retain_batch": 1} | fields
        return ResAlign(**small).protect(model, concept, data, rng=rng(), report=silent), seen

    return run


@pytest.mark.slow
def test_the_passes_are_those_of_the_attacks_drawn(
    model: Model, concept: Concept, examples: Examples, made: Any
) -> None:
    for fields in ({"inner_steps": None}, {"hessian": "difference"}, {"terms": 1}):
        before = model.meter.unet_forward + 2 * model.meter.unet_backward
        _, seen = made(model, concept, {"concept": examples, "safe": examples}, steps=1, attacks=2, **fields)
        spent = model.meter.unet_forward + 2 * model.meter.unet_backward - before

        settings: dict[str, Any] = {"inner_steps": 1, "batch": 2, "retain_batch": 1, **fields, "steps": 1, "attacks": 1}
        one = ResAlign(**settings)
        mean = sum(c.scaled(one.inner_steps, 1.0).passes for c in CONFIGURATIONS) / len(CONFIGURATIONS)
        expected = sum(2 * (how.passes - mean) for how in seen) + len(seen) * (one.passes())
        assert spent == pytest.approx(expected, abs=len(seen))  # passes() is rounded


def test_without_weight_on_the_attacked_model_attacks_change_nothing(
    model: Model, concept: Concept, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """beta = 0 is ascent and distillation, bit for bit."""
    data, method = {"concept": examples, "safe": examples}, ResAlign(steps=2, beta=0.0, rank=2, attacks=1)
    deltas = []
    for far in (0.0, 0.5):

        def moved(learner: Model, *_: Any, far: float = far, **__: Any) -> None:
            for p in trainable(learner.denoiser):
                p.data += far

        monkeypatch.setattr(defenses.resalign, "finetune", moved)
        deltas.append(method.protect(model, concept, data, rng=rng(), report=silent))

    for name, pair in deltas[0].low_rank.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, deltas[1].low_rank[name], strict=True))


def test_the_start_is_not_the_base(model: Model) -> None:
    edited = model.clone(only=())
    layers = add_adapters(edited, rank=4, alpha=4, targets=TARGETS, rng=rng())
    begin(layers.values(), rng())
    factors = list(low_rank(layers, "unet").low_rank.values())

    for i, deviation in enumerate((DOWN, UP)):
        found = torch.cat([pair[i].flatten() for pair in factors])
        assert found.std().item() == pytest.approx(deviation, rel=0.1)


@pytest.fixture
def learner(model: Model) -> Model:
    copy = model.clone(only=())
    begin(add_adapters(copy, rank=4, alpha=4, targets=TARGETS, rng=rng()).values(), rng())
    return copy


@pytest.mark.parametrize("kind", ["adapters", "dreambooth"])
def test_an_attack_lowers_its_loss(
    model: Model, learner: Model, concept: Concept, examples: Examples, kind: Any
) -> None:
    sets = Data.of(model, concept, examples, examples, 4, rng(1))
    z_0, text = next(sets.inner)
    text = sets.caption.expand(4, -1, -1) if kind == "dreambooth" else text

    def value() -> float:
        with torch.no_grad():
            return sum(denoising_loss(learner, z_0, text, rng=rng(n)).item() for n in range(4))

    before = value()
    how = Configuration(lr=1e-2, optimizer="adam", steps=8, kind=kind)
    finetune(learner, model, how, sets, 4, rng=rng(2))

    assert value() < before


@pytest.mark.parametrize("steps", [0, 2])
def test_a_full_attack_is_cut_to_the_rank_of_the_adapters(
    model: Model, learner: Model, concept: Concept, examples: Examples, steps: int
) -> None:
    """Without a step they stay what they are; with some, they are near the change of their layers."""
    start = {name: up @ down for name, (down, up) in low_rank(adapted(learner), "unet").low_rank.items()}
    sets = Data.of(model, concept, examples, examples, 4, rng(1))
    how = Configuration(lr=1e-3, optimizer="adamw", steps=steps, kind="full")

    finetune(learner, model, how, sets, 4, rng=rng(2))

    for name, (down, up) in low_rank(adapted(learner), "unet").low_rank.items():
        assert torch.allclose(up @ down, start[name], atol=1e-7) == (steps == 0)


def test_there_are_fifteen_attacks_and_three_are_drawn_without_replacement(
    model: Model, concept: Concept, examples: Examples, made: Any
) -> None:
    assert len(CONFIGURATIONS) == 15 and sum(c.steps for c in CONFIGURATIONS) == 225
    _, seen = made(model, concept, {"concept": examples, "safe": examples}, steps=1, attacks=15, terms=1, inner_steps=0)

    assert sorted(map(repr, seen)) == sorted(repr(c.scaled(0, 1.0)) for c in CONFIGURATIONS)


def test_retention_rises_in_the_second_half() -> None:
    method = ResAlign()

    assert method.kappa_at(0.0) == method.kappa_at(0.49) == 1.6
    assert method.kappa_at(0.75) == pytest.approx(1.8)
    assert method.kappa_at(1.0) == pytest.approx(2.0, abs=0.01)
