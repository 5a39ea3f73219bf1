"""What the closed-form defenses share: every layer that reads the text gets one and the same linear map before it.

    W (lam I + s_e sum c c^T + s_p sum p p^T) = lam W_0 + s_e sum (W_0 g) c^T + s_p sum (W_0 p) p^T
    W = W_0 T,   T = I + s_e sum (g - c) c^T M^-1,   M = lam I + s_e sum c c^T + s_p sum p p^T

c is a row of what is erased, g the row that it is to mean, p one that stays. W_0 cancels, so T is found once for all
layers that read the same rows, by one solve in float64, and rank(T - I) is at most the number of rows c.
Rows are `(n, D)` here, one in each line; T and M are `(D, D)`, and T works on columns, W T on a row r as r T^T W^T.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from benchmark.diffusion import Model, TextLayer
from benchmark.types import Delta

Reads = Literal["words", "pooled"]


@dataclass(frozen=True)
class Change:
    """T - I = up down: `up` `(D, r)`, `down` `(r, D)`, both float64."""

    up: Tensor
    down: Tensor

    @property
    def dense(self) -> Tensor:
        """T - I."""
        return self.up @ self.down

    @property
    def T(self) -> Tensor:  # noqa: N802
        """T."""
        return torch.eye(len(self.up), dtype=self.up.dtype, device=self.up.device) + self.dense

    def then(self, other: "Change") -> "Change":
        """T T': first this, then another on what it leaves."""
        up = torch.cat([self.up, other.up + self.up @ (self.down @ other.up)], dim=1)
        return Change(up, torch.cat([self.down, other.down]))


def solve(c: Tensor, g: Tensor, p: Tensor, *, lam: float, s_e: float, s_p: float) -> Change:
    """T of erased rows c and their targets g `(n, D)`, and of preserved rows p `(m, D)`.

    Raises:
        ValueError: M is singular: lam is 0, and the rows do not fill the space.
    """
    c, g, p = c.double(), g.double(), p.double()
    eye = torch.eye(c.shape[1], dtype=c.dtype, device=c.device)
    M = lam * eye + s_e * c.T @ c + s_p * p.T @ p
    down, info = torch.linalg.solve_ex(M, c.T)  # M is symmetric: (M^-1 c^T)^T = c M^-1
    if int(info) or not bool(torch.isfinite(down).all()):
        raise ValueError(f"expected a regular M, got a singular one at lam {lam}: raise lam.")
    return Change(s_e * (g - c).T, down.T)


def weight(model: Model, layer: TextLayer) -> Tensor:
    """W_0 of a layer `(out, D)`, in float64."""
    return model.denoiser.get_parameter(f"{layer.name}.weight").detach().double()


def grouped(model: Model) -> dict[Reads, list[TextLayer]]:
    """The layers that read the text, by what they read of it."""
    layers = model.text_layers()
    return {reads: found for reads in ("words", "pooled") if (found := [one for one in layers if one.reads == reads])}


def edited(model: Model, changes: Mapping[Reads, Change]) -> Delta:
    """W_0 (T - I) of each layer: as an adapter of rank r where that is smaller, else whole."""
    dense, low_rank = dict[str, Tensor](), dict[str, tuple[Tensor, Tensor]]()
    for reads, layers in grouped(model).items():
        if reads not in changes:
            continue
        change = changes[reads]
        for layer in layers:
            W_0, name = weight(model, layer), f"{model.part}.{layer.name}"
            if change.up.shape[1] * 2 < change.up.shape[0]:
                low_rank[name] = kept(change.down), kept(W_0 @ change.up)
            else:
                dense[f"{name}.weight"] = kept(W_0 @ change.dense)
    return Delta(dense=dense, low_rank=low_rank)


def kept(tensor: Tensor) -> Tensor:
    """A tensor as a delta holds it."""
    return tensor.float().cpu().contiguous()


def gram(model: Model, layers: Sequence[TextLayer]) -> Tensor:
    """S = sum W_0^T W_0 of layers that read the same: `(D, D)`."""
    first, *others = layers
    S = (W := weight(model, first)).T @ W
    for layer in others:
        S += (W := weight(model, layer)).T @ W
    return S
