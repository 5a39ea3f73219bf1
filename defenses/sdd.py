"""SDD: Towards Safe Self-Distillation of Internet-Scale Text-to-Image Diffusion Models (Kim et al., 2023).

The model being trained is to answer to the concept as it answers to no text; what is kept is its moving average:

    loss  = || eps_th(z_t | c) - sg eps_th(z_t | null) ||^2
    th'  <- ema th' + (1 - ema) th

z_t is sampled by the average th', which is the defended model.

Paper     https://arxiv.org/abs/2307.05977
Code      https://github.com/nannullna/safe-diffusion @ 8c57951
Differs   samples at the model's native size. `paper` has the settings of the paper's appendix as others quote them. The
          release's guidance of 1 draws z_t without a text, which is the default here, and a number is a guided prompt:
          all phrases in a row. The average lags 1 / (1 - ema) steps behind: with few steps lower ema.
Symbols   eps_th trained predictor, sg without gradient; c concept; null empty prompt; th' average of decay `ema`.
Protects  against prompts that name c. Makes no claim about fine-tuning.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from benchmark.diffusion import Model, Scope, difference
from benchmark.types import Concept, Delta, Examples, Report, Requirement, Split
from defenses.base import Defense
from defenses.erasing import descend, student
from defenses.sampling import Sampler, mean_passes, needs, partial_sample
from defenses.text_rows import Wording, prompts_read, wanted


@dataclass(frozen=True, kw_only=True)
class SDD(Defense):
    """Distil the answer to no text into the answer to a phrase. Defaults: the release's."""

    steps: int = 1500
    lr: float = 1e-5
    weight_decay: float = 1e-4
    batch: int = 1
    ema: float = 0.999
    clip: float = 1.0
    scope: Scope = "x"
    start_guidance: float | None = None  # none: z_t is drawn without a text
    ddim_steps: int = 50
    sampler: Sampler = "sdd"  # few steps need `ddim`
    erase: Wording = "phrase"  # one of them a step; wordings and the defender's prompts are ours

    version = 1
    several = True
    presets = {"release": {}, "paper": {"steps": 1300, "weight_decay": 1e-2, "ema": 0.998}}
    fidelity = "reimplemented"
    matched = "loss, sampler, average and settings read in the release; nothing was run beside it"

    @property
    def reads(self) -> tuple[Split, ...]:
        """Of whose prompts it reads the texts."""
        return prompts_read(self.erase, "none")

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the change from the base to the average.

        Raises:
            ValueError: `scope` selects no parameter of this model, or the loss is not finite.
        """
        names = model.scope(self.scope)
        edited, theta = student(model, names)
        teacher, averaged = student(model, names)
        optimizer = torch.optim.AdamW(theta, lr=self.lr, weight_decay=self.weight_decay)

        @torch.no_grad()
        def average() -> None:
            for old, new in zip(averaged, theta, strict=True):
                old.lerp_(new, 1 - self.ema)

        losses = islice(self.losses(edited, teacher, concept, rng), self.steps)
        descend(optimizer, losses, report, total=self.steps, clip=self.clip, after=average)
        return difference(teacher, model, names=names)

    def losses(self, edited: Model, teacher: Model, concept: Concept, rng: Generator) -> Iterator[Tensor]:
        """Endless losses."""
        with torch.no_grad():
            texts, null = edited.encode_text(wanted(concept, self.erase)), edited.encode_text([""])
            prompt = edited.encode_text([", ".join(concept.phrases)])
        while True:
            chosen = int(torch.randint(len(texts), (), generator=rng))
            z_t, t = self.draw(teacher, prompt, null, rng)
            yield self.loss(edited, z_t, t, texts[chosen : chosen + 1], null)

    def draw(self, teacher: Model, prompt: Tensor, null: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        """z_t `(B, C, h, w)` and t `()`, for texts `(1, L, D)`."""
        return partial_sample(
            teacher,
            null if self.start_guidance is None else prompt,
            null,
            batch=self.batch,
            ddim_steps=self.ddim_steps,
            guidance=1.0 if self.start_guidance is None else self.start_guidance,
            sampler=self.sampler,
            rng=rng,
        )

    def loss(self, edited: Model, z_t: Tensor, t: Tensor, c: Tensor, null: Tensor) -> Tensor:
        """The scalar that is minimised, for z_t `(B, C, h, w)`, t `()`, c and null `(1, L, D)`."""
        with torch.no_grad():
            target = edited.predict(z_t, t, null.expand(len(z_t), -1, -1))
        return F.mse_loss(edited.predict(z_t, t, c.expand(len(z_t), -1, -1)), target)

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """What its sampler and its scope need."""
        return needs(self.sampler, self.scope)

    def passes(self) -> int:
        """A step has two predictions, a backward pass and the mean part of a trajectory."""
        drawn = mean_passes(self.sampler, self.ddim_steps, 1.0 if self.start_guidance is None else self.start_guidance)
        return round(self.steps * self.batch * (drawn + 4))
