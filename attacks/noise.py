"""Noise beside a task's own randomness: of names, or of an image's first noise, and independent of both."""

import hashlib

import torch
from torch import Generator, Tensor


def seeded(*names: str | bytes) -> Generator:
    """A generator of these names alone, whatever the run's seed."""
    text = b"\x1f".join(name.encode() if isinstance(name, str) else name for name in names)
    return Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:8]) >> 1)


def fresh(z_T: Tensor, name: str) -> Tensor:
    """Standard normal noise `(B, C, h, w)` for each image whose first noise is z_T: the same in every batch, and as
    independent of z_T as that of another seed.
    """
    numbers = [z.detach().to("cpu", torch.float32).numpy().tobytes() for z in z_T]
    return torch.stack([torch.randn(z_T.shape[1:], generator=seeded(name, z)) for z in numbers]).to(z_T)
