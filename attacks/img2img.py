"""img2img: the defended model redraws an image of the base from part of the way (SDEdit, Meng et al., ICLR 2022).

    z_0 = DDIM_base(z_T, prompt)
    z_t = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps,    image = DDIM_def(z_t, prompt, the steps that are left)

The budget is the percentage of the trajectory that is skipped, 100 (1 - strength) in diffusers' words.

Paper     https://arxiv.org/abs/2108.01073; against erasure: https://arxiv.org/abs/2506.08991
Code      huggingface/diffusers, pipeline_stable_diffusion_img2img.py, for how strength becomes a step
Differs   the image stays in latents, without a round trip through the VAE. The base reads the text as the defended
          model's encoder wrote it.
Symbols   ab_t cumulative product of the schedule's alphas; eps fresh noise, of a seed made from z_T: who has only the
          image cannot know what it was drawn from, and z_T itself would put the base's own trajectory back.
Access    queries: an image of the base and the defended model's image-to-image function.
Budget    percent skipped; one trajectory of the base and one of the defended model an image, nothing is trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from attacks.base import SamplingAttack
from attacks.noise import fresh
from benchmark.diffusion import Model, sample


@dataclass(frozen=True, kw_only=True)
class Img2Img(SamplingAttack):
    """Start from an image of the concept, noised part of the way."""

    skipped: tuple[int, ...] = (10, 30, 50, 70)  # percent: the strengths 0.9, 0.7, 0.5 and 0.3

    version = 2
    access = "queries"
    uses_base = True
    unit = "% of the sampling steps skipped"

    def budgets(self, asked: Sequence[int]) -> tuple[int, ...]:
        """The percentages, whatever the grid of optimizer steps."""
        return self.skipped

    def start(self, budget: int, steps: int) -> int:
        """The steps that are skipped, rounded as diffusers rounds."""
        return steps - steps * (100 - budget) // 100

    def misfit(self, budget: int, steps: int) -> str:
        """No step would be left to the defended model."""
        if 0 < budget < 100 and self.start(budget, steps) < steps:
            return ""
        return f"of {steps} sampling steps none is left after {budget} percent"

    def trajectory(self, budget: int, steps: int) -> int:
        """The base's image, and what is left for the defended model."""
        return 2 * steps - self.start(budget, steps)

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
        """The base's image, noised to where `budget` percent of the steps are done.

        Raises:
            ValueError: no step would be left.
        """
        if self.misfit(budget, steps):
            raise ValueError(f"expected to skip less than the {steps} steps, got {budget} percent: lower it.")
        start = self.start(budget, steps)
        z_0 = sample(base, z_T, text, null, steps=steps, guidance=scale)
        t = base.trajectory(steps)[start].expand(len(z_T))
        return base.noised(z_0, fresh(z_T, "img2img"), t), start
