"""R.A.C.E.: Robust Adversarial Concept Erasure for Secure Text-to-Image Diffusion Models (Kim et al., ECCV 2024).

Continues ESD, on texts that are moved to where the concept comes back. For each z_t and t, drawn as in ESD:

    d_0   ~ U(-e, e)
    d    <- clip(d - (e / 4) sign grad_d || x_T - eps_th(z_t | c + d) ||^2, -e, e),   `attack_steps` times
    loss  = || eps_th(z_t | c + d) - eps_tgt ||^2                                       (ESD's, see `defenses.erasing`)

c + d is kept between the smallest and the largest element of c. x_T is the noise that z_t was drawn from.

Paper     https://arxiv.org/abs/2405.16341
Code      https://github.com/chkimmmmm/R.A.C.E. @ a497076
Differs   ESD is trained first, inside (`warm_steps`), so that eps_0 is the base: on top of a defense, eps_0 would be
          that one. With 0 warm steps it begins with what it is given. Samples at the model's native size. On flow
          models, which the paper does not have, x_T is compared with the noise that a velocity means.
Symbols   eps_0 frozen predictor; eps_th trained predictor; c the encoded concept; e `radius`; eta negative guidance.
Protects  against prompts that name c, and texts near it. Makes no claim about fine-tuning.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from benchmark.diffusion import Model, Scope, difference, normal
from benchmark.types import Concept, Delta, Examples, Report, Requirement, Split
from defenses.base import Defense
from defenses.erasing import away, descend, student
from defenses.sampling import Sampler, mean_passes, needs, partial_sample
from defenses.text_rows import Wording, prompts_read, wanted


@dataclass(frozen=True, kw_only=True)
class RACE(Defense):
    """Erase a phrase, and the texts around it. Defaults: the release's, on ESD's."""

    warm_steps: int = 1000  # of ESD
    steps: int = 1000
    lr: float = 1e-5  # of both
    batch: int = 1
    eta: float = 1.0  # negative guidance
    radius: float = 0.1
    attack_steps: int = 10
    lasso: float = 0.0  # pull back to where ESD ended; 0.1 in the preset
    scope: Scope = "x"
    start_guidance: float = 3.0
    ddim_steps: int = 50
    sampler: Sampler = "compvis"  # few steps need `ddim`
    erase: Wording = "phrase"  # one of them a step; wordings and the defender's prompts are ours

    version = 1
    several = True
    presets = {"release": {}, "lasso": {"lasso": 0.1}}
    fidelity = "reimplemented"
    matched = "equations and settings read in the release; nothing was run beside it"

    @property
    def reads(self) -> tuple[Split, ...]:
        """Of whose prompts it reads the texts."""
        return prompts_read(self.erase, "none")

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the change of the parameters in `scope`, of ESD and of what came after.

        Raises:
            ValueError: `scope` selects no parameter of this model, or the loss is not finite.
        """
        names, done = model.scope(self.scope), 0
        edited, theta = student(model, names)
        for steps, robust in ((self.warm_steps, False), (self.steps, True)):
            start = [p.detach().clone() for p in theta] if robust and self.lasso else []
            losses = (loss + self.pull(theta, start) for loss in self.losses(edited, model, concept, rng, robust))
            optimizer = torch.optim.Adam(theta, lr=self.lr)
            descend(optimizer, islice(losses, steps), report, total=self.warm_steps + self.steps, done=done)
            done += steps
        return difference(edited, model, names=names)

    def losses(self, edited: Model, model: Model, concept: Concept, rng: Generator, robust: bool) -> Iterator[Tensor]:
        """Endless losses of ESD, or of what comes after it."""
        with torch.no_grad():
            texts, null = model.encode_text(wanted(concept, self.erase)), model.encode_text([""])
        while True:
            chosen = int(torch.randint(len(texts), (), generator=rng))
            c = texts[chosen : chosen + 1]
            x_T = normal((self.batch, *model.latent_shape), rng, like=c)
            z_t, t = self.draw(edited, c, null, x_T, rng)
            c_star = self.attack(edited, z_t, t, c, x_T, rng) if robust else c
            yield self.loss(edited, model, z_t, t, c, c_star, null)

    def draw(self, edited: Model, c: Tensor, null: Tensor, x_T: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        """z_t `(B, C, h, w)` and t `()`: from x_T with prompt c, stopped at a random step."""
        return partial_sample(
            edited,
            c,
            null,
            batch=self.batch,
            ddim_steps=self.ddim_steps,
            guidance=self.start_guidance,
            sampler=self.sampler,
            rng=rng,
            start=x_T,
        )

    def attack(self, edited: Model, z_t: Tensor, t: Tensor, c: Tensor, x_T: Tensor, rng: Generator) -> Tensor:
        """c + d `(1, L, D)` after the steps of the search."""
        e, low, high = self.radius, c.min(), c.max()
        d = (e * (2 * torch.rand(c.shape, generator=rng) - 1)).to(c)
        for _ in range(self.attack_steps):
            found = (c + d).clamp(low, high).requires_grad_()
            predicted = edited.predict(z_t, t, found.expand(len(z_t), -1, -1))
            (gradient,) = torch.autograd.grad(F.mse_loss(edited.to_noise(z_t, predicted, t), x_T), found)
            d = (found.detach() - c - e / 4 * gradient.sign()).clamp(-e, e)
        return (c + d).clamp(low, high)

    def loss(
        self, edited: Model, model: Model, z_t: Tensor, t: Tensor, c: Tensor, c_star: Tensor, null: Tensor
    ) -> Tensor:
        """The scalar that is minimised, for z_t `(B, C, h, w)`, t `()`, c, c + d and null `(1, L, D)`."""
        c, c_star, null = (text.expand(len(z_t), -1, -1) for text in (c, c_star, null))
        return F.mse_loss(edited.predict(z_t, t, c_star), away(model, z_t, t, c, null, self.eta))

    def pull(self, theta: list[nn.Parameter], start: list[Tensor]) -> Tensor | float:
        """lasso * sum of each parameter's mean |th - th_ESD|."""
        return self.lasso * sum((p - p_0).abs().mean() for p, p_0 in zip(theta, start, strict=True)) if start else 0.0

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """What its sampler and its scope need."""
        return needs(self.sampler, self.scope)

    def passes(self) -> int:
        """A step has part of a guided trajectory, three predictions and a backward pass, and the search's before."""
        drawn = mean_passes(self.sampler, self.ddim_steps, self.start_guidance)
        searched = self.steps * 3 * self.attack_steps
        return round(self.batch * ((self.warm_steps + self.steps) * (drawn + 5) + searched))
