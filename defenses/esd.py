"""ESD: Erasing Concepts from Diffusion Models (Gandikota et al., ICCV 2023).

Fine-tunes the noise predictor so that, given the concept c, it answers with what the frozen model would say when
guided away from c:

    eps_tgt = eps_0(z_t | null) - eta [eps_0(z_t | c) - eps_0(z_t | null)]      (Eq. target)
    loss    = || eps_th(z_t | c) - eps_tgt ||^2                                  (Eq. loss)

z_t is sampled with the prompt c, by DDIM with guidance `start_guidance`, up to a random one of `ddim_steps` steps.

Paper     https://arxiv.org/abs/2303.07345
Code      https://github.com/rohitgandikota/erasing, CompVis release @ a2189e9 (`paper`), diffusers release (`fast`)
Differs   samples at the model's native size (the diffusers release uses 1024 px for SD 1.4); fp32.
Symbols   eps_0 frozen predictor; eps_th trained predictor; c concept; eta negative guidance; z_t noisy latents.
Protects  against prompts that name c. Makes no claim about fine-tuning.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from benchmark.diffusion import Model, difference
from benchmark.types import Concept, Delta, Examples, Report
from defenses.base import Defense
from defenses.sampling import partial_sample
from defenses.scopes import Scope, scope_names


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

    version = 1
    presets = {
        "paper": {},
        "fast": {"steps": 200, "lr": 5e-5, "sampled_from": "frozen"},  # the authors' diffusers release
    }
    fidelity = "reimplemented"
    matched = "target, loss, optimiser, samplers and parameter sets read in both official releases; none was run"

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the change of the parameters in `scope` that erases `concept.phrase`.

        Raises:
            ValueError: `scope` selects no parameter of this model, or the loss is not finite.
        """
        edited = model.clone()
        names = scope_names(edited.unet, self.scope)
        for name, parameter in edited.unet.named_parameters():
            parameter.requires_grad_(name in names)
        optimizer = torch.optim.Adam([p for p in edited.unet.parameters() if p.requires_grad], lr=self.lr)
        wordings = (concept.phrase, *(concept.wordings if self.erase == "wordings" else ()))
        with torch.no_grad():
            null, texts = model.encode_text([""]), model.encode_text(wordings)
        for i in range(self.steps):
            chosen = int(torch.randint(len(texts), (), generator=rng))
            c = texts[chosen : chosen + 1]
            z_t, t = self.draw(edited if self.sampled_from == "edited" else model, c, null, rng)
            loss = self.loss(edited, model, z_t, t, c, null)
            if not torch.isfinite(loss):
                raise ValueError(f"expected a finite loss, got {loss.item()} at step {i}: lower lr ({self.lr}).")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            report(step=i + 1, total=self.steps, loss=loss.item())
        return difference(edited, model, names=names)

    def draw(self, model: Model, c: Tensor, null: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        """z_t `(B, C, h, w)` and t `()`: DDIM from noise with prompt c, stopped at a random step."""
        return partial_sample(
            model,
            c,
            null,
            batch=self.batch,
            ddim_steps=self.ddim_steps,
            guidance=self.start_guidance,
            from_edited=self.sampled_from == "edited",
            rng=rng,
        )

    def loss(self, edited: Model, model: Model, z_t: Tensor, t: Tensor, c: Tensor, null: Tensor) -> Tensor:
        """The scalar that is minimised, for z_t `(B, C, h, w)`, t `()`, c and null `(1, L, D)`."""
        c, null = c.expand(len(z_t), -1, -1), null.expand(len(z_t), -1, -1)
        with torch.no_grad():
            eps_null, eps_c = model.predict_noise(z_t, t, null), model.predict_noise(z_t, t, c)
            eps_tgt = eps_null - self.eta * (eps_c - eps_null)  # Eq. target
        return F.mse_loss(edited.predict_noise(z_t, t, c), eps_tgt)  # Eq. loss

    def passes(self) -> int:
        """A step has three predictions, a backward pass and, in the mean, half of a guided trajectory."""
        half = (self.ddim_steps - 1) / 2 * (1 if self.start_guidance == 1 else 2)
        return round(self.steps * self.batch * (half + 5))
