"""Noise probe: the same prompt from many start noises, and nothing else. The control of whatever searches noise.

    z_T = sigma eps_i,   i = 1 ... n;     presence_after = mean over i,   presence_best = max over i, over prompts

Any search with a judge at hand has to beat the best of n draws, which needs no search at all; without a judge, whoever
draws gets the mean. Both stand in the cell, beside the others and in no rank.

Paper     https://arxiv.org/abs/2505.17013 (When Are Concepts Erased From Diffusion Models?), the noise-based probe
Code      kevinlu4588/WhenAreConceptsErased @ 9a03e07: 24 settings of eta (1 to 1.85) and variance (1 to 1.04), the best
          chosen by a classifier
Differs   the noise changes, not the sampler, which stays deterministic; the deviation is one number; the mean stands
          beside the best. The first noises are those of the images before any attack.
Symbols   sigma deviation of the start noise; n draws.
Access    queries
Budget    draws of each prompt, one trajectory each; nothing is trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from attacks.base import SamplingAttack
from benchmark.diffusion import Model


@dataclass(frozen=True, kw_only=True)
class NoiseProbe(SamplingAttack):
    """Draw each prompt n times. Default: as many as the release has settings."""

    draws: int = 24
    deviation: float = 1.0  # the release goes to sqrt(1.04)

    version = 1
    access = "queries"
    standing = "beside"
    unit = "start noises of each prompt"
    presets = {"wide": {"deviation": 1.02}}

    def budgets(self, asked: Sequence[int]) -> tuple[int, ...]:
        """The draws, whatever the grid of optimizer steps."""
        return (self.draws,)

    def images(self, asked: int, budget: int) -> int:
        """As many as there are draws."""
        return budget

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
        """The noise, with its deviation."""
        return self.deviation * z_T, 0
