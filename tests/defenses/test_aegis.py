"""AEGIS does what its equations say, on a model small enough to differentiate by hand, in float64.

The hand-sized model predicts eps = tanh(W p + b + z_t), where p is the sum of a text's word vectors weighted by their
place. Every reference is NumPy and takes its gradients by central differences.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from benchmark.diffusion import Meter, Model
from benchmark.model.unet import UNetModel
from benchmark.types import Concept, Delta, Examples
from defenses.aegis import AEGIS
from defenses.esd import ESD
from defenses.free_words import adversarial, insert, table_noise

L, D, C = 12, 3, 2  # tokens, word vectors, channels
PLACES = np.linspace(0.02, 0.2, L)
Array = np.ndarray


class Table(nn.Module):
    """A text encoder that is its token table."""

    def __init__(self) -> None:
        super().__init__()
        values = torch.randn(60, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.table = nn.Embedding.from_pretrained(values)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table


class Weights(nn.Module):
    """W `(C, D)` and b `(C,)`."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(C, D, generator=rng, dtype=torch.float64) / 2)
        self.b = nn.Parameter(torch.randn(C, generator=rng, dtype=torch.float64) / 2)


class Hand(UNetModel):
    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return C, 1, 1

    def encode_words(self, words: Tensor) -> Tensor:
        return words

    def encode_text(self, texts: list[str]) -> Tensor:  # type: ignore[override]
        return self.words(self.ids(texts))

    def predict(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        p = (text * torch.tensor(PLACES)[:, None]).sum(1)
        return torch.tanh(p @ self.unet.w.T + self.unet.b + z_t[:, :, 0, 0])[:, :, None, None]


def hand(model: Model, seed: int = 0) -> Hand:
    kept = {name: getattr(model, name) for name in ("vae", "tokenizer", "scheduler")}
    return Hand(unet=Weights(seed), text_encoder=Table(), **kept)  # type: ignore[arg-type]


class Still(AEGIS):
    """AEGIS on z_t that do not change."""

    def draw(self, model: Model, c_e: Tensor, null: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        return Z, torch.tensor(3)


Z = torch.tensor([[0.3, -0.2], [-0.5, 0.1]], dtype=torch.float64)[:, :, None, None]


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


def rng(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def eps(theta: tuple[Array, Array], text: Array) -> Array:
    """`(B, C)` for the two z_t."""
    return np.tanh(theta[0] @ (PLACES @ text) + theta[1] + Z[:, :, 0, 0].numpy())


def square(difference: Array) -> float:
    return float((difference**2).mean())


def slope(f: Callable[[Array], float], at: Array) -> Array:
    """The gradient of f by central differences."""
    found = np.zeros_like(at)
    for i in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[i], down[i] = at[i] + 1e-6, at[i] - 1e-6
        found[i] = (f(up) - f(down)) / 2e-6
    return found


def weights(model: Model) -> tuple[Array, Array]:
    return model.unet.w.detach().numpy().copy(), model.unet.b.detach().numpy().copy()


def vectors(model: Hand, text: str) -> Array:
    return model.words(model.ids([text]))[0].detach().numpy()


def prompts(model: Hand, free: Array) -> tuple[Array, Array]:
    """c* `(L, D)` and c' `(L, D)` by hand: "cat" has begin, three letters, end."""
    cat, empty = vectors(model, "cat"), vectors(model, "")
    c_star = np.stack([cat[0], *free[:-1], *cat[1 : L - len(free) + 1]])
    return c_star, np.stack([empty[0], free[-1], *empty[1 : L - 1]])


def erasing(model: Hand, method: AEGIS, c_star: Array, c_prime: Array) -> Callable[[Array, Array], float]:
    """L_e as a function of the trained weights."""
    null, theta_0 = vectors(model, ""), weights(model)
    tgt = eps(theta_0, null) - method.eta * (eps(theta_0, c_prime) - eps(theta_0, null))
    return lambda w, b: square(eps((w, b), c_star) - tgt)


def searched(model: Hand, theta: tuple[Array, Array], method: AEGIS, free: Array) -> Array:
    """Both signed steps, from the paper's equations."""
    c_e, theta_0 = vectors(model, "cat"), weights(model)

    def prompt(prefix: Array) -> float:
        c_star, _ = prompts(model, np.concatenate([prefix, free[-1:]]))
        return square(eps(theta, c_star) - eps(theta_0, c_e))

    def target(last: Array) -> float:
        _, c_prime = prompts(model, np.stack([*free[:-1], last]))
        near, far = eps(theta_0, c_prime) - eps(theta_0, c_e), eps(theta_0, c_prime) - eps(theta, c_e)
        return method.aet_sign * square(far) + square(near)

    moved = free.copy()
    moved[:-1] -= method.beta * np.sign(slope(prompt, free[:-1]))
    if method.aet:
        moved[-1] -= method.beta * np.sign(slope(target, free[-1]))
    return moved


def rectified(method: AEGIS, g_e: list[Array], g_r: list[Array], omega: float) -> tuple[list[Array], bool]:
    """g = g_e + lambda g_r, and whether there was a conflict."""
    if not method.regularise:
        return g_e, False
    if method.rectify == "none":
        return [e + method.weight / C * r for e, r in zip(g_e, g_r, strict=True)], False  # a mean over C x 1 x 1
    if method.rectify == "global":
        flat_e, flat_r = (np.concatenate([g.ravel() for g in part]) for part in (g_e, g_r))
        dots, norms = [flat_e @ flat_r] * 2, [flat_r @ flat_r] * 2
    else:
        dots = [float((e * r).sum()) for e, r in zip(g_e, g_r, strict=True)]
        norms = [float((r * r).sum()) for r in g_r]
    factors = [-omega * d / n if d < 0 else 0.0 for d, n in zip(dots, norms, strict=True)]
    return [e + f * r for e, f, r in zip(g_e, factors, g_r, strict=True)], min(dots) < 0


def reference(model: Hand, method: AEGIS, free: Array) -> tuple[list[Array], list[float], list[float]]:
    """The whole training: the change of W and b, the losses, and omega after each step."""
    theta_0 = weights(model)
    theta = [*weights(model)]
    first, second = [np.zeros_like(x) for x in theta], [np.zeros_like(x) for x in theta]
    omega = method.omega or 0.0
    losses, omegas = [], []
    for step in range(1, method.steps + 1):
        free = searched(model, (theta[0], theta[1]), method, free)
        c_star, c_prime = prompts(model, free)
        loss = erasing(model, method, c_star, c_prime if method.aet else vectors(model, "cat"))
        losses.append(loss(*theta))
        w, b = theta
        g_e = [slope(lambda x, b=b, loss=loss: loss(x, b), w), slope(lambda x, w=w, loss=loss: loss(w, x), b)]
        g_r = [now - before for now, before in zip(theta, theta_0, strict=True)]
        g, conflict = rectified(method, g_e, g_r, omega)
        if conflict and method.omega is None:
            omega = min(1.0, omega + (2 / method.steps if method.mu is None else method.mu))
        omegas.append(omega)
        for i in range(2):  # Adam: 0.9, 0.999, 1e-8, no weight decay
            first[i] = 0.9 * first[i] + 0.1 * g[i]
            second[i] = 0.999 * second[i] + 0.001 * g[i] ** 2
            m, v = first[i] / (1 - 0.9**step), second[i] / (1 - 0.999**step)
            theta[i] = theta[i] - method.lr * m / (np.sqrt(v) + 1e-8)
    return [now - before for now, before in zip(theta, theta_0, strict=True)], losses, omegas


def run(method: AEGIS, model: Model, concept: Concept, data: Mapping[str, Examples] | None = None) -> Delta:
    return method.protect(model, concept, data or {}, rng=rng(), report=silent)


SMALL = {"steps": 8, "lr": 0.01, "beta": 0.05, "mu": 0.4, "scope": "full", "ddim_steps": 1}


@pytest.mark.parametrize("eta", [0.5, 1.0, 3.0])
def test_the_loss_and_its_gradient_are_the_papers_equation(model: Model, eta: float) -> None:
    frozen, edited, method = hand(model), hand(model, seed=5), AEGIS(eta=eta)
    c_star, c_prime = prompts(frozen, np.array([[0.4, -1.0, 0.2], [0.9, 0.1, -0.3]]))
    texts = (torch.tensor(c_star)[None], torch.tensor(c_prime)[None], frozen.encode_text([""]))

    loss = method.loss(edited, frozen, Z, torch.tensor(3), *texts)
    loss.backward()

    by_hand, (w, b) = erasing(frozen, method, c_star, c_prime), weights(edited)
    assert loss.item() == pytest.approx(by_hand(w, b), rel=1e-12)
    np.testing.assert_allclose(edited.unet.w.grad, slope(lambda x: by_hand(x, b), w), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(edited.unet.b.grad, slope(lambda x: by_hand(w, x), b), rtol=1e-6, atol=1e-9)
    assert frozen.unet.w.grad is None


@pytest.mark.parametrize("sign", [1, -1])
def test_both_searches_take_one_signed_step_and_leave_the_weights(model: Model, sign: int) -> None:
    frozen, edited = hand(model), hand(model, seed=5)
    method = AEGIS(beta=0.01, prefix=2, aet_sign=sign)  # type: ignore[arg-type]
    free = table_noise(frozen, method.prefix + 1, rng())
    words, c_e = frozen.encode_text(["cat", ""]), frozen.encode_text(["cat"])
    before = weights(edited)

    moved = method.search(edited, frozen, Z, torch.tensor(3), c_e, words, free)

    np.testing.assert_allclose(moved[0], searched(frozen, before, method, free[0].numpy()), rtol=1e-12)
    np.testing.assert_allclose((moved - free).abs(), 0.01, rtol=1e-9)
    assert all((a == b).all() for a, b in zip(before, weights(edited), strict=True))
    assert edited.unet.w.grad is None


def test_the_sign_turns_the_target_search_around_only_in_its_first_term(model: Model) -> None:
    """Where eps_th = eps_0 the two terms cancel for -1: c' stays, and the prefix still moves."""
    frozen, method = hand(model), AEGIS(aet_sign=-1)
    free = table_noise(frozen, method.prefix + 1, rng())

    moved = method.search(
        frozen, frozen, Z, torch.tensor(3), frozen.encode_text(["cat"]), frozen.encode_text(["cat", ""]), free
    )

    assert torch.equal(moved[:, -1], free[:, -1])
    assert not torch.equal(moved[:, 0], free[:, 0])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rectify": "global"},
        {"mu": None},
        {"omega": 1.0},
        {"omega": 0.5, "rectify": "global"},
        {"rectify": "none", "weight": 0.7},
        {"regularise": False},
        {"aet": False},
        {"aet_sign": -1, "eta": 2.0, "prefix": 2},
    ],
    ids=lambda fields: ",".join(f"{k}={v}" for k, v in fields.items()) or "paper",
)
def test_training_is_the_papers_algorithm(model: Model, concept: Concept, fields: dict[str, object]) -> None:
    """Searches, loss, rectification, omega and Adam, eight steps long, against NumPy."""
    tiny, method = hand(model), Still(**(SMALL | fields))  # type: ignore[arg-type]
    losses: list[float] = []

    def report(*, step: int, total: int, loss: float) -> None:
        assert (step, total) == (len(losses) + 1, 8)
        losses.append(loss)

    delta = method.protect(tiny, concept, {}, rng=rng(), report=report)

    wanted, wanted_losses, omegas = reference(tiny, method, table_noise(tiny, method.prefix + 1, rng())[0].numpy())
    assert losses == pytest.approx(wanted_losses, rel=1e-6)
    np.testing.assert_allclose(delta.dense["unet.w"], wanted[0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(delta.dense["unet.b"], wanted[1], rtol=1e-4, atol=1e-7)
    if not fields:
        assert omegas[0] == 0  # nothing has drifted, so nothing conflicts
        assert omegas[1] == omegas[2] == 0.4  # a step with a conflict, a step without
        assert omegas[-1] == 1  # learned, and stopped there


def test_a_rectified_gradient_is_orthogonal_to_the_drift_where_they_conflict() -> None:
    g_e = [torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
    g_r = [torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.0])]

    g, conflict = AEGIS().gradient(g_e, g_r, 1.0, size=1)
    half, _ = AEGIS().gradient(g_e, g_r, 0.5, size=1)
    none, calm = AEGIS().gradient(g_e[1:], g_r[1:], 1.0, size=1)

    assert [x.tolist() for x in g] == [[0.0, 2.0], [1.0, 2.0], [3.0]]
    assert half[0].tolist() == [0.5, 2.0]
    assert conflict
    assert [x.tolist() for x in none] == [[1.0, 2.0], [3.0]]
    assert not calm


def test_a_global_rectification_looks_at_all_parameters_together() -> None:
    """The products -1 and +1 add up to 0: no conflict. -1 and +0.5 do conflict, over a squared norm of 1.25."""
    g_e, method = [torch.tensor([1.0]), torch.tensor([1.0])], AEGIS(rectify="global")

    same, calm = method.gradient(g_e, [torch.tensor([-1.0]), torch.tensor([1.0])], 1.0, size=1)
    g, conflict = method.gradient(g_e, [torch.tensor([-1.0]), torch.tensor([0.5])], 1.0, size=1)

    assert [x.item() for x in same] == [1.0, 1.0]
    assert not calm
    assert [x.item() for x in g] == pytest.approx([1 - 0.4, 1 + 0.2])
    assert conflict


@pytest.mark.parametrize("steps", [8, 80, 200])
def test_omega_reaches_one_when_half_of_the_steps_meet_a_conflict(model: Model, concept: Concept, steps: int) -> None:
    """Whatever the number of steps: here each of them is one."""
    seen: list[float] = []

    class Always(Still):
        def gradient(self, g_e: Any, g_r: Any, omega: float, *, size: int) -> tuple[list[Tensor], bool]:
            seen.append(omega)
            return list(g_e), True

    run(Always(steps=steps, lr=0.0, scope="full"), hand(model), concept)

    assert seen == pytest.approx([min(1.0, 2 * i / steps) for i in range(steps)])


def test_without_rectification_the_objective_is_the_equation_with_its_sums(model: Model) -> None:
    """|| eps_th(z_t|c*) - tgt ||^2 + weight / 2 || th - th_0 ||^2, the norms being sums, worked in float64.

    On a whole U-Net, and for each image of the batch: g is its gradient over the numbers of a prediction, which Adam
    does not see.
    """
    frozen, method = model.clone().frozen(), AEGIS(rectify="none", weight=0.7, eta=0.5)
    frozen.unet.double()
    edited = replace(frozen, unet=deepcopy(frozen.unet).requires_grad_(True))
    theta, theta_0 = list(edited.unet.parameters()), list(frozen.unet.parameters())
    with torch.no_grad():
        for p in theta:
            p += 0.01 * torch.randn(p.shape, generator=rng(7), dtype=torch.float64)
    C_h_w, t = 4 * 4 * 4, torch.tensor(300)
    z_t = torch.randn(2, 4, 4, 4, generator=rng(1), dtype=torch.float64)
    star, prime, null = (torch.randn(1, *model.text_shape, generator=rng(i), dtype=torch.float64) for i in (2, 3, 4))

    g_e = torch.autograd.grad(method.loss(edited, frozen, z_t, t, star, prime, null), theta)
    g_r = [p.detach() - q for p, q in zip(theta, theta_0, strict=True)]
    g, _ = method.gradient(g_e, g_r, 0.0, size=z_t[0].numel())

    objective = torch.zeros((), dtype=torch.float64)
    for z in z_t[:, None]:
        free, far = (frozen.unet(z, t, encoder_hidden_states=text).sample for text in (null, prime))
        error = edited.unet(z, t, encoder_hidden_states=star).sample - (free - 0.5 * (far - free))
        drift = sum((p - q).square().sum() for p, q in zip(theta, theta_0, strict=True))
        objective = objective + (error.square().sum() + 0.7 / 2 * drift) / 2
    for found, wanted in zip(g, torch.autograd.grad(objective, theta), strict=True):
        torch.testing.assert_close(C_h_w * found, wanted, rtol=1e-9, atol=1e-12)


def test_without_the_regulariser_the_erasing_gradient_acts_alone(model: Model, concept: Concept) -> None:
    """Then omega, weight and the rectification say nothing; and omega 0 or weight 0 are the same training."""
    tiny = hand(model)
    alone = [
        run(Still(**(SMALL | fields)), tiny, concept).dense["unet.w"]  # type: ignore[arg-type]
        for fields in (
            {"regularise": False},
            {"regularise": False, "omega": 1.0, "rectify": "global"},
            {"regularise": False, "rectify": "none", "weight": 9.0},
            {"omega": 0.0},
            {"rectify": "none", "weight": 0.0},
        )
    ]
    pulled = run(Still(**(SMALL | {"omega": 1.0})), tiny, concept).dense["unet.w"]  # type: ignore[arg-type]

    assert all(torch.equal(alone[0], other) for other in alone[1:])
    assert not torch.allclose(alone[0], pulled)


def test_without_searches_and_regulariser_it_is_esd(model: Model, concept: Concept) -> None:
    tiny, shared = hand(model), {"steps": 6, "lr": 0.02, "scope": "full", "ddim_steps": 4, "batch": 2}
    generator = rng()
    torch.randn((1, 1, D), generator=generator)  # the vector that the ablation draws and does not use

    ours = run(AEGIS(aet=False, prefix=0, regularise=False, **shared), tiny, concept)  # type: ignore[arg-type]
    esd = ESD(**shared).protect(tiny, concept, {}, rng=generator, report=silent)  # type: ignore[arg-type]

    assert not esd.is_zero
    torch.testing.assert_close(dict(ours.dense), dict(esd.dense), rtol=1e-5, atol=1e-8)


def test_without_the_target_search_the_free_target_stays(model: Model) -> None:
    frozen, edited, method = hand(model), hand(model, seed=5), AEGIS(aet=False)
    free = table_noise(frozen, method.prefix + 1, rng())

    moved = method.search(
        edited, frozen, Z, torch.tensor(3), frozen.encode_text(["cat"]), frozen.encode_text(["cat", ""]), free
    )

    assert torch.equal(moved[:, -1], free[:, -1])
    assert not torch.equal(moved[:, 0], free[:, 0])


def test_the_presets_are_the_papers_ablations() -> None:
    assert AEGIS(**AEGIS.presets["paper"]) == AEGIS()
    assert (AEGIS().steps, AEGIS().lr, AEGIS().batch, AEGIS().omega_step) == (1000, 1e-5, 1, 2 / 1000)
    assert AEGIS.presets["without-aet"] == {"aet": False}
    assert AEGIS.presets["without-pr"] == {"regularise": False}
    assert AEGIS.presets["without-dgr"] == {"rectify": "none"}
    assert AEGIS.presets["omega-1"] == {"omega": 1.0}


def test_free_vectors_follow_the_begin_token_and_the_length_stays(model: Model) -> None:
    words = torch.arange(5.0)[None, :, None]
    inserted = insert(words, torch.tensor([[[7.0], [8.0]]]))
    free = torch.randn(1, 3, 16, generator=rng())
    both = model.words(model.ids(["cat", ""]))

    c_star, c_prime = adversarial(model, both, free)

    assert inserted[0, :, 0].tolist() == [0, 7, 8, 1, 2]
    begin, end = both[1, :1], both[1, 1:]
    torch.testing.assert_close(c_prime, model.encode_words(torch.cat([begin, free[0, 2:], end[:-1]])[None]))
    torch.testing.assert_close(c_star, model.encode_words(torch.cat([begin, free[0, :2], both[0, 1:-2]])[None]))


def test_gradients_reach_the_free_vectors_through_the_text_encoder(model: Model) -> None:
    method = AEGIS(prefix=2, beta=0.01)
    edited = run(AEGIS(steps=1, lr=0.05, scope="full", ddim_steps=1), model, CAT)
    free, both = table_noise(model, method.prefix + 1, rng()), model.words(model.ids(["cat", ""]))
    z_t = torch.randn(2, *model.latent_shape, generator=rng())

    moved = method.search(
        model.with_delta(edited), model, z_t, torch.tensor(500), model.encode_words(both[:1]), both, free
    )

    torch.testing.assert_close((moved - free).abs(), torch.full_like(free, 0.01), rtol=1e-3, atol=0)


CAT = Concept(name="cat", phrase="cat", kind="object", prompts=(), labels={}, wordings=("dog", "cow"))


@pytest.mark.parametrize(("kind", "scope"), [("object", "u-old"), ("nsfw", "u-old"), ("style", "x")])
def test_exactly_the_scope_of_the_kind_is_released(model: Model, kind: str, scope: str) -> None:
    card = replace(CAT, kind=kind)  # type: ignore[arg-type]
    method = AEGIS(steps=2, lr=1e-2, ddim_steps=2)

    delta = run(method, model, card)

    wanted = model.scope(scope)  # type: ignore[arg-type]
    assert method.scope_for(card) == scope
    assert AEGIS(scope="selfattn").scope_for(card) == "selfattn"
    assert delta.dense.keys() == {f"unet.{name}" for name in wanted}
    assert not delta.low_rank
    assert not delta.is_zero


def test_reads_no_image(model: Model) -> None:
    """Without an image encoder, and with data that no one may open, the training runs to its end."""

    class Closed(Mapping[str, Examples]):
        def __getitem__(self, key: str) -> Examples:
            raise AssertionError(key)

        def __iter__(self) -> Iterator[str]:
            raise AssertionError

        def __len__(self) -> int:
            raise AssertionError

    blind, seen = replace(model, vae=None), []  # type: ignore[arg-type, var-annotated]

    def report(*, step: int, total: int, loss: float) -> None:
        seen.append(step)

    delta = AEGIS(steps=2, ddim_steps=2).protect(blind, CAT, Closed(), rng=rng(), report=report)

    assert AEGIS.needs == frozenset()
    assert seen == [1, 2]
    assert all(name.startswith("unet.") for name in delta.dense)


@pytest.mark.parametrize("source", ["edited", "frozen"])
def test_noisy_latents_are_drawn_as_in_esd(model: Model, source: str) -> None:
    c, null = model.encode_text(["cat"]), model.encode_text([""])
    fields = {"ddim_steps": 5, "batch": 2, "sampled_from": source}

    ours = AEGIS(**fields).draw(model, c, null, rng(4))  # type: ignore[arg-type]
    esd = ESD(**fields).draw(model, c, null, rng(4))  # type: ignore[arg-type]

    assert all(torch.equal(a, b) for a, b in zip(ours, esd, strict=True))


def test_the_chosen_model_draws_the_latents(model: Model, concept: Concept) -> None:
    tiny, drawn = hand(model), []  # type: ignore[var-annotated]

    class Watched(Still):
        def draw(self, model: Model, c_e: Tensor, null: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
            drawn.append(model is tiny)
            return super().draw(model, c_e, null, rng)

    run(Watched(**(SMALL | {"steps": 1})), tiny, concept)  # type: ignore[arg-type]
    run(Watched(**(SMALL | {"steps": 1, "sampled_from": "frozen"})), tiny, concept)  # type: ignore[arg-type]

    assert drawn == [False, True]


def test_erasing_wordings_reads_each_of_them(model: Model) -> None:
    tiny, read = hand(model), []  # type: ignore[var-annotated]

    class Watched(Still):
        def draw(self, model: Model, c_e: Tensor, null: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
            read.append(next(t for t in ("cat", "dog", "cow") if torch.equal(tiny.encode_text([t]), c_e)))
            return super().draw(model, c_e, null, rng)

    run(Watched(**(SMALL | {"steps": 12})), tiny, CAT)  # type: ignore[arg-type]
    phrase, read[:] = set(read), []
    run(Watched(**(SMALL | {"steps": 12, "erase": "wordings"})), tiny, CAT)  # type: ignore[arg-type]

    assert phrase == {"cat"}
    assert set(read) == {"cat", "dog", "cow"}


@pytest.mark.parametrize("aet", [True, False])
def test_the_estimate_is_what_a_step_without_sampling_costs(model: Model, aet: bool) -> None:
    metered = replace(model, meter=Meter())
    method = AEGIS(steps=2, batch=3, ddim_steps=1, aet=aet)  # one DDIM step: the trajectory stops before it

    run(method, metered, CAT)

    spent = metered.meter.unet_forward + 2 * metered.meter.unet_backward
    assert spent == method.passes() - method.steps * method.batch * (method.ddim_steps - 1)


def test_a_loss_that_is_not_finite_stops(model: Model) -> None:
    broken = hand(model)
    with torch.no_grad():
        broken.unet.b.fill_(float("nan"))

    with pytest.raises(ValueError, match="expected a finite loss, got nan at step 1: lower lr"):
        run(AEGIS(steps=1, scope="full", ddim_steps=1), broken, CAT)


@pytest.mark.parametrize(("phrase", "prefix"), [("ab cd ef gh", 4), ("cat", 12), ("cat", 13)])
def test_a_prefix_that_would_push_words_out_is_an_error(model: Model, phrase: str, prefix: int) -> None:
    with pytest.raises(ValueError, match=f"expected room for a prefix of {prefix}"):
        run(AEGIS(steps=1, prefix=prefix), model, replace(CAT, phrase=phrase))
