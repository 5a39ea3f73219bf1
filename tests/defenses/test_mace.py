"""MACE pairs the rows of the same words, takes the attention that it says, and fuses its adapters by its equation."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmark.diffusion import Model
from benchmark.types import Concept, Examples
from defenses.attention import above, density, total
from defenses.closed_form import grouped, solve, weight
from defenses.mace import MACE, ROWS
from defenses.templates import SLOT, around, common, ended, filled, own, templates
from defenses.text_rows import encoded, stacked

ONE_FOR_FOUR, FOUR_FOR_ONE = ("ab x yz", "ab cdef yz"), ("ab cdef yz", "ab x yz")


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


@pytest.mark.parametrize("pair", [ONE_FOR_FOUR, FOUR_FOR_ONE, ("ab x", "ab cdef"), ("x yz", "cdef yz")])
def test_rows_of_the_same_words_are_pairs(pair: tuple[str, str], model: Model) -> None:
    """Before the concept in place, after it shifted by the difference, as many as both texts have."""
    f, g = around(model, pair, "words")
    rows = encoded(model, pair, "words")
    before = 3 if pair[0].startswith("ab") else 1
    sizes = [len(text.replace(" ", "")) for text in pair]
    behind = [size + 1 - (2 if text.endswith("yz") else 0) for size, text in zip(sizes, pair, strict=True)]
    n = 12 - max(behind)

    torch.testing.assert_close(f, torch.cat([rows[0, :before], rows[0, behind[0] : behind[0] + n]]))
    torch.testing.assert_close(g, torch.cat([rows[1, :before], rows[1, behind[1] : behind[1] + n]]))


def test_the_concepts_own_rows_and_the_ends(model: Model) -> None:
    """Begin, a, b, x, y, z: the end stands at 6, and the padding is made of it."""
    assert own(model, ONE_FOR_FOUR).nonzero().flatten().tolist() == [3]
    assert own(model, FOUR_FOR_ONE).nonzero().flatten().tolist() == [3, 4, 5, 6]
    assert ended(model, "ab x yz").nonzero().flatten().tolist() == list(range(6, 12))
    (a,), (b,) = model.stretches(["abc"]), model.stretches(["abd"])
    assert common(a, b) == (3, 0)


def test_captions_name_the_concept_and_its_mapping(concept: Concept) -> None:
    for kind in ("object", "style"):
        captions = templates(replace(concept, kind=kind), "templates")  # type: ignore[arg-type]
        pairs = filled(replace(concept, phrase="a cat"), captions, "ground")
        assert len(set(captions)) == 30
        assert all(SLOT in text for text in captions)
        assert all("a cat" in text and "ground" in other and "a cat" not in other for text, other in pairs)
    with pytest.raises(ValueError, match="set texts: templates"):
        templates(replace(concept, phrase="zebra"), "defender")


def test_the_scale_of_the_prior_is_squared_only_if_asked(model: Model, concept: Concept) -> None:
    """The closed form with s^2 or s on as many rows as the authors have captions."""
    pairs = filled(concept, ["a {}", "{} b"], "ground")
    e_f, e_g = (torch.cat(rows) for rows in zip(*(around(model, pair, "words") for pair in pairs), strict=True))
    P = stacked(model, [p.text for p in concept.of("prior")], "words")
    for is_squared, s in ((True, 1e-6), (False, 1e-3)):
        method = MACE(lam=0.1, s=1e-3, is_squared=is_squared)
        prior = method.prior(model, concept, "words")
        torch.testing.assert_close(prior.T @ prior, P.T @ P * ROWS / len(P))

        found = method.residual(model, pairs, "words", prior).T

        torch.testing.assert_close(found, solve(e_f, e_g, prior, lam=0.1, s_e=1.0, s_p=s).T)


def test_one_adapter_is_fused_by_the_texts_projector(model: Model, concept: Concept) -> None:
    """W* = W' + dW Q, Q = E^T E (lam I + E^T E)^-1, where there is no prior."""
    method, texts = MACE(lam=2.0), ["a cat", "cat b"]
    pairs = filled(concept, ["a {}", "{} b"], "ground")
    layers, draws = grouped(model)["words"], torch.Generator().manual_seed(0)
    adapters = {}
    for layer in layers:
        out, size = weight(model, layer).shape
        adapters[layer.name] = torch.randn(1, size, generator=draws), torch.randn(out, 1, generator=draws)
    residual = {"words": method.residual(model, pairs, "words", torch.zeros(0, 16))}
    E = stacked(model, texts, "words")
    Q = E.T @ E @ torch.linalg.inv(2.0 * torch.eye(16) + E.T @ E)

    delta = method.fused(model, adapters, residual, {"words": torch.zeros(0, 16).double()}, texts)  # type: ignore[arg-type]

    for layer in layers:
        down, up = adapters[layer.name]
        wanted = weight(model, layer) @ residual["words"].dense + (up @ down).double() @ Q
        torch.testing.assert_close(delta.dense[f"unet.{layer.name}.weight"].double(), wanted, rtol=1e-4, atol=1e-5)


def test_the_fusion_solves_its_normal_equation(model: Model, concept: Concept) -> None:
    """Eq. 6 and 7 with a prior whose values come from W_0."""
    method = MACE(lam=2.0, s=1e-4)
    pairs = filled(concept, ["a {}"], "ground")
    prior = method.prior(model, concept, "words")
    residual, texts = method.residual(model, pairs, "words", prior), ["a cat"]
    adapters = {
        layer.name: (torch.ones(1, 16), torch.ones(len(weight(model, layer)), 1)) for layer in model.text_layers()
    }
    E, P, eye = stacked(model, texts, "words"), prior.T @ prior, torch.eye(16).double()

    delta = method.fused(model, adapters, {"words": residual}, {"words": prior}, texts)

    for layer in model.text_layers():
        W_0 = weight(model, layer)
        W_1 = W_0 @ residual.T
        right = 2.0 * W_1 + (W_1 + 1) @ E.T @ E + 1e-4 * W_0 @ P
        left = (W_0 + delta.dense[f"unet.{layer.name}.weight"].double()) @ (2.0 * eye + E.T @ E + 1e-4 * P)
        assert float((left - right).norm() / right.norm()) < 1e-5


def test_times_are_early() -> None:
    xi = density(1000)

    assert float(xi.sum()) == pytest.approx(1.0)
    assert abs(int(xi.argmax()) - 300) <= 2
    assert float(xi[200:400].sum()) > 0.6


def test_the_loss_is_a_norm_of_each_layers_attention() -> None:
    """Two pixels, three rows: rows 0 and 2 of the first pixel, 3 and 4, have norm 5; of all, with 12 more, 13."""
    A = torch.tensor([[[[3.0, 7.0, 4.0], [12.0, 7.0, 0.0]]]])
    S, first = torch.tensor([True, False, True]), torch.tensor([[True, False]])

    assert float(total([A], [first], S)) == pytest.approx(5)
    assert float(total([A, A], [first, None], S)) == pytest.approx(5 + 13)
    assert above(A[..., S]).tolist() == [[False, True]]


def test_attention_is_what_the_prediction_pays(model: Model) -> None:
    """One for each attention to the text; it sums to 1, and looking at it changes no prediction."""
    z, t, text = torch.ones(2, *model.latent_shape), torch.tensor(5), model.encode_text(["a cat", "dog"])
    alone = model.predict(z, t, text)

    with model.attending() as seen:
        looked = model.predict(z, t, text)
    model.predict(z, t, text)

    assert torch.equal(alone, looked)
    assert len(seen) * 2 == len(model.text_layers())
    for A in seen:
        assert A.shape[0] == 2 and A.shape[-1] == 12
        torch.testing.assert_close(A.sum(-1), torch.ones(A.shape[:-1]))


def test_attention_is_what_the_layer_computes(model: Model) -> None:
    """A v, through the output's projection, is the layer's own answer."""
    z, t, text = torch.ones(1, *model.latent_shape), torch.tensor(5), model.encode_text(["a cat"])
    layers = {n: m for n, m in model.denoiser.named_modules() if n.endswith(".attn2")}
    answers: list[Tensor] = []
    handles = [m.register_forward_hook(lambda *given: answers.append(given[-1])) for m in layers.values()]

    with model.attending() as seen:
        model.predict(z, t, text)
    for handle in handles:
        handle.remove()

    for module, A, answer in zip(sorted_as_called(layers, seen), seen, answers, strict=True):
        v = module.head_to_batch_dim(module.to_v(text))
        mixed = module.batch_to_head_dim(A.flatten(0, 1) @ v)
        torch.testing.assert_close(module.to_out[0](mixed), answer)


def sorted_as_called(layers: dict[str, torch.nn.Module], seen: list[Tensor]) -> list[torch.nn.Module]:
    """Down, middle, up: the order in which the U-Net calls them."""
    order = ("down", "mid", "up")
    return [layers[name] for part in order for name in layers if name.startswith(part)][: len(seen)]


def test_steps_take_attention_from_the_concept(model: Model, concept: Concept, examples: Examples) -> None:
    """Trained on one model at one place, the loss is smaller after; without a step it is stage 1 alone."""
    method = MACE(lora_steps=30, lora_lr=5e-2, mask="none", times="uniform")
    losses: list[float] = []

    def report(*, step: int, total: int, loss: float) -> None:
        losses.append(loss)

    pairs = filled(concept, ["a {}"], "ground")
    method.unattend(model, model, pairs, examples, rng=torch.Generator().manual_seed(0), report=report)

    assert sum(losses[-8:]) < 0.95 * sum(losses[:8])
    first = MACE(**{**MACE.presets["cfr"], "mapping": "ground"})
    delta = first.protect(model, concept, {"concept": examples}, rng=torch.Generator(), report=silent)
    assert delta.low_rank or delta.dense
    assert first.passes() == 0


def test_presets_are_the_releases() -> None:
    object_, explicit = MACE(), MACE(**MACE.presets["explicit"])

    assert (object_.lora_lr, object_.lora_steps, object_.lam, object_.s) == (1e-5, 50, 1e3, 0.0)
    assert (explicit.lora_lr, explicit.lora_steps, explicit.lam, explicit.s) == (1e-5, 120, 0.0, 7e-7)
    assert explicit.times == "uniform"
