"""GIFT trains down on safe images, and up with noised activations on malicious ones, each with its own optimizer."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel

import defenses.gift
from benchmark.diffusion import Model, normal
from benchmark.model.unet import UNetModel
from benchmark.types import Concept, Delta, Examples
from defenses.gift import GIFT, activations, in_scope, mmd, spatial_rows


class Scale(torch.nn.Module):
    """x -> weight x + text, as a tensor or, as transformers do, in a tuple."""

    def __init__(self, weight: float, *, in_tuple: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.in_tuple = in_tuple

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> Any:
        return (self.weight * x + text,) if self.in_tuple else self.weight * x + text


class Hand(torch.nn.Module):
    """A U-Net of two layers: h_1 = a z_t,  h_2 = b h_1 + mean(c),  eps = h_2."""

    mid_block = None

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        down, up = torch.nn.Module(), torch.nn.Module()
        down.resnets = torch.nn.ModuleList([Scale(a, in_tuple=False)])
        up.attentions = torch.nn.ModuleList([Scale(b, in_tuple=True)])
        self.down_blocks, self.up_blocks = torch.nn.ModuleList([down]), torch.nn.ModuleList([up])

    def forward(self, z_t: torch.Tensor, t: torch.Tensor, encoder_hidden_states: torch.Tensor) -> SimpleNamespace:
        c = encoder_hidden_states.mean((1, 2)).reshape(-1, 1, 1, 1)
        h = self.down_blocks[0].resnets[0](z_t, torch.zeros_like(c))
        return SimpleNamespace(sample=self.up_blocks[0].attentions[0](h, c)[0])


NAMES = ("unet.down_blocks.0.resnets.0.weight", "unet.up_blocks.0.attentions.0.weight")


def hand_model(model: Model, a: float, b: float, draws: list[tuple[torch.Tensor, ...]]) -> Model:
    """`model` in float64 with the U-Net of two layers; `draws` collects each (z_0, eps, t)."""

    class Recorded(UNetModel):
        def noised(self, z_0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            draws.append((z_0, eps, t))
            return super().noised(z_0, eps, t)

        def posterior(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mean = images[:, :1, ::4, ::4].double().expand(-1, 4, -1, -1)
            return mean, torch.full_like(mean, 0.1)

    copy = model.clone()
    for part in copy.parts.values():
        part.double()
    parts = {field.name: getattr(copy, field.name) for field in fields(copy)}
    return Recorded(**parts | {"unet": Hand(a, b)}).frozen()


class AdamW:
    """AdamW by hand, after the norm of the gradient is clipped to 1."""

    def __init__(self, lr: float) -> None:
        self.lr, self.m, self.v, self.k = lr, np.zeros(2), np.zeros(2), 0

    def step(self, p: np.ndarray, g: np.ndarray) -> np.ndarray:
        g = g * min(1.0, 1.0 / (float(np.linalg.norm(g)) + 1e-6))
        self.k += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        m_hat, v_hat = self.m / (1 - 0.9**self.k), self.v / (1 - 0.999**self.k)
        return p - self.lr * 0.01 * p - self.lr * m_hat / (np.sqrt(v_hat) + 1e-8)


def distance(x: np.ndarray, y: np.ndarray) -> float:
    """Squared distance, for each dimension."""
    return float(((x - y) ** 2).sum() / len(x))


def mean_distance(x: np.ndarray, y: np.ndarray) -> float:
    both = [*x, *y]
    return float(np.mean([distance(p, q) for i, p in enumerate(both) for j, q in enumerate(both) if i != j]))


def mmd_by_hand(x: np.ndarray, y: np.ndarray, width: float) -> float:
    """RepNoise's estimate, pair by pair; `width` is the mean distance, which has no gradient."""

    def k(p: np.ndarray, q: np.ndarray) -> float:
        return sum(np.exp(-distance(p, q) / (width / 4 * 2**i)) for i in range(5))

    n = range(len(x))
    return float(np.mean([k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(y[i], x[j]) for i, j in product(n, n)]))


def slope(f: Callable[[np.ndarray], float], p: np.ndarray) -> np.ndarray:
    """Central differences."""
    h = 1e-6
    return np.array([(f(p + h * e) - f(p - h * e)) / (2 * h) for e in np.eye(len(p))])


def run(method: GIFT, model: Model, concept: Concept, data: Any) -> tuple[Delta, list[float]]:
    losses: list[float] = []

    def report(*, step: int, total: int, loss: float) -> None:
        losses.append(loss)

    splits = data if isinstance(data, dict) else dict.fromkeys(method.needs, data)
    return method.protect(model, concept, splits, rng=torch.Generator().manual_seed(0), report=report), losses


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The noise that activations were compared with, in order."""
    found: list[np.ndarray] = []

    def spy(shape: Any, rng: torch.Generator, *, like: torch.Tensor) -> torch.Tensor:
        drawn = normal(shape, rng, like=like)
        if len(shape) == 2:
            found.append(drawn.numpy())
        return drawn

    monkeypatch.setattr(defenses.gift, "normal", spy)
    return found


@dataclass
class Batch:
    """What one step saw, and the equations on it as functions of p = (a, b)."""

    z_t: np.ndarray
    eps: np.ndarray
    m: float  # mean(c)

    def layers(self, p: np.ndarray) -> list[np.ndarray]:
        h = [p[0] * self.z_t, p[1] * p[0] * self.z_t + self.m]
        return [h_l.transpose(0, 2, 3, 1).reshape(-1, 4) for h_l in h]

    def errors(self, p: np.ndarray) -> np.ndarray:
        return ((p[1] * p[0] * self.z_t + self.m - self.eps) ** 2).reshape(2, -1).mean(1)

    def prior(self, p: np.ndarray) -> float:
        return float(self.errors(p).mean())

    def immunise(self, p: np.ndarray, *, cap: float, g: list[np.ndarray], widths: list[float]) -> float:
        ascent = -float(np.minimum(self.errors(p), cap).mean())
        if not g:
            return ascent
        return ascent + 0.7 * float(
            np.mean([mmd_by_hand(*triple) for triple in zip(self.layers(p), g, widths, strict=True)])
        )


@pytest.mark.parametrize("noise_ref", ["unit", "matched"])
@pytest.mark.parametrize("ablation", ["none", "max", "max_noise"])
@pytest.mark.parametrize("cap", [100.0, 0.4])
def test_both_levels_by_hand(
    model: Model,
    concept: Concept,
    examples: Examples,
    noise: list[np.ndarray],
    noise_ref: Any,
    ablation: Any,
    cap: float,
) -> None:
    """Three rounds on two numbers: L_P and L_I from the equations, gradients by differences, AdamW by hand."""
    draws: list[tuple[torch.Tensor, ...]] = []
    p_0 = np.array([0.8, 0.6])
    small = hand_model(model, *p_0, draws)
    data = {
        "concept": Examples(images=examples.images[:2], captions=("a cat",) * 2),
        "safe": Examples(images=examples.images[2:], captions=("two",) * 2),
    }
    rates = {"lr_prior": 0.02, "lr_immunise": 0.03}
    method = GIFT(steps=3, batch=2, noise_ref=noise_ref, ablation=ablation, beta=0.7, loss_cap=cap, **rates)

    delta, losses = run(method, small, concept, data)

    means = {split: small.encode_text([d.captions[0]]).mean().item() for split, d in data.items()}
    p, lower, upper = p_0, AdamW(0.02), AdamW(0.03)
    drawn, compared, expected, capped = iter(draws), iter(noise), [], []
    for split in (("safe", "concept") if ablation == "none" else ("concept",)) * 3:
        z_0, eps, t = next(drawn)
        ab = small.scheduler.alphas_cumprod.double()[t].reshape(-1, 1, 1, 1)
        batch = Batch((ab.sqrt() * z_0 + (1 - ab).sqrt() * eps).numpy(), eps.numpy(), means[split])
        if split == "safe":
            p = lower.step(p, slope(batch.prior, p))
            continue
        g = [] if ablation == "max" else [next(compared), next(compared)]
        if noise_ref == "matched":
            g = [r.mean(0) + r.std(0) * g_l for r, g_l in zip(batch.layers(p_0), g, strict=False)]
        widths = [mean_distance(x, y) for x, y in zip(batch.layers(p), g, strict=False)]
        loss = partial(batch.immunise, cap=cap, g=g, widths=widths)
        capped.extend(batch.errors(p) > cap)
        expected.append(loss(p))
        p = upper.step(p, slope(loss, p))
    assert losses == pytest.approx(expected, rel=1e-6)
    assert delta.dense.keys() == set(NAMES)
    assert [delta.dense[n].item() for n in NAMES] == pytest.approx((p - p_0).tolist(), rel=1e-4)
    assert (any(capped), all(capped)) == (cap < 1, False)
    assert len(noise) == (0 if ablation == "max" else 6)


def test_mmd_is_repnoises() -> None:
    """Value against the estimate pair by pair, with distances divided by the number of channels."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 6, 5, generator=rng, dtype=torch.float64)
    x = 3 * x + 1

    width = mean_distance(x.numpy(), y.numpy())

    assert mmd(x, y).item() == pytest.approx(mmd_by_hand(x.numpy(), y.numpy(), width), rel=1e-9)
    assert mmd(x.float() + 300, y.float() + 300).item() == pytest.approx(mmd(x, y).item(), rel=1e-3)


def test_mmd_of_one_row_is_a_constant() -> None:
    """Why positions are the rows: with one sample a side the adaptive width makes it 10 - 2 sum_i exp(-4 / 2^i)."""
    rng = torch.Generator().manual_seed(0)
    values = [mmd(*torch.randn(2, 1, 7, generator=rng)).item() for _ in range(3)]

    assert values == pytest.approx([10 - 2 * sum(np.exp(-4 / 2**i) for i in range(5))] * 3, rel=1e-4)
    assert values[0] == pytest.approx(6.19, abs=0.01)


def test_mmd_tells_noise_from_the_rest() -> None:
    rng = torch.Generator().manual_seed(0)
    x, y, z = torch.randn(3, 200, 4, generator=rng)

    assert mmd(x, x).item() == pytest.approx(0, abs=1e-6)
    assert mmd(x, y) < 0.1 * mmd(x, z + 1)
    assert mmd(x, y) < 0.1 * mmd(x, z / 5)


def test_noising_turns_a_layer_to_noise() -> None:
    """Descending it, a layer's scale and shift of normal rows come to 1 and 0."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 8, 8, generator=rng)
    scale, shift = (torch.nn.Parameter(torch.full((4, 1, 1), v)) for v in (3.0, 4.0))
    optimizer = torch.optim.Adam([scale, shift], lr=0.05)
    for _ in range(250):
        optimizer.zero_grad()
        GIFT().noising([scale * x + shift], None, rng).backward()
        optimizer.step()

    assert spatial_rows(x).shape == (64, 4)
    assert scale.mean().item() == pytest.approx(1, abs=0.15)
    assert shift.mean().item() == pytest.approx(0, abs=0.15)


def test_matched_noise_has_the_moments_of_the_base() -> None:
    rng = torch.Generator().manual_seed(0)
    reference = torch.randn(1, 3, 30, 30, generator=rng) * torch.tensor([1.0, 2, 3]).reshape(-1, 1, 1) + 5
    alike, other = reference.flip(2), torch.randn(1, 3, 30, 30, generator=rng)

    def away(h: torch.Tensor, against: list[torch.Tensor] | None) -> float:
        return GIFT().noising([h], against, rng).item()

    assert away(alike, [reference]) < 0.1 * away(alike, None)
    assert away(other, None) < 0.1 * away(other, [reference])


def test_at_most_so_many_rows_are_compared(
    model: Model, concept: Concept, examples: Examples, noise: list[np.ndarray]
) -> None:
    run(GIFT(steps=1, batch=2, rows=5), model, concept, examples)

    assert {len(g) for g in noise} == {5}


def test_every_resnet_and_attention_is_noised(model: Model) -> None:
    """Read once each, as (B, C, h, w); afterwards nothing is left on the U-Net."""
    z, text = torch.zeros(2, *model.latent_shape), model.encode_text(["cat", "dog"])
    layers = [m for m in model.unet.modules() if isinstance(m, ResnetBlock2D | Transformer2DModel)]

    with activations(model) as h:
        model.predict(z, torch.tensor(3), text)
        found = len(h)
    model.predict(z, torch.tensor(3), text)

    assert found == len(layers) == len(h)
    assert all(h_l.ndim == 4 and len(h_l) == 2 for h_l in h)
    assert not any(m._forward_hooks for m in model.unet.modules())


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
    """The optimizers a run makes: first the lower level's, then the upper's."""
    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    monkeypatch.setattr(Spy, "made", [])
    monkeypatch.setattr(Spy, "turns", [])
    return Spy


@pytest.mark.parametrize(
    ("fields", "turns"),
    [
        ({}, [0, 1, 0, 1]),
        ({"n_p": 2}, [0, 0, 1, 0, 0, 1]),
        ({"n_i": 3}, [0, 1, 1, 1, 0, 1, 1, 1]),
        ({"ablation": "max"}, [1, 1]),
        ({"ablation": "max_noise", "n_i": 2}, [1, 1, 1, 1]),
    ],
)
def test_levels_take_turns(
    model: Model, concept: Concept, examples: Examples, spy: type[Spy], fields: dict[str, Any], turns: list[int]
) -> None:
    _, losses = run(GIFT(steps=2, **fields), model, concept, examples)

    assert spy.turns == turns
    assert len(losses) == 2


def test_each_level_has_its_own_optimizer(model: Model, concept: Concept, examples: Examples, spy: type[Spy]) -> None:
    run(GIFT(steps=1), model, concept, examples)

    lower, upper = spy.made
    assert (lower.defaults["lr"], upper.defaults["lr"]) == (5e-6, 1e-5)
    for optimizer in (lower, upper):
        settings = ("betas", "eps", "weight_decay")
        assert [optimizer.defaults[s] for s in settings] == [(0.9, 0.999), 1e-8, 1e-2]
        assert len(optimizer.param_groups[0]["params"]) == len(list(model.unet.parameters()))


def test_the_lower_level_sees_only_safe_data_and_the_upper_only_malicious(
    model: Model, concept: Concept, examples: Examples
) -> None:
    safe = Examples(images=255 - examples.images, captions=("dog",) * 4)
    texts: list[torch.Tensor] = []

    class Reader(UNetModel):
        def predict(self, z_t: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            texts.append(text)
            return super().predict(z_t, t, text)

    reader = Reader(**{field.name: getattr(model, field.name) for field in fields(model)})
    cat = Examples(images=examples.images, captions=("cat",) * 4)

    run(GIFT(steps=2), reader, concept, {"safe": safe, "concept": cat})

    wanted = model.encode_text(["dog", "cat"])
    assert len(texts) == 4
    for i, text in enumerate(texts):
        torch.testing.assert_close(text, wanted[i % 2 : i % 2 + 1])


@pytest.mark.parametrize("ablation", ["max", "max_noise"])
def test_ablations_do_without_safe_data(model: Model, concept: Concept, examples: Examples, ablation: Any) -> None:
    alone = {"concept": examples, "safe": Examples(images=torch.empty(0, 3, 8, 8), captions=())}

    first, _ = run(GIFT(steps=2, ablation=ablation), model, concept, alone)
    second, _ = run(GIFT(steps=2, ablation=ablation), model, concept, examples)

    assert all(torch.equal(t, second.dense[n]) for n, t in first.dense.items())


def test_maximisation_alone_reads_no_activation(
    model: Model, concept: Concept, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> torch.Tensor:
        raise AssertionError

    monkeypatch.setattr(defenses.gift, "mmd", never)

    run(GIFT(steps=1, ablation="max", noise_ref="matched"), model, concept, examples)
    with pytest.raises(AssertionError):
        run(GIFT(steps=1, ablation="max_noise"), model, concept, examples)


def test_a_loss_above_the_cap_has_no_ascent(model: Model, concept: Concept, examples: Examples) -> None:
    """Without weight decay nothing moves."""
    fields: dict[str, Any] = {"steps": 2, "ablation": "max", "weight_decay": 0.0, "lr_immunise": 1e-2}

    above, losses = run(GIFT(loss_cap=1e-3, **fields), model, concept, examples)
    below, _ = run(GIFT(loss_cap=1e3, **fields), model, concept, examples)

    assert above.is_zero
    assert losses == pytest.approx([-1e-3] * 2)
    assert not below.is_zero


def test_immunising_raises_the_loss_and_noises(model: Model, concept: Concept, examples: Examples) -> None:
    """L_I after, on the same draws, is below L_I before."""
    method = GIFT(steps=15, batch=4, lr_immunise=3e-3, loss_cap=10.0, ablation="max_noise")
    delta, _ = run(method, model, concept, examples)
    z_0, text = model.posterior(examples.images / 255)[0].detach(), model.encode_text(examples.captions)

    def value(m: Model, one: GIFT) -> float:
        return one.loss(m, model, z_0, text, rng=torch.Generator().manual_seed(5)).item()

    after = model.with_delta(delta)
    only_max = GIFT(loss_cap=10.0, ablation="max")
    assert value(after, only_max) < value(model, only_max)
    assert value(after, method) < value(model, method)


@pytest.mark.parametrize("scope", ["full", "attn"])
def test_exactly_the_scope_is_released(model: Model, concept: Concept, examples: Examples, scope: Any) -> None:
    delta, _ = run(GIFT(steps=1, scope=scope, lr_prior=1e-2), model, concept, examples)

    names = {f"unet.{n}" for n, _ in model.unet.named_parameters()}
    attention = {n for n in names if ".attn" in n and ".to_" in n}
    assert delta.dense.keys() == (names if scope == "full" else attention)
    assert all(bool(t.any()) for t in delta.dense.values())


def test_a_scope_without_parameters_is_an_error(model: Model) -> None:
    plain = replace(model, unet=torch.nn.Linear(2, 2))  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="expected scope 'attn' to select parameters"):
        in_scope(plain, "attn")


@pytest.mark.parametrize("fields", [{}, {"noise_ref": "matched", "n_i": 2}, {"ablation": "max", "n_p": 3}])
def test_passes_are_those_made(model: Model, concept: Concept, examples: Examples, fields: dict[str, Any]) -> None:
    method, meter = GIFT(steps=2, batch=2, **fields), model.meter
    before = meter.unet_forward + 2 * meter.unet_backward

    run(method, model, concept, examples)

    assert meter.unet_forward + 2 * meter.unet_backward - before == method.passes()


def test_a_loss_that_is_not_finite_stops(model: Model, concept: Concept, examples: Examples) -> None:
    broken = model.clone()
    with torch.no_grad():
        broken.unet.conv_out.bias.fill_(float("nan"))

    for ablation in ("none", "max", "max_noise"):
        with pytest.raises(ValueError, match="expected a finite loss, got nan at step 0: lower lr_prior"):
            run(GIFT(steps=1, ablation=ablation), broken, concept, examples)  # type: ignore[arg-type]
