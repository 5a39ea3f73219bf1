"""ESD: Erasing Concepts from Diffusion Models (Gandikota et al., ICCV 2023).

Fine-tunes the noise predictor so that, given the concept c, it answers with what the frozen model would say when
guided away from c:

    eps_tgt = eps_0(z_t | null) - eta [eps_0(z_t | c) - eps_0(z_t | null)]      (Eq. target)
    loss    = || eps_th(z_t | c) - eps_tgt ||^2                                  (Eq. loss)

z_t is sampled with the prompt c and guidance `start_guidance`, for a random part of `ddim_steps` steps, by one of the
samplers in `defenses.sampling`; t is drawn with it.

Paper     https://arxiv.org/abs/2303.07345
Code      https://github.com/rohitgandikota/erasing, CompVis release @ a2189e9 (`paper`), diffusers release @ 25613d2
          (`fast` and `sdxl`: esd_sd.py and esd_sdxl.py, whose target without `--erase_from` is eps_0(z_t | null));
          utils/esd_trainer.py of the fork stanulet27/erasing (`flux` and `klein`: on a flow, eps is its velocity)
Differs   samples at the model's native size (the diffusers release uses 1024 px for SD 1.4). The CompVis release
          computes in float32 and the diffusers release in bfloat16; here a run's `precision` decides, and the presets
          for SD 1.4 and SDXL choose bfloat16: on a random model the gradient is 7 % off in it, at a cosine of 0.998.
          `sdxl`: the release's Euler sampler takes the steps of DDIM, but hands z_t to the predictor unscaled, as
          z_t / sqrt(ab_t); here z_t is what the predictor was trained on.
Symbols   eps_0 frozen predictor; eps_th trained predictor; c concept; eta negative guidance; z_t noisy latents.
Protects  against prompts that name c. Makes no claim about fine-tuning.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from benchmark.diffusion import Model, Scope, difference
from benchmark.types import Concept, Delta, Examples, Report, Requirement
from defenses.base import Defense
from defenses.erasing import away, descend, student
from defenses.sampling import Sampler, mean_passes, needs, partial_sample

FORK = {"steps": 1400, "lr": 1e-4, "sampled_from": "frozen", "sampler": "ddim"}


@dataclass(frozen=True, kw_only=True)
class ESD(Defense):
    """Erase a phrase by negative guidance. Defaults are the paper's (`paper`)."""

    eta: float = 1.0  # negative guidance
    steps: int = 1000
    lr: float = 1e-5
    batch: int = 1
    scope: Scope = "x"  # cross-attention, for styles and named things; `u` is the paper's choice for nudity
    sampled_from: Literal["edited", "frozen"] = "edited"  # which model draws z_t
    start_guidance: float = 3.0
    erase: Literal["phrase", "wordings"] = "phrase"  # wordings: one of the card's a step, as the release's alt_esd
    ddim_steps: int = 50
    sampler: Sampler = "compvis"  # by whom, and what t belongs to z_t; few steps need `ddim`

    version = 2
    several = True
    presets = {
        "paper": {},
        # The authors' diffusers release: esd_sd.py, and esd_sdxl.py by the scope of its README.
        "fast": {"steps": 200, "lr": 5e-5, "sampled_from": "frozen", "sampler": "pndm"},
        "sdxl": {
            "steps": 200,
            "lr": 2e-4,
            "scope": "x-strict",
            "eta": 0.0,
            "sampled_from": "frozen",
            "sampler": "ddim",
            "start_guidance": 2.0,
        },
        # A fork's trainers for FLUX.1 and klein, `esd-x`; eta is the paper's, where theirs aims at the empty text.
        "flux": {**FORK, "start_guidance": 3.5, "ddim_steps": 28},
        "klein": {**FORK, "start_guidance": 4.0},
    }
    fidelity = "official-matched"
    matched = (
        "run beside both releases on a random model: on the same z_t and t, target, loss, gradient and four steps of "
        "Adam of `paper`, loss and gradient of `fast` and the target of `sdxl` are equal to the last bit; the sets of "
        "parameters are the releases' on SD 1.4, by name, and so are the timesteps and levels of the samplers. Not "
        "compared: `flux` and `klein`. No trained weights, no GPU"
    )

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the change of the parameters in `scope` that erases `concept.phrase`.

        Raises:
            ValueError: `scope` selects no parameter of this model, or the loss is not finite.
        """
        names = model.scope(self.scope)
        edited, theta = student(model, names)
        losses = islice(self.losses(edited, model, concept, rng), self.steps)
        descend(torch.optim.Adam(theta, lr=self.lr), losses, report, total=self.steps)
        return difference(edited, model, names=names)

    def losses(self, edited: Model, model: Model, concept: Concept, rng: Generator) -> Iterator[Tensor]:
        """Endless losses."""
        wordings = (*concept.phrases, *(concept.wordings if self.erase == "wordings" else ()))
        with torch.no_grad():
            null, texts = model.encode_text([""]), model.encode_text(wordings)
        while True:
            chosen = int(torch.randint(len(texts), (), generator=rng))
            c = texts[chosen : chosen + 1]
            z_t, t = self.draw(edited if self.sampled_from == "edited" else model, c, null, rng)
            yield self.loss(edited, model, z_t, t, c, null)

    def draw(self, model: Model, c: Tensor, null: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        """z_t `(B, C, h, w)` and t `()`: from noise with prompt c, stopped at a random step."""
        return partial_sample(
            model,
            c,
            null,
            batch=self.batch,
            ddim_steps=self.ddim_steps,
            guidance=self.start_guidance,
            sampler=self.sampler,
            rng=rng,
        )

    def loss(self, edited: Model, model: Model, z_t: Tensor, t: Tensor, c: Tensor, null: Tensor) -> Tensor:
        """The scalar that is minimised, for z_t `(B, C, h, w)`, t `()`, c and null `(1, L, D)`."""
        c, null = c.expand(len(z_t), -1, -1), null.expand(len(z_t), -1, -1)
        eps_tgt = away(model, z_t, t, c, null, self.eta)  # Eq. target
        return F.mse_loss(edited.predict(z_t, t, c), eps_tgt)  # Eq. loss

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """What its sampler and its scope need."""
        return needs(self.sampler, self.scope)

    def passes(self) -> int:
        """A step has three predictions, a backward pass and the mean part of a guided trajectory."""
        drawn = mean_passes(self.sampler, self.ddim_steps, self.start_guidance)
        return round(self.steps * self.batch * (drawn + 5))
