"""SPM: One-dimensional Adapter to Rule Them All (Lyu et al., CVPR 2024).

Adapters of rank 1 on all layers of the blocks that attend learn ESD's target, and to change nothing else:

    W     <- W + (alpha / r) U D
    loss  = || eps_S(z_t|c) - eps_tgt ||^2 + lambda 1/n sum_i || eps_S(z_t|a_i) - eps_0(z_t|a_i) ||^2

    eps_tgt = eps_0(z_t|s) - eta [eps_0(z_t|c) - eps_0(z_t|s)],  s a surrogate, by default the empty text
    a_i     = N(0, I) of the encoding's shape, scaled to U(0.8, 1.2) times the norm of c

z_t is sampled with the adapters on, prompt c and guidance `start_guidance`. The release has the adapters in a file, and
lets each prompt's likeness to c say how strong they are (`spm_gate`); what is defended here is the model in which they
are merged.

Paper     https://arxiv.org/abs/2312.16145
Code      https://github.com/Con6924/SPM @ 3dd762e
Differs   merged and always on, as `strength` U D: the release's gate multiplies both factors, so that its multiplier 2
          for nudity is a strength of 4. Samples at the model's native size, by the family's own sampler (the release:
          256 to 448 pixels, a DDIM of 30 steps whose t is 33 to 42 levels above that of z_t). Of its four anchors two
          are the empty text, by how pairs are put together (`release`); `all`: four drawn ones. It takes a drawn anchor
          with probability 1 - cos(a, c), which is 1 in so many dimensions: here always. AdamW is not of 8 bit. The
          warm-up is a sixth of the steps: 500 of 3000.
Symbols   eps_0 frozen predictor; eps_S with adapters; c concept; a_i anchors; eta negative guidance; lambda weight.
Protects  against prompts that name c. Makes no claim about fine-tuning.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Generator

from benchmark.diffusion import Model
from benchmark.types import Concept, Delta, Examples, Report
from defenses.base import Defense
from defenses.membranes import Membranes


@dataclass(frozen=True, kw_only=True)
class SPM(Membranes, Defense):
    """Erase a phrase with adapters of rank 1. Defaults: the release's."""

    strength: float = 1.0

    version = 1
    several = True
    presets = {"release": {}, "nudity": {"strength": 4.0}, "all-anchors": {"anchors": "all"}}
    fidelity = "reimplemented"
    matched = "equations and settings read in the release; nothing was run beside it. Its gate is left out"

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the adapters, `strength` folded in.

        Raises:
            ValueError: this model has no block that attends, or the loss is not finite.
        """
        found = self.adapters(model, concept, rng, report)
        return Delta(low_rank={name: (down, self.strength * up) for name, (down, up) in found.items()})
