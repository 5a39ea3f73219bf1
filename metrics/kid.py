"""KID: the squared MMD between two sets of features under a cubic kernel (Binkowski et al., ICLR 2018).

    k(x, y) = (x . y / D + 1)^3

Unbiased, so that a few hundred images do; it may fall below 0. Over all images rather than subsets of them.
`metrics.sets` has the estimator, and why its interval is a jackknife's.

Direction  lower is better for fidelity.
Range      unbounded; 0 where the sets have one distribution.
Per        set: the defended model's images and the undefended base's.
Backbone   `embedder`, by default the Inception of 2015 with torchmetrics' antialiased 299 x 299.
Reference  torchmetrics' `poly_mmd`, which is `pairs: false`; the sums written out in float64.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Generator, Tensor

from metrics.base import SetMetric
from metrics.sets import unbiased_mmd


@dataclass(frozen=True, kw_only=True)
class KID(SetMetric):
    """Unbiased squared MMD with the kernel of the paper, not multiplied by 1000."""

    embedder: str = "inception:torch-fidelity"
    pairs: bool = True  # row i of both sets is one prompt and seed, as titer draws them; the paper's sets have no pairs

    version = 1
    splits = frozenset({"safe"})
    higher_is = "attacker"  # a larger distance is damage that the defense did
    bounds = (-math.inf, math.inf)

    def identity(self) -> str:
        """The estimator and the embedder."""
        return f"kid-u{'-pairs' if self.pairs else ''}@{self.embedded_by()}"

    def distance(self, f: Tensor, g: Tensor, *, rng: Generator) -> Mapping[str, float]:
        """`value` with a 95 % jackknife interval, which needs three images."""
        return unbiased_mmd(cubic, f, g, pairs=self.pairs)


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """`(N, M)` of features `(N, D)` and `(M, D)`."""
    return (x @ y.T / x.shape[1] + 1) ** 3
