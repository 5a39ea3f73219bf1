"""SDD's loss is its equation, its average is what is kept, its sampler is the release's."""

import pytest
import torch

from benchmark.diffusion import Model
from benchmark.types import Concept
from defenses.sampling import mean_length, part
from defenses.sdd import SDD
from tests.defenses.test_esd import predictor, silent


def test_both_sides_are_the_students_and_one_has_a_gradient(model: Model) -> None:
    """eps_th(c) = 15, eps_th(null) = 5: the loss is 100, and dL/dw = 2 * 10 * 3."""
    edited = predictor(model, 5.0)

    loss = SDD().loss(edited, torch.zeros(2, 4, 2, 2), torch.tensor(3), torch.full((1, 3, 4), 3.0), torch.ones(1, 3, 4))
    loss.backward()

    assert loss.item() == pytest.approx(100)
    assert edited.unet.weight.grad.item() == pytest.approx(60)


def test_the_average_is_what_is_kept(model: Model, concept: Concept) -> None:
    """After two equal steps of size d: d (sum over k of 1 - ema^k). A sampler that never meets the average shows it."""

    def delta(ema: float, steps: int) -> dict[str, torch.Tensor]:
        method = SDD(steps=steps, ddim_steps=1, sampler="ddim", lr=1e-3, weight_decay=0.0, ema=ema)
        return dict(method.protect(model, concept, {}, rng=torch.Generator().manual_seed(0), report=silent).dense)

    first, both, mean = delta(0.0, 1), delta(0.0, 2), delta(0.75, 2)

    for name, found in mean.items():
        wanted = 0.25 * both[name] + 0.75 * 0.25 * first[name]
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-7)


def test_the_sampler_goes_k_steps_and_all_of_them_at_0() -> None:
    assert [part("sdd", k, 50) for k in (0, 1, 49)] == [(0, 50), (0, 1), (0, 49)]
    assert mean_length("sdd", 50) == pytest.approx((50 + sum(range(1, 50))) / 50)


def test_t_is_in_the_part_that_is_left(model: Model) -> None:
    """t in 980 - 20 k ... 999 - 20 k, after k of 50 steps: with 4 steps, 750 - 250 k to 999 - 250 k."""
    text, null = model.encode_text(["cat"]), model.encode_text([""])
    for seed in range(6):
        k = int(torch.randint(4, (), generator=torch.Generator().manual_seed(seed)))

        t = int(SDD(ddim_steps=4).draw(model, text, null, torch.Generator().manual_seed(seed))[1])

        assert 750 - 250 * k <= t < 1000 - 250 * k


def test_without_guidance_the_text_plays_no_part(model: Model) -> None:
    """The release's guidance of 1 draws without a text."""
    null = model.encode_text([""])
    texts = [model.encode_text([text]) for text in ("cat", "dog")]

    def drawn(text: torch.Tensor, scale: float | None) -> torch.Tensor:
        method = SDD(ddim_steps=3, start_guidance=scale)
        return method.draw(model, text, null, torch.Generator().manual_seed(1))[0]

    assert torch.equal(*(drawn(text, None) for text in texts))
    assert not torch.equal(*(drawn(text, 1.0) for text in texts))
