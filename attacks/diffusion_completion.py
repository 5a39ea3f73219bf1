"""Diffusion completion: the base draws the first steps, the defended model the rest (Lu et al., NeurIPS 2025).

    z = DDIM_base(z_T, prompt, steps 0 ... b - 1);   image = DDIM_def(z, prompt, steps b ...)

A defense that only steers the first steps leaves the knowledge behind, and this finds it without training.

Paper     https://arxiv.org/abs/2505.17013 (When Are Concepts Erased From Diffusion Models?)
Code      kevinlu4588/WhenAreConceptsErased @ 9a03e07, src/probes, configs/default.yaml
Differs   handovers are counted in steps that the base has done, of the run's own number of steps: the release fires its
          t_step k after k + 1 of 50, so that its [0, 1, 2] (src) and [1, 2, 3, 5, 10, 15, 20] (notebook) are the
          defaults here. Its src variant sets `__call__` on the pipeline itself, where Python does not look: there the
          erased model runs all 50 steps from the handed-over latents; this is the notebook's, and the paper's. The
          base reads the text as the defended model's encoder wrote it.
Access    weights: the attacker runs the base and the defended model on one trajectory.
Budget    steps that the base draws; one trajectory an image, nothing is trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from attacks.base import SamplingAttack
from benchmark.diffusion import Model, sample


@dataclass(frozen=True, kw_only=True)
class DiffusionCompletion(SamplingAttack):
    """Start on the base, finish on the defended model."""

    handovers: tuple[int, ...] = (1, 2, 3, 4, 6, 11, 16, 21)  # of 50, as published

    version = 1
    access = "weights"
    uses_base = True
    unit = "sampling steps that the base draws"

    def budgets(self, asked: Sequence[int]) -> tuple[int, ...]:
        """The handovers, whatever the grid of optimizer steps."""
        return self.handovers

    def misfit(self, budget: int, steps: int) -> str:
        """The base would draw the whole image, or none of it."""
        possible = f"a handover from 1 to {steps - 1}" if steps > 1 else "no handover at all"
        return "" if 0 < budget < steps else f"{steps} sampling steps allow {possible}, not {budget}"

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
        """The base's latents after `budget` steps.

        Raises:
            ValueError: the base would draw the whole image.
        """
        if self.misfit(budget, steps):
            raise ValueError(f"expected a handover from 1 to {steps - 1} of {steps} steps, got {budget}: lower it.")
        return sample(base, z_T, text, null, steps=steps, guidance=scale, stop=budget), budget
