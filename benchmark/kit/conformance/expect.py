"""How a check says what is wrong, and what it watches: randomness, the model's weights."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Generator, Tensor

from benchmark.diffusion import Model
from benchmark.errors import PluginError
from benchmark.runner.isolation.seal import Seal

CONTRACTS = "docs/add-a-defense.md, add-an-attack.md and add-a-metric.md of titer"


def expect(holds: object, expected: str, got: object = "something else") -> None:
    """Raise unless it holds.

    Raises:
        PluginError: what was expected and what was got.
    """
    if not holds:
        raise PluginError(f"expected {expected}, got {got}: the contract is in {CONTRACTS}.")


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


def seeded(seed: int) -> Generator:
    """A generator of its own."""
    return Generator().manual_seed(seed)


def global_state() -> tuple[object, ...]:
    """Where the global generators are."""
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]


@contextmanager
def global_state_kept() -> Iterator[None]:
    """Refuse who draws from, or seeds, a global generator."""
    before = global_state()
    yield
    expect(before == global_state(), "the global generators to stay as they were", "others: draw from `rng` only")


@contextmanager
def unchanged(model: Model) -> Iterator[None]:
    """Refuse who changes the model, as the runner does: weights, hooks, modes, schedule, tokenizers."""
    seal = Seal(model)
    yield
    moved = seal.broken()
    expect(not moved, "the model to stay as it was", f"changes at {moved[:3]}: train `model.clone()`")


def all_equal(a: Mapping[str, Sequence[Tensor]], b: Mapping[str, Sequence[Tensor]]) -> bool:
    """Whether two sets of adapters are the same, to the bit."""
    return a.keys() == b.keys() and all(torch.equal(x, y) for n in a for x, y in zip(a[n], b[n], strict=True))
