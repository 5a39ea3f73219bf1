"""STEREO's two losses are its equations, its words are learned from parts of the images, and stage 2 begins anew."""

from dataclasses import replace

import pytest
import torch

from benchmark.diffusion import Model
from benchmark.types import Concept, Examples
from defenses.free_words import alone, mean_word, put, with_slot
from defenses.stereo import STEREO, gallery
from tests.defenses.test_esd import predictor, silent

C, NULL, ANCHOR = (torch.full((1, 3, 4), value) for value in (3.0, 1.0, 2.0))
Z, T = torch.zeros(2, 4, 2, 2), torch.tensor(3)
SMALL = {"rounds": 2, "steps": 2, "invert_steps": 2, "ddim_steps": 3, "lr": 1e-3, "invert_lr": 0.1}


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("gamma", "target"), [(2.0, 2.0), (1.0, 6.0), (3.0, -2.0)])
def test_the_search_erases_toward_the_last_rounds_empty_text(model: Model, gamma: float, target: float) -> None:
    """6 - (gamma - 1) (6 - 2), which is eps_k(null) at the release's gamma of 2; eps_th(c) = 15."""
    loss = STEREO(gamma=gamma).ste(predictor(model, 5.0), predictor(model, 2.0), Z, T, C, NULL)

    assert loss.item() == pytest.approx((15 - target) ** 2)


@pytest.mark.parametrize(("preset", "loss"), [("code", 23**2), ("paper", 15**2)])
def test_the_second_stage_has_the_coefficients_of_code_and_paper(model: Model, preset: str, loss: float) -> None:
    """2 + (4 - 2) - 3 (6 - 2) = -8, or 2 + (4 - 2) - (6 - 2) = 0; the mean is over all texts, 1 and 5 here."""
    method, texts = STEREO(**STEREO.presets[preset]), torch.cat([C - 2, C + 2])

    found = method.reo(predictor(model, 5.0), predictor(model, 2.0), Z, T, C, ANCHOR, texts, NULL)

    assert found.item() == pytest.approx(loss)


def test_the_galleries_are_disjoint_and_whole() -> None:
    parts = [gallery(10, k, 4) for k in range(4)]

    assert torch.cat(parts).sort().values.tolist() == list(range(10))
    assert gallery(2, 3, 4).tolist() == [1]


def test_the_second_stage_begins_with_the_base(
    model: Model, concept: Concept, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows the first by its words alone: with other words the delta differs, with other weights it does not."""
    said = ["dog"]
    monkeypatch.setattr("defenses.stereo.alone", lambda model, _: model.encode_text(said).detach())

    def delta(lr_search: float) -> dict[str, torch.Tensor]:
        method = STEREO(**SMALL, lr_search=lr_search)  # type: ignore[arg-type]
        return dict(method.protect(model, concept, {"concept": examples}, rng=rng(), report=silent).dense)

    first, second = delta(0.0), delta(0.1)
    said[:] = ["cow"]

    assert all(torch.equal(t, second[name]) for name, t in first.items())
    assert any(not torch.equal(t, first[name]) for name, t in delta(0.0).items())
    assert {name.removeprefix("unet.") for name in first} == model.scope("u")


def test_each_round_learns_another_word_and_reports_each_step(
    model: Model, concept: Concept, examples: Examples
) -> None:
    method, seen = STEREO(**SMALL), list[int]()  # type: ignore[arg-type]

    def report(*, step: int, total: int, loss: float) -> None:
        seen.append(step)
        assert total == 2 * (2 + 2) + 2

    texts = method.search(model, model.scope("u"), concept, examples, rng(), report)
    start = alone(model, mean_word(model, "object"))

    assert torch.equal(texts[:1], model.encode_text(["cat"]))
    assert len(texts) == 3 and not torch.equal(texts[1], texts[2])
    assert all(not torch.allclose(text, start[0]) for text in texts[1:])
    assert seen == list(range(1, 9))


def test_inversion_lowers_the_loss_of_its_word(model: Model) -> None:
    """Steps along the word's gradient lower the loss on the same draws."""
    method, mean = STEREO(batch=4), torch.randn(4, *model.latent_shape, generator=rng())
    captions, v = with_slot(model, ["a {}"], "{}"), torch.zeros(16, requires_grad=True)

    def loss() -> torch.Tensor:
        return next(method.inverting(model, v, captions, mean, torch.zeros_like(mean), rng()))

    first = loss()
    (gradient,) = torch.autograd.grad(first, v)
    v = (v - 0.1 * gradient / gradient.norm()).detach().requires_grad_()

    assert loss().item() < first.item()


def test_a_word_stands_where_the_slot_was(model: Model) -> None:
    """Put the vector of a word there, and the text is the one with the word; too long a text is left out."""
    vector = mean_word(model, "q")
    captions = with_slot(model, ["a {} b", "{}", "a very long text {}"], "{}")

    assert [place for _, place in captions] == [2, 1]
    for (words, place), text in zip(captions, ["a q b", "q"], strict=True):
        torch.testing.assert_close(model.encode_words(put(words, vector, place)), model.encode_text([text]))
    torch.testing.assert_close(alone(model, vector), model.encode_text(["q"]))
    with pytest.raises(ValueError, match="expected a text with room"):
        with_slot(model, ["a very long text {}"], "{}")


def test_without_anchor_prompts_it_is_refused(model: Model, concept: Concept, examples: Examples) -> None:
    bare = replace(concept, prompts=tuple(p for p in concept.prompts if p.split != "defender"))

    with pytest.raises(ValueError, match="expected prompts of the split defender"):
        STEREO(**SMALL).protect(model, bare, {"concept": examples}, rng=rng(), report=silent)  # type: ignore[arg-type]
