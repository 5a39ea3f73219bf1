"""Where all randomness comes from: seeds derived from names by hashing, so that nothing depends on an order."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # planning derives seeds, and needs no torch
    from torch import Generator


def derive(*parts: str | int) -> int:
    """A seed in [0, 2^63) from any number of names and numbers."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def named(*parts: str | int) -> "Generator":
    """A generator of these names alone, whatever the run's seeds: for what must be the same in every task."""
    import torch

    return torch.Generator().manual_seed(derive(*parts))
