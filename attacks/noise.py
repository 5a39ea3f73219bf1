"""Noise of an image's first noise alone, and independent of it."""

import hashlib

import torch
from torch import Tensor

from benchmark.seeds import named


def fresh(z_T: Tensor, name: str) -> Tensor:
    """Standard normal noise `(B, C, h, w)` for each image whose first noise is z_T: the same in every batch, and as
    independent of z_T as that of another seed.
    """
    seen = [hashlib.sha256(z.detach().to("cpu", torch.float32).numpy().tobytes()).hexdigest() for z in z_T]
    return torch.stack([torch.randn(z_T.shape[1:], generator=named(name, digest)) for digest in seen]).to(z_T)
