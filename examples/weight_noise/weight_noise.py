"""weight_noise: random noise on the cross-attention. The floor: a defense must beat it.

    W' = W + sigma std(W) xi,   xi ~ N(0, I),   for each weight W of attn2

Differs   nothing to differ from; the equation is the method.
Protects  nothing in particular: it does not know the concept.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Generator

from benchmark.diffusion import Model, Scope, normal
from benchmark.types import Concept, Delta, Examples, Report
from defenses.base import Defense


@dataclass(frozen=True, kw_only=True)
class WeightNoise(Defense):
    """Noise of a share `sigma` of each weight's spread, on the parameters of `scope`."""

    sigma: float = 0.5  # our choice
    scope: Scope = "x"

    version = 1
    fidelity = "reimplemented"
    matched = "follows no paper; its test computes the equation a second time"

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the noise; neither the concept nor any data is read."""
        dense = {}
        for name in sorted(model.scope(self.scope)):
            weight = model.denoiser.get_parameter(name)
            noise = self.sigma * weight.std() * normal(weight.shape, rng, like=weight)
            dense[f"{model.part}.{name}"] = noise.detach().float().cpu()
        report(step=1, total=1, loss=float("nan"))
        return Delta(dense=dense)
