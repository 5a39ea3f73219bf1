"""RACE continues ESD, on texts in a ball around the concept, and its targets are the base's."""

import pytest
import torch

from benchmark.diffusion import Model
from benchmark.types import Concept
from defenses.race import RACE
from tests.defenses.test_esd import predictor, silent

C, NULL = torch.full((1, 3, 4), 3.0), torch.ones(1, 3, 4)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_loss_is_esds_at_the_moved_text(model: Model) -> None:
    """At c: (15 - (2 - 4))^2 = 289. At c + 1: eps_th = 20, and the target is still that of c: 22^2."""
    frozen, edited, t = predictor(model, 2.0), predictor(model, 5.0), torch.tensor(3)
    z_t = torch.zeros(1, 4, 2, 2)

    assert RACE().loss(edited, frozen, z_t, t, C, C, NULL).item() == pytest.approx(289)
    assert RACE().loss(edited, frozen, z_t, t, C, C + 1, NULL).item() == pytest.approx(484)


def test_the_search_goes_down_inside_its_ball(model: Model) -> None:
    """eps_th(c + d) = 5 mean(c + d) is to reach x_T = 0: each element ends at -e, or at the least of c."""
    edited, z_t = predictor(model, 5.0), torch.zeros(1, 4, 2, 2)
    c = torch.linspace(1, 3, 12).reshape(1, 3, 4)

    found = RACE(radius=0.1).attack(edited, z_t, torch.tensor(3), c, torch.zeros(1, 4, 2, 2), rng())

    torch.testing.assert_close(found, (c - 0.1).clamp(1, 3))


def test_on_a_random_model_it_stays_in_ball_and_range_and_finds_the_noise(model: Model) -> None:
    c, x_T = model.encode_text(["cat"]), torch.randn(2, *model.latent_shape, generator=rng())
    method, t = RACE(radius=0.5, attack_steps=10), torch.tensor(300)

    def error(text: torch.Tensor) -> float:
        with torch.no_grad():
            return (model.predict(x_T, t, text.expand(2, -1, -1)) - x_T).square().mean().item()

    found = method.attack(model, x_T, t, c, x_T, rng())

    assert (found - c).abs().max() <= 0.5 + 1e-5
    assert c.min() <= found.min() and found.max() <= c.max()
    assert error(found) < error(c)


def test_without_a_radius_it_is_esd_continued(model: Model, concept: Concept) -> None:
    """Adam begins anew: two warm steps and none after equal none and two of radius 0, from the same draws."""

    def delta(**fields: object) -> dict[str, torch.Tensor]:
        method = RACE(ddim_steps=3, lr=1e-3, attack_steps=0, radius=0.0, **fields)  # type: ignore[arg-type]
        return dict(method.protect(model, concept, {}, rng=rng(), report=silent).dense)

    warm, robust = delta(warm_steps=1, steps=0), delta(warm_steps=0, steps=1)

    assert all(torch.equal(t, robust[name]) for name, t in warm.items())


def test_the_lasso_pulls_back_to_where_esd_ended(model: Model) -> None:
    theta = [torch.nn.Parameter(torch.tensor([1.0, 3.0])), torch.nn.Parameter(torch.tensor([2.0]))]
    start = [torch.tensor([0.0, 0.0]), torch.tensor([5.0])]

    with torch.no_grad():
        assert float(RACE(lasso=0.1).pull(theta, start)) == pytest.approx(0.1 * (2 + 3))
    assert RACE().pull(theta, []) == 0.0
