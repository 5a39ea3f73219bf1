"""What second-order methods ask of a loss: products with its Hessian H, and sums of its powers.

    H v  =  d <grad l(w), v> / dw                                    `exact`: a backward pass through a backward pass
         ~  [ grad l(w + e v) - grad l(w - e v) ] / 2 e              `difference`: needs no graph of the gradient
    w    -> w - s grad [ l(w) + 1/2 || w - th ||^2 ]                 one proximal step; its Jacobian in w is
    J    =  (1 - s) - s H
    sum_{j=a..b} J^j g = sum_i c_i H^i g                             `neumann`: any s from the same products

Fused attention has no second derivative: `exact` computes it in plain steps.
"""

from collections.abc import Callable, Sequence
from math import comb
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Vector = tuple[Tensor, ...]  # one tensor for each parameter
Way = Literal["exact", "difference"]
Product = Callable[[Vector], Vector]


def hessian(loss: Callable[[], Tensor], w: Sequence[Tensor], way: Way, *, e: float = 1e-3) -> Product:
    """v -> H v at w. `loss` must be the same function of w each time: its noise is drawn before.

    Args:
        loss: computes l from `w`.
        w: leaves that require gradients; `difference` moves them, and puts them back.
        way: how.
        e: the step of `difference`, as a norm.
    """
    if way == "difference":
        return lambda v: central(loss, w, v, e)
    with sdpa_kernel(SDPBackend.MATH):
        h = torch.autograd.grad(loss(), w, create_graph=True)
    return lambda v: torch.autograd.grad(h, w, grad_outputs=v, retain_graph=True)


def central(loss: Callable[[], Tensor], w: Sequence[Tensor], v: Vector, e: float) -> Vector:
    """H v by a central difference of gradients, e away from w on both sides."""
    length = norm(v)
    if length == 0:
        return v
    start, found = [p.detach().clone() for p in w], list[Vector]()
    for side in (e / length, -e / length):
        with torch.no_grad():
            for p, p_0, v_p in zip(w, start, v, strict=True):
                p.copy_(p_0 + side * v_p)
        found.append(torch.autograd.grad(loss(), w))
    with torch.no_grad():
        for p, p_0 in zip(w, start, strict=True):
            p.copy_(p_0)
    return tuple((up - down) * (length / (2 * e)) for up, down in zip(*found, strict=True))


def powers(product: Product, g: Vector, count: int) -> list[Vector]:
    """g, H g, ..., H^(count-1) g."""
    found = [g]
    while len(found) < count:
        found.append(tuple(t.detach() for t in product(found[-1])))
    return found


def neumann(powers: Sequence[Vector], s: float, first: int, last: int) -> Vector:
    """sum_{j=first..last} J^j g, from the powers H^i g up to i = last."""
    c = [
        sum(comb(j, i) * (1 - s) ** (j - i) * (-s) ** i for j in range(max(first, i), last + 1))
        for i in range(last + 1)
    ]
    return tuple(
        torch.stack([c_i * t for c_i, t in zip(c, terms, strict=False)]).sum(0) for terms in zip(*powers, strict=True)
    )


def norm(v: Vector) -> float:
    """|| v || over all tensors."""
    return float(torch.stack([t.square().sum() for t in v]).sum().sqrt())


def growth(after: Vector, before: Vector) -> float:
    """Mean over tensors of || after || / || before ||; where nothing was, nothing has grown."""
    ratios = [(a.norm() / b.norm()).item() if bool(b.any()) else 0.0 for a, b in zip(after, before, strict=True)]
    return sum(ratios) / len(ratios)
