"""SalUn's two losses are its equations, and what is not salient stays as it was, to the bit."""

from dataclasses import replace

import pytest
import torch

from benchmark.diffusion import Model
from benchmark.types import Concept, Examples
from defenses.erasing import anchored
from defenses.saliency import largest
from defenses.salun import Pool, SalUn
from tests.defenses.test_esd import predictor, silent

SMALL = {"steps": 2, "batch": 2, "mask_batches": 2, "lr": 1e-3}
C, NULL, ANCHOR = (torch.full((1, 3, 4), value) for value in (3.0, 1.0, 2.0))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_only_the_concepts_side_has_a_gradient(model: Model) -> None:
    """eps_th(c_f) = 15, the target eps_th(c_a) = 10: the loss is 25, and dL/dw = 2 * 5 * 3, not 2 * 5 * (3 - 2)."""
    edited, z_t = predictor(model, 5.0), torch.zeros(1, 4, 2, 2)

    loss = SalUn().forget(edited, z_t, z_t + 1, torch.tensor([3]), C, ANCHOR)
    loss.backward()

    assert loss.item() == pytest.approx(25)
    assert edited.unet.weight.grad.item() == pytest.approx(30)


def test_the_mask_is_that_of_a_guided_prediction(model: Model) -> None:
    """8.5 * 6 - 7.5 * 2 = 36 against the noise; both predictions have a gradient: 8.5 * 3 - 7.5 * 1 = 18 for w."""
    frozen, method = predictor(model, 2.0), SalUn()
    z_0 = torch.randn(1, 4, 2, 2, generator=rng())
    eps = torch.randn(1, 4, 2, 2, generator=rng(7))

    loss = method.mask_loss(frozen, z_0, C, NULL, rng(7))
    loss.backward()

    assert loss.item() == pytest.approx((36 - eps).square().mean().item(), rel=1e-5)
    assert frozen.unet.weight.grad.item() == pytest.approx(2 * 18 * (36 - eps).mean().item(), rel=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_share_is_exact_and_scale_changes_nothing(share: float) -> None:
    """As a sort has it; ties, and a layer without gradient, do not make it larger."""
    scores = [torch.rand(7, 5, generator=rng()), torch.zeros(11), torch.ones(3, 3), torch.full((20,), 1e-30)]
    n = sum(one.numel() for one in scores)

    masks = largest(scores, share)

    kept = torch.cat([one[mask] for one, mask in zip(scores, masks, strict=True)])
    assert len(kept) == round(share * n)
    ranked = torch.cat([one.flatten() for one in scores]).sort(descending=True).values
    assert torch.equal(kept.sort(descending=True).values, ranked[: len(kept)])
    scaled = largest([one * 4 for one in scores], share)
    assert all(torch.equal(a, b) for a, b in zip(masks, scaled, strict=True))


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="expected finite scores of 0 or more"):
        largest([torch.tensor([1.0, float("nan")])], 0.5)


def test_outside_the_mask_nothing_moves(model: Model, concept: Concept, examples: Examples) -> None:
    data = {"concept": examples, "safe": examples}
    method = SalUn(**SMALL, share=0.1, scope="x")  # type: ignore[arg-type]

    delta = method.protect(model, concept, data, rng=rng(), report=silent)

    moved = sum(int((t != 0).sum()) for t in delta.dense.values())
    total = sum(t.numel() for t in delta.dense.values())
    assert {name.removeprefix("unet.") for name in delta.dense} == model.scope("x")
    assert 0.05 * total < moved <= round(0.1 * total)


def test_the_old_loader_sees_one_batch(model: Model, concept: Concept, examples: Examples) -> None:
    """Images behind the first batch change nothing once the mask is found, which reads all of them in both."""
    orders = {name: SalUn(batch=2, loader=name).order(4, rng()) for name in ("fixed", "release-2023")}  # type: ignore[arg-type]
    seen = {name: [next(order).tolist() for _ in range(4)] for name, order in orders.items()}

    assert seen["release-2023"] == [[0, 1]] * 4
    assert {i for batch in seen["fixed"] for i in batch} == {0, 1, 2, 3}


def test_the_loss_is_both_terms(model: Model) -> None:
    """On the random model, from the same draws in the same order."""
    method, edited = SalUn(batch=2), model.clone()
    z = torch.randn(2, 4, 4, 4, generator=rng(1))
    text, anchor = model.encode_text(["a cat", "cat"]), model.encode_text(["a dog", "dog"])
    pool, both = Pool(z, torch.full_like(z, 0.3), text, anchor), torch.tensor([0, 1])

    loss = method.loss(edited, pool, both, pool, both, rng(5))

    draws = rng(5)
    z_0, again, eps = (torch.randn(z.shape, generator=draws) for _ in range(3))
    t = torch.randint(1000, (2,), generator=draws)
    with torch.no_grad():
        predictions = [
            edited.predict(edited.noised(z + 0.3 * n, eps, t), t, c) for n, c in ((z_0, text), (again, anchor))
        ]
        forget = (predictions[0] - predictions[1]).square().mean()
        kept, t_r = torch.randn(z.shape, generator=draws), torch.randint(1000, (2,), generator=draws)
        eps_r = torch.randn(z.shape, generator=draws)
        retain = (edited.predict(edited.noised(z + 0.3 * kept, eps_r, t_r), t_r, text) - eps_r).square().mean()
    assert loss.item() == pytest.approx((forget + 0.1 * retain).item(), rel=1e-5)


def test_an_anchor_takes_the_place_of_the_phrase(concept: Concept) -> None:
    several = replace(concept, members=(concept, replace(concept, name="owl", phrase="an owl")))

    assert anchored("A Cat on a mat", concept, "dog") == "A dog on a mat"
    assert anchored("an OWL and a cat", several, "x") == "x and a x"
    assert anchored("something that purrs", concept, "dog") == "dog"
    assert anchored("a cat", concept, "") == ""
