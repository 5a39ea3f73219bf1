"""Every defense and fine-tuning attack runs in mixed precision through the same interface."""

from dataclasses import replace

import pytest
import torch

from benchmark.diffusion import Model
from benchmark.types import Concept, Examples
from defenses.aegis import AEGIS
from defenses.base import Defense
from defenses.esd import ESD
from defenses.gift import GIFT
from defenses.imma import IMMA
from defenses.patronus import Patronus

METHODS = [
    ESD(steps=2, ddim_steps=3, lr=1e-3),
    IMMA(steps=2, lr=1e-3),
    GIFT(steps=2, lr_immunise=1e-3),
    AEGIS(steps=2, ddim_steps=3, lr=1e-3),
    Patronus(parts="unet", u1_steps=2, u2_steps=0, u1_batch=2, features=2, ddim_steps=2, stages="unlearn"),
]


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_a_defense_trains_in_mixed_precision(
    model: Model, concept: Concept, examples: Examples, method: Defense
) -> None:
    mixed, data = replace(model, precision="bfloat16"), dict.fromkeys(method.needs, examples)

    delta = method.protect(mixed, concept, data, rng=torch.Generator().manual_seed(0), report=silent)

    tensors = [*delta.dense.values(), *(t for pair in delta.low_rank.values() for t in pair)]
    assert not delta.is_zero
    assert all(t.dtype == torch.float32 and bool(torch.isfinite(t).all()) for t in tensors)
