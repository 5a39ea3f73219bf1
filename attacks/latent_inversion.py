"""Latent inversion: the noise from which the defended model draws a given picture of the concept.

    z_0 = DDIM_base(z_T, prompt)
    z_hi = DDIM^-1(z_lo, f(z_hi, t_hi, c)),  solved by k fixed-point steps from z_hi = z_lo,  from z_0 up to noise
    z_T* = z || z_T || / || z ||             as large as noise is

If the concept were gone, no likely noise would lead to it. But a sampler that can be inverted draws nearly any picture
from some noise, whatever was erased: this stands beside the others, in no rank. Read it with `noise_probe`.

Paper     https://arxiv.org/abs/2412.00782 (Memories of Forgotten Concepts); inversion by fixed points: ReNoise,
          https://arxiv.org/abs/2403.14602
Code      none was read
Differs   the picture is the base's, in latents; it is inverted under the run's own guidance, so that drawing goes the
          same way back; the papers average predictions, here the last one counts. In place of a likelihood that is
          measured the noise is brought to the norm of the one that drew the picture (`typical`).
Symbols   f the guided prediction; t_lo, t_hi neighbouring times; c the prompt.
Access    weights of the defended model and a picture, here of the base. A guard is met at each time as it is there.
Budget    fixed-point steps for each step of the sampler; nothing is trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from attacks.base import SamplingAttack
from benchmark.diffusion import Model, sample


@dataclass(frozen=True, kw_only=True)
class LatentInversion(SamplingAttack):
    """Start from the noise that inverts an image of the concept."""

    iterations: tuple[int, ...] = (1, 4)  # ours; 1 is plain DDIM inversion, but for the time at which it predicts
    typical: bool = True  # the noise has the norm of the one that drew the picture

    version = 1
    access = "weights"
    uses_base = True
    standing = "beside"
    unit = "fixed-point steps for each step of the sampler"

    def budgets(self, asked: Sequence[int]) -> tuple[int, ...]:
        """The fixed-point steps, whatever the grid of optimizer steps."""
        return tuple(sorted(set(self.iterations)))

    def trajectory(self, budget: int, steps: int) -> int:
        """The base's image, its inversion, and the defended model's own image."""
        return (2 + budget) * steps

    def misfit(self, budget: int, steps: int) -> str:
        """Nothing would be inverted."""
        return "" if budget > 0 else f"an inversion takes at least one fixed-point step, not {budget}"

    @torch.no_grad()
    def begin(
        self,
        model: Model,
        base: Model,
        z_T: Tensor,
        text: Tensor,
        null: Tensor,
        *,
        budget: int,
        steps: int,
        scale: float,
    ) -> tuple[Tensor, int]:
        """z_T*, before the first step."""
        z = sample(base, z_T, text, null, steps=steps, guidance=scale)
        for t_hi, t_lo in reversed(list(pairwise(model.trajectory(steps)))):
            below = z
            for _ in range(budget):  # the step is linear in z: with f held, walking it backwards inverts it
                z = model.step(below, model.guided(z, t_hi, text, null, scale), t_lo, t_hi)
        if self.typical:
            norms = [each.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for each in (z_T, z)]
            z = z * norms[0] / norms[1]
        return z, 0
