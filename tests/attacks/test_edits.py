"""Edits of weights without training are the sums, the pruning and the rounding that they say."""

from typing import Any

import pytest
import torch
from torch import Generator, nn
from torch.nn.utils import prune

from attacks.base import WeightAttack
from attacks.benign_finetune import BenignFinetune
from attacks.merge import Merge
from attacks.prune import Prune
from attacks.quantize import Quantize
from benchmark.config import entries
from benchmark.diffusion import Model
from benchmark.kit import conformance
from benchmark.types import Concept, Examples, Snapshot


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


def run(method: WeightAttack, model: Model, base: Model, card: Concept, data: Any, asked: Any = (1,)) -> list[Snapshot]:
    budgets, rng = method.budgets(asked), Generator().manual_seed(0)
    return list(method.finetune(model, base, card, data, budgets=budgets, rng=rng, report=silent))


@pytest.fixture(scope="module", params=["unet", "flow"])
def pair(request: pytest.FixtureRequest) -> tuple[Model, Model]:
    """A base, and a model of which every part was changed."""
    base = conformance.tiny_model() if request.param == "unet" else conformance.tiny_flow()
    defended, rng = base.clone().frozen(), Generator().manual_seed(1)
    for part in defended.parts.values():
        for parameter in part.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=rng), alpha=0.1)
    return base, defended


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {f"{part}.{name}": p for part, module in model.parts.items() for name, p in module.named_parameters()}


def test_a_merge_is_the_weighted_sum_of_all_weights(pair: tuple[Model, Model], concept: Concept) -> None:
    base, defended = pair

    found = run(Merge(percent=(100, 25)), defended, base, concept, {})

    assert [snapshot.steps for snapshot in found] == [25, 100]
    quarter, whole = (weights(defended.with_delta(snapshot.delta)) for snapshot in found)
    for name, theta in weights(base).items():
        torch.testing.assert_close(quarter[name], 0.75 * weights(defended)[name] + 0.25 * theta)
        torch.testing.assert_close(whole[name], theta)


def test_a_fine_tune_that_is_merged_is_the_bases_own(
    pair: tuple[Model, Model], concept: Concept, examples: Examples
) -> None:
    """It is what `benign_finetune` makes of the base."""
    base, defended = pair
    data, how = {"benign": examples}, {"lr": 1e-3, "batch": 2}

    *_, whole = run(Merge(percent=(100,), benign_steps=3, **how), defended, base, concept, data)  # type: ignore[arg-type]
    (tuned,) = run(BenignFinetune(**how), base, base, concept, data, asked=(3,))  # type: ignore[arg-type]

    merged, expected = weights(defended.with_delta(whole.delta)), weights(base.with_delta(tuned.delta))
    assert not all(torch.equal(expected[name], theta) for name, theta in weights(base).items())
    for name, theta in expected.items():
        torch.testing.assert_close(merged[name], theta)
    assert Merge(benign_steps=3).needs == {"benign"} and not Merge().needs
    assert Merge(benign_steps=3, batch=2).passes(75) == 18 and not Merge().passes(75)


def layers(model: Model) -> dict[str, nn.Module]:
    return {n: m for n, m in model.denoiser.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def test_pruning_is_torchs(pair: tuple[Model, Model], concept: Concept) -> None:
    base, _ = pair
    for snapshot in run(Prune(percent=(20, 40)), base, base, concept, {}):
        ours, theirs = base.with_delta(snapshot.delta), base.clone()
        for name, layer in layers(theirs).items():
            prune.l1_unstructured(layer, "weight", snapshot.steps / 100)
            assert torch.equal(ours.denoiser.get_parameter(f"{name}.weight"), layer.weight), name
        assert snapshot.delta.names == {f"{base.part}.{name}.weight" for name in layers(base)}


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_rounding_is_torchs(pair: tuple[Model, Model], concept: Concept, bits: Any) -> None:
    base, _ = pair
    spoilt, most = base.clone(), 2 ** (bits - 1) - 1
    first = next(iter(layers(spoilt)))
    spoilt.denoiser.get_parameter(f"{first}.weight").data[0] = 0  # a channel that has no scale

    (snapshot,) = run(Quantize(bits=bits), spoilt, base, concept, {})

    ours = spoilt.with_delta(snapshot.delta)
    for name, layer in layers(spoilt).items():
        W, rounded = layer.weight.detach(), ours.denoiser.get_parameter(f"{name}.weight")
        scale = (W.abs().flatten(1).amax(1) / most).where(W.flatten(1).any(1), torch.ones(len(W)))
        zeros = torch.zeros(len(W), dtype=torch.int32)
        expected = torch.fake_quantize_per_channel_affine(W, scale, zeros, 0, -most, most)
        away = (rounded - expected).abs().flatten(1) / scale[:, None]
        assert away[away > 1e-3].numel() <= 1e-3 * W.numel() + 1, "but for ties, which another division breaks"
        assert (away < 1.001).all()
        assert len(rounded[-1].mul(1 / scale[-1]).round().unique()) <= 2 * most + 1


def test_a_merge_stands_beside_the_others_and_edits_have_no_steps() -> None:
    listed = entries.entries("attack", ("lora", "merge", "prune", "quantize", "component_swap"))

    assert [e.kind for e in listed] == ["weights", "beside", "edit", "edit", "weights"]
    assert entries.entry("attack", "merge>unlearndiffatk").kind == "beside"
