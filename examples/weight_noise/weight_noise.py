"""weight_noise: random noise on the cross-attention. The floor: a defense must beat it.

    W' = W + sigma std(W) xi,   xi ~ N(0, I),   for each weight W of attn2

Differs   nothing to differ from; the equation is the method.
Protects  nothing in particular: it does not know the concept.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Generator

from benchmark.diffusion import Model, normal
from benchmark.types import Concept, Delta, Examples, Report
from defenses.base import Defense
from defenses.scopes import Scope, scope_names


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
        weights = {name: model.unet.get_parameter(name) for name in sorted(scope_names(model.unet, self.scope))}
        dense = {
            f"unet.{name}": (self.sigma * weight.std() * normal(weight.shape, rng, like=weight)).detach().float().cpu()
            for name, weight in weights.items()
        }
        report(step=1, total=1, loss=float("nan"))
        return Delta(dense=dense)
