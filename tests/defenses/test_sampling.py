"""The samplers of ESD are those of its two releases: which steps are gone through, how, and at which t is trained.

Each trajectory is drawn again in float64 from the equations: DDIM, and the linear multistep of PNDM.
"""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from benchmark.diffusion import Model
from defenses.sampling import Sampler, mean_length, partial_sample

Predict = Callable[[Tensor, int], Tensor]


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def double(model: Model) -> Model:
    copy = model.clone().frozen()
    copy.unet.double()
    return copy


def text(model: Model, words: str) -> Tensor:
    with torch.no_grad():
        return model.encode_text([words]).double()


def drawn(model: Model, sampler: Sampler, steps: int, seed: int) -> tuple[int, Tensor, Tensor, int]:
    """k, the noise, and what came out."""
    c, null = text(model, "cat"), text(model, "")
    settings = {"batch": 2, "ddim_steps": steps, "guidance": 3.0, "sampler": sampler}
    z_t, t = partial_sample(model, c, null, **settings, rng=rng(seed))  # type: ignore[arg-type]
    draws = rng(seed)
    k = int(torch.randint(steps, (), generator=draws))
    return k, torch.randn((2, *model.latent_shape), generator=draws).double(), z_t, int(t)


def guided(model: Model) -> Predict:
    c, null = (text(model, words).expand(2, -1, -1) for words in ("cat", ""))

    def predict(z: Tensor, t: int) -> Tensor:
        with torch.no_grad():
            far, near = (model.unet(z, t, encoder_hidden_states=words).sample for words in (null, c))
        return far + 3.0 * (near - far)

    return predict


def moved(model: Model, z: Tensor, eps: Tensor, t: int, to: int) -> Tensor:
    """DDIM, Eq. 12 with sigma 0, from level t to another; below 0 is the first level."""
    ab = model.scheduler.alphas_cumprod.double()
    now, then = ab[t], ab[max(to, 0)]
    x_0 = (z - (1 - now).sqrt() * eps) / now.sqrt()
    return then.sqrt() * x_0 + (1 - then).sqrt() * eps


@pytest.mark.slow
def test_compvis_leaves_out_the_first_step_and_goes_two_too_far(double: Model) -> None:
    """Its loop: down the grid without the last entry, until the number of those left is k."""
    predict, seen = guided(double), set()
    grid = [1 + 200 * i for i in range(5)]
    for seed in range(16):
        k, z, z_t, t = drawn(double, "compvis", 5, seed)
        for left in range(3, -1, -1):
            z = moved(double, z, predict(z, grid[left]), grid[left], grid[left] - 200)
            if left + 1 == k:
                break
        torch.testing.assert_close(z_t, z, rtol=1e-5, atol=1e-6)
        assert 200 * k <= t < 200 * (k + 1)
        seen.add(k)
    assert seen == set(range(5))


def test_compvis_trains_between_39_and_58_levels_above_what_it_drew(
    double: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the 50 steps of the release: the level that z_t has, beside t; noise is taken for 961."""
    gaps = set()

    def nothing(_: Model, z: Tensor, t: Tensor, *__: object) -> Tensor:
        reached.append(int(t))
        return torch.zeros_like(z)

    monkeypatch.setattr(type(double), "guided", nothing)
    for seed in range(120):
        reached: list[int] = []
        k, _, _, t = drawn(double, "compvis", 50, seed)
        assert reached == list(range(961, 0, -20))[: 50 - k]
        if k > 1:
            gaps.add(t - (reached[-1] - 20))
    assert (min(gaps), max(gaps)) == (39, 58)


ADAMS_BASHFORTH = [(3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24)]


def test_pndm_is_the_multistep_of_the_paper(double: Model) -> None:
    """A trapezoid first, for which the second step is asked about twice; then Adams-Bashforth of order 2, 3 and 4."""
    predict, seen = guided(double), set()
    grid = [876, 751, 626, 501, 376, 251, 126, 1]
    firsts = {int(torch.randint(8, (), generator=torch.Generator().manual_seed(seed))): seed for seed in range(24)}
    for seed in firsts.values():  # one for each k
        k, z, z_t, t = drawn(double, "pndm", 8, seed)
        assert t == [876, 751, *grid[1:]][k]
        known: list[Tensor] = []
        for asked in range(k):
            at = grid[max(0, asked - 1)]  # the step that is taken: the first for the first two questions
            if asked == 0:
                start, known = z, [predict(z, at)]
                eps = known[0]
            elif asked == 1:
                z, eps = start, (known[0] + predict(z, at - 125)) / 2
            else:
                known = [predict(z, at), *known][:4]
                eps = sum(w * e for w, e in zip(ADAMS_BASHFORTH[len(known) - 2], known, strict=True))  # type: ignore[assignment]
            z = moved(double, z, eps, at, at - 125)
        torch.testing.assert_close(z_t, z, rtol=1e-5, atol=1e-6)
        seen.add(k)
    assert seen == set(range(8))


def test_pndm_has_the_timesteps_of_sd14s_own_scheduler(model: Model) -> None:
    """Of the 51, a run of the release draws one of the first 50: 961 twice as often as others, and never 1."""
    assert model.pndm(50).timesteps.tolist() == [981, 961, *range(961, 0, -20)]


def test_ddim_stops_at_the_level_it_trains_at(double: Model) -> None:
    predict, grid = guided(double), [801, 601, 401, 201, 1]
    for seed in range(12):
        k, z, z_t, t = drawn(double, "ddim", 5, seed)
        for at in grid[:k]:
            z = moved(double, z, predict(z, at), at, at - 200)
        assert t == grid[k]
        torch.testing.assert_close(z_t, z, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("sampler", "length"), [("compvis", 2.8), ("pndm", 2.0), ("ddim", 2.0)])
def test_the_mean_length_is_that_of_all_draws(sampler: Sampler, length: float) -> None:
    """Of five steps: compvis goes through 4, 4, 3, 2, 1; the others through 0, 1, 2, 3, 4."""
    assert sampler in get_args(Sampler)
    assert mean_length(sampler, 5) == pytest.approx(length)
