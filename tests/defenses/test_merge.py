"""MIMA's merge is the smallest change on captions that maps the concept's rows as was learned; IMMA stays as it was."""

from typing import Any

import pytest
import torch

from benchmark.config import entries
from benchmark.diffusion import Model
from benchmark.types import Concept, Delta, Examples
from defenses.imma import IMMA
from defenses.merge import gram, merged


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def parts() -> tuple[torch.Tensor, ...]:
    """W, W_n, C, T, d: six inputs, three outputs, thirty captions' rows, two of the concept."""
    W, C, T = numbers(1, 3, 6), numbers(2, 30, 6), numbers(3, 2, 6)
    return W, W + numbers(4, 3, 6), C, T, T @ torch.linalg.inv(gram(C))


def test_what_was_not_learned_changes_nothing(parts: Any) -> None:
    W, _, _, T, d = parts

    torch.testing.assert_close(merged(W, W, T, d), W)


def test_the_concept_is_mapped_as_was_learned_and_captions_change_least(parts: Any) -> None:
    """Beside least squares with equality constraints: one change that fits, and the best of what T sees as 0."""
    W, W_n, C, T, d = parts

    found = merged(W, W_n, T, d)

    torch.testing.assert_close(found @ T.T, W_n @ T.T, rtol=1e-4, atol=1e-4)
    particular = (W_n - W) @ T.T @ torch.linalg.pinv(T.T)
    null = torch.linalg.svd(T)[2][2:]  # rows that T sees as 0
    free = torch.linalg.lstsq(C @ null.T, -C @ particular.T).solution
    least = particular + free.T @ null
    torch.testing.assert_close(found - W, least, rtol=1e-3, atol=1e-4)


def test_more_rows_than_inputs_are_solved_too(parts: Any) -> None:
    W, W_n, C, _, _ = parts
    T = numbers(8, 9, 6)

    torch.testing.assert_close(merged(W, W_n, T, T @ torch.linalg.inv(gram(C))), W_n, rtol=1e-4, atol=1e-4)


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


def run(method: IMMA, model: Model, concept: Concept, examples: Examples) -> Delta:
    data = dict.fromkeys(sorted(method.needed), examples)
    rng = torch.Generator().manual_seed(0)
    return method.protect(model, concept, data, rng=rng, report=silent)  # type: ignore[arg-type]


def test_mima_is_what_reads_the_text_and_keeps_safe_images(model: Model, concept: Concept, examples: Examples) -> None:
    method = IMMA(**{**IMMA.presets["mima"], "steps": 4, "lr": 1e-3, "adapt_lr": 1e-3})
    before = model.meter.unet_forward + 2 * model.meter.unet_backward

    delta = run(method, model, concept, examples)

    assert model.meter.unet_forward + 2 * model.meter.unet_backward - before == method.passes()
    assert delta.dense and all(".attn2.to_" in name for name in delta.dense)
    assert method.needed == {"concept", "safe"} and method.badge == "reconstructed"
    assert IMMA().needed == {"concept"} and IMMA().badge == "official-matched"


def test_a_merged_step_is_sgd_on_the_concepts_rows(model: Model, concept: Concept, examples: Examples) -> None:
    """One inner step: keys and values answer the concept's texts as after W - lr grad L, all else went by AdamW."""
    from benchmark.diffusion import denoising_loss
    from defenses.merge import Merger

    learner = model.clone()
    learner.denoiser.requires_grad_(True)
    merger = Merger(model, learner, concept, ("a dog", "dd", "the c", "one"))
    others = merger.others(learner.denoiser.parameters())
    z_0, text = torch.randn(2, *model.latent_shape), model.encode_text(["cat", "cat"]).detach()
    loss = denoising_loss(learner, z_0, text, rng=torch.Generator().manual_seed(0))
    expected = [
        (W.detach() - 0.5 * torch.autograd.grad(loss, W, retain_graph=True)[0]).double() @ T.T
        for W, T, _ in merger.maps
    ]
    start = [W.detach().double().clone() for W, _, _ in merger.maps]

    merger.step(loss, torch.optim.AdamW(others, lr=1e-3), 0.5)

    for (W, T, _), answer in zip(merger.maps, expected, strict=True):
        assert (W.detach().double() @ T.T - answer).norm() < 0.02 * (answer - start.pop(0) @ T.T).norm()
    changed = [not torch.equal(p, q) for p, q in zip(learner.unet.parameters(), model.unet.parameters(), strict=True)]
    assert all(changed) and len(others) + len(merger.maps) == len(changed)


def test_only_dreambooth_can_merge(model: Model, concept: Concept, examples: Examples) -> None:
    with pytest.raises(ValueError, match="expected adaptation dreambooth to merge, got 'lora'"):
        run(IMMA(merge=True), model, concept, examples)


def test_retention_is_a_descent_at_both_levels(model: Model, concept: Concept, examples: Examples) -> None:
    """With a weight so large that it is all, ascent alone lowers the safe images' loss."""
    from benchmark.diffusion import denoising_loss
    from defenses.data import latents

    delta = run(IMMA(ascent_only=True, prior=50.0, steps=15, lr=5e-3, batch=4), model, concept, examples)

    z_0, text = latents(model, examples.images)[0], model.encode_text(examples.captions)
    before, after = (
        sum(denoising_loss(m, z_0, text, rng=torch.Generator().manual_seed(n)).item() for n in range(5))
        for m in (model, model.with_delta(delta))
    )
    assert after < before


def test_fields_that_came_later_are_in_no_key_until_they_are_set() -> None:
    plain, with_prior = (entries.entry("defense", {"use": "imma", **more}) for more in ({}, {"prior": 1.0}))

    assert not {"prior", "theta", "merge"} & set(plain.fields) and len(plain.fields) == 10
    assert set(with_prior.fields) - set(plain.fields) == {"prior"}
