"""WeightNoise keeps its contract, is installed under its name, and adds what its equation says."""

import pytest
import torch
from weight_noise import WeightNoise

from benchmark.config.registry import find
from benchmark.kit.conformance import check_defense, protect, tiny_concept, tiny_examples, tiny_model


def test_it_keeps_the_contract() -> None:
    """Every check of the suite."""
    check_defense(WeightNoise)


def test_it_is_installed() -> None:
    """The entry point in pyproject.toml leads to it."""
    assert find("defense", "weight_noise") is WeightNoise


def test_the_noise_is_the_equations() -> None:
    """On the cross-attention only, xi (delta over sigma std(W)) is standard normal, over all its numbers together."""
    model = tiny_model()
    delta = protect(WeightNoise(sigma=0.25), model, tiny_concept(), tiny_examples())

    spread = {
        name: model.denoiser.get_parameter(name.removeprefix(f"{model.part}.")).double().std() for name in delta.dense
    }
    xi = torch.cat([(t.double() / (0.25 * spread[n])).flatten() for n, t in delta.dense.items() if spread[n] > 0])
    assert {name for name in spread if ".attn2." not in name} == set()
    assert len(xi) > 1000
    assert float(xi.mean()) == pytest.approx(0, abs=4 / len(xi) ** 0.5)
    assert float(xi.std()) == pytest.approx(1, abs=4 / (2 * len(xi)) ** 0.5)
