"""PGU's change is invisible to what retained inputs span."""

from dataclasses import replace

import pytest
import torch

from benchmark.diffusion import Model
from benchmark.kit.conformance import tiny_flow
from benchmark.types import Concept, Examples
from defenses.pgu import PGU, grams, leading, outside


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


def small() -> PGU:
    return PGU(steps=3, lr=1e-3, ddim_steps=2, looks=4, energy=0.9)


@pytest.mark.parametrize("family", ["unet", "flow"])
def test_no_change_is_seen_from_the_span(family: str, model: Model, concept: Concept, examples: Examples) -> None:
    """(W' - W) U_k = 0 for each layer, at which something else has changed."""
    base = model if family == "unet" else tiny_flow()
    method = small()
    U = method.spanned(base, examples, method.layers(base), rng())

    delta = method.protect(base, concept, {"safe": examples}, rng=rng(), report=silent)

    assert set(delta.dense) == {f"{base.part}.{name}.weight" for name in U}
    assert any(bool(change.any()) for change in delta.dense.values())
    for name, U_k in U.items():
        change = delta.dense[f"{base.part}.{name}.weight"].double()
        assert (change @ U_k).abs().max() < 1e-6
        assert U_k.shape[1] < U_k.shape[0] or not change.abs().max() > 1e-6


def test_without_a_span_it_goes_on_as_before(model: Model, concept: Concept, examples: Examples) -> None:
    """The projection is what holds the retained rows: an energy of nearly 0 keeps one direction of each layer only."""
    delta = replace(small(), energy=1e-9).protect(model, concept, {"safe": examples}, rng=rng(), report=silent)
    wide = small().protect(model, concept, {"safe": examples}, rng=rng(), report=silent)

    size = [sum(t.norm().item() for t in d.dense.values()) for d in (delta, wide)]
    assert size[0] > size[1] > 0


def test_the_span_has_the_fewest_directions_with_that_energy() -> None:
    Q = torch.linalg.qr(torch.randn(4, 4, generator=rng(), dtype=torch.float64))[0]
    gram = Q @ torch.diag(torch.tensor([60.0, 30.0, 9.0, 1.0], dtype=torch.float64)) @ Q.T

    assert [leading(gram, energy).shape[1] for energy in (0.5, 0.6001, 0.95, 0.999)] == [1, 2, 3, 4]
    torch.testing.assert_close(leading(gram, 0.5).abs(), Q[:, :1].abs())


def test_what_lies_in_the_span_is_taken_away() -> None:
    U = torch.tensor([[1.0], [0.0]], dtype=torch.float64)

    assert outside(torch.tensor([[3.0, 4.0]]), U).tolist() == [[0.0, 4.0]]


def test_rows_are_what_a_layer_reads(model: Model) -> None:
    layer = torch.nn.Linear(2, 1)
    with grams({"a": layer}) as found:
        layer(torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]))
        layer(torch.tensor([[[1.0, 0.0]]]))
    layer(torch.ones(1, 2))

    assert found["a"].tolist() == [[2.0, 2.0], [2.0, 5.0]]
