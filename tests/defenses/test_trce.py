"""TRCE's stages are their equations, and what they move is what its release trains."""

import pytest
import torch

from benchmark.diffusion import Model
from benchmark.types import Concept
from defenses.closed_form import grouped, weight
from defenses.text_rows import encoded, spans
from defenses.trce import TRCE, trained
from tests.defenses.test_esd import predictor, silent

C, NULL, ANCHOR = (torch.full((1, 3, 4), value) for value in (3.0, 1.0, 2.0))
QUICK = {"ddim_steps": 2, "reg_batch": 1, "lr": 1e-3}


def delta(model: Model, concept: Concept, **fields: object) -> dict[str, torch.Tensor]:
    method = TRCE(**QUICK | {"steps": 1, "anchor": "dog"} | fields)  # type: ignore[arg-type]
    rng = torch.Generator().manual_seed(0)
    found = method.protect(model, concept, {}, rng=rng, report=silent)
    whole = {f"{name}.weight": up @ down for name, (down, up) in found.low_rank.items()}
    return {**found.dense, **whole}


@pytest.mark.parametrize(("margin", "loss"), [(0.01, 0.0), (5000.0, 2440.0)])
def test_the_hinge_is_closed_where_the_anchor_is_nearer(model: Model, margin: float, loss: float) -> None:
    """Prefer 4 + 15 (4 - 2) = 34, reject 6 + 15 (6 - 2) = 66; d of c: 361 and 2601, of the empty text 841 and 3721."""
    frozen, learner = predictor(model, 2.0), predictor(model, 5.0)

    found = TRCE(margin=margin).turn(learner, frozen, torch.zeros(1, 4, 2, 2), torch.tensor(3), C, ANCHOR, NULL)

    assert found.item() == pytest.approx(loss)


def test_a_concept_that_is_its_anchor_stays(model: Model, concept: Concept) -> None:
    """Stage 1 then has old and new the same: W is reproduced exactly."""
    assert not any(t.any() for t in delta(model, concept, steps=0, anchor=concept.phrase).values())


def test_the_first_end_of_a_text_with_the_concept_means_that_with_the_anchor(model: Model, concept: Concept) -> None:
    """W' e_c = W e_a, without anything to keep, in every layer that reads the text."""
    moved = delta(model, concept, steps=0, s=0.0, lam=1e-9)
    pair = ("a photo of cat", "a photo of dog")
    rows, places = encoded(model, pair, "words"), [one[0] for one in spans(model, [*pair])]
    e_c, e_a = (rows[i, one.start + one.end] for i, one in enumerate(places))

    for layer in grouped(model)["words"]:
        W = weight(model, layer)
        changed = W + moved[f"{model.part}.{layer.name}.weight"].double()
        torch.testing.assert_close(changed @ e_c, W @ e_a, atol=2e-3, rtol=1e-2)


def test_it_moves_keys_values_queries_and_the_self_attention(model: Model, concept: Concept) -> None:
    texts = {f"{layer.name}.weight" for layer in model.text_layers()}
    inside = {name.removeprefix("unet.") for name in delta(model, concept)}

    assert inside == texts | trained(model)
    assert all(".attn1." in name or ".attn2.to_q." in name for name in trained(model))
    assert {name.removeprefix("unet.") for name in delta(model, concept, steps=0)} == texts


def test_gradients_add_up_from_the_second_step_on(model: Model, concept: Concept) -> None:
    def differ(steps: int) -> bool:
        one, other = (delta(model, concept, steps=steps, accumulate=on) for on in (True, False))
        return any(not torch.equal(t, other[name]) for name, t in one.items())

    assert not differ(1) and differ(3)


def test_its_second_stage_needs_queries_of_the_text_alone(concept: Concept) -> None:
    assert TRCE().requires(concept) == ("apart",) and TRCE(steps=0).requires(concept) == ()
    assert TRCE().removable is None and TRCE(steps=0).removable == "keys_values"
