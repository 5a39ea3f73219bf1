"""Small linear layers that stand behind layers of a model: added while they are trained, then folded into them.

o' = o + U (D o + d) + u,  o = W x + b:    W' = (I + U D) W,  b' = (I + U D) b + U d + u
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Eraser:
    """D `(r, dim)`, d `(r,)`, U `(dim, r)` and u `(dim,)`; it says nothing at first."""

    D: Tensor
    d: Tensor
    U: Tensor
    u: Tensor

    @classmethod
    def drawn(cls, dim: int, rank: int, rng: Generator, like: Tensor) -> "Eraser":
        """D and d as torch draws a linear layer's, U and u zero."""
        D, d = ((2 * torch.rand(shape, generator=rng) - 1) / dim**0.5 for shape in ((rank, dim), (rank,)))
        return cls(*(t.to(like.device).requires_grad_() for t in (D, d, torch.zeros(dim, rank), torch.zeros(dim))))

    def __call__(self, o: Tensor) -> Tensor:
        """What it adds to o `(B, N, dim)`."""
        return F.linear(F.linear(o, self.D, self.d), self.U, self.u)

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """What is trained."""
        return self.D, self.d, self.U, self.u

    @torch.no_grad()
    def folded(self, layer: torch.nn.Linear) -> tuple[Tensor, Tensor]:
        """The change of the weight and of the bias of the layer it stands behind."""
        W, b = layer.weight.float(), layer.bias.float()
        return self.U @ (self.D @ W), self(b)


@contextmanager
def added(layers: Mapping[str, torch.nn.Module], erasers: Mapping[str, Eraser]) -> Iterator[list[Tensor]]:
    """While it lasts each layer answers with what its eraser adds; the list gets that, layer by layer."""
    said = list[Tensor]()

    def add(eraser: Eraser, module: Any, args: Any, o: Tensor) -> Tensor:
        said.append(eraser(o.float()))
        return o + said[-1].to(o.dtype)

    handles = [layer.register_forward_hook(partial(add, erasers[name])) for name, layer in layers.items()]
    try:
        yield said
    finally:
        for handle in handles:
            handle.remove()
