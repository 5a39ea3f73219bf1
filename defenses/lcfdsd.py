"""LCFDSD: leveraging catastrophic forgetting to develop safe diffusion models (Pan et al., NeurIPS 2024).

Trains all weights so that predictions for clean and for harmful data go to different places:

    L    = 1[clean] L_DM + lt D,    D = d(x0^, c_own) - lc max(0, d(x0^, c_other) - l)
    x0^  = the clean latent that f_th(z_t, t, c) means; c_own, c_other running means of both classes; d Euclidean

    lt     x0^ is shifted by -100 and negated for clean data, by +100 for harmful data, before the distances
    ng     the noise given is e + 1 for clean data and e - 1 for harmful data, and the target stays that of e
    high   + L_DM on clean data, - 0.5 L_DM on harmful data

The release builds D from plain numbers, so that it has no gradient: there `lt` and `ng` train on clean data alone, and
`high` is plain ascent. `contrast: false` is that (`released`), `contrast: true` is what its authors mean (`contrast`).

Paper     NeurIPS 2024, of which no text was at hand
Code      the authors' release @ 8e1638d, by notes on its three trainers
Differs   the class of each sample counts (in the release that of a batch's first); at the model's native size, in
          the run's precision (the release: 768 px, bfloat16); the harmful images are the card's (the release: 1452
          captions of both classes, drawn by the model); with the contrast, D is averaged over samples, and the means
          move by `momentum`, which no note names.
Symbols   th all weights; z_t noisy latents; e noise; c centre; lt, lc, l weights and margin.
Protects  against fine-tuning on the concept, by forgetting; with `high` or a contrast, against prompts that name it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import Literal

import torch
from torch import Generator, Tensor

from benchmark.diffusion import Model, difference, normal
from benchmark.types import Concept, Delta, Examples, Report
from defenses.base import Defense
from defenses.data import draw
from defenses.erasing import descend

SHIFT = 100.0  # lt
ASCENT = 0.5  # high


@dataclass(frozen=True, kw_only=True)
class LCFDSD(Defense):
    """Make both classes forget each other. Defaults are the release's `ng`, as it really trains."""

    variant: Literal["ng", "lt", "high"] = "ng"
    contrast: bool = False  # true: D has a gradient, as meant
    steps: int = 2000  # 10000 for `high`
    lr: float = 1e-5  # falls to 0 as a cosine
    weight_decay: float = 1e-2
    batch: int = 4  # of each step, half of it harmful in the mean; the release: 1, four times
    weight: float | None = None  # lt; None: 5e-3 for `ng`, 5e-5 for the others
    push: float = 1.0  # lc
    margin: float = 0.0  # l
    momentum: float = 0.9  # reconstructed: what a running mean keeps at each sample

    version = 1
    needs = frozenset({"concept", "safe"})
    presets = {
        "released": {},
        "released-lt": {"variant": "lt"},
        "released-high": {"variant": "high", "steps": 10000},
        "contrast": {"contrast": True},
        "contrast-lt": {"variant": "lt", "contrast": True},
    }
    fidelity = "reconstructed"
    matched = (
        "losses, rates, schedule and constants of the three variants as in notes on the release; ours are the "
        "contrast's running means, and the data. Nothing was run beside it"
    )

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the change of all weights.

        Raises:
            ValueError: the loss is not finite.
        """
        edited = model.clone(only={model.part})
        theta = list(edited.denoiser.requires_grad_(True).parameters())
        optimizer = torch.optim.AdamW(theta, lr=self.lr, betas=(0.9, 0.999), weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: (1 + cos(pi * i / self.steps)) / 2)
        draws = {name: draw(model, data[name], 1, rng=rng) for name in ("safe", "concept")}
        centres: dict[bool, Tensor] = {}

        def losses() -> Iterator[Tensor]:
            for _ in range(self.steps):
                is_harmful = torch.rand(self.batch, generator=rng) < 0.5
                pairs = [next(draws["concept" if harmful else "safe"]) for harmful in is_harmful.tolist()]
                z_0, text = (torch.cat(parts) for parts in zip(*pairs, strict=True))
                yield self.loss(edited, z_0, text, is_harmful.to(z_0.device), centres, rng=rng)

        descend(optimizer, losses(), report, total=self.steps, clip=1.0, after=schedule.step)
        return difference(edited, model, names={name for name, _ in edited.denoiser.named_parameters()})

    def loss(
        self,
        edited: Model,
        z_0: Tensor,
        text: Tensor,
        is_harmful: Tensor,
        centres: dict[bool, Tensor],
        *,
        rng: Generator,
    ) -> Tensor:
        """L on latents `(B, C, h, w)`, text `(B, L, D)` and classes `(B,)`; with a contrast, `centres` move along."""
        t = edited.times(len(z_0), rng=rng)
        e = normal(z_0.shape, rng, like=z_0)
        sign = 1 - 2 * is_harmful.to(z_0).reshape(-1, 1, 1, 1)  # 1: clean, -1: harmful
        z_t = edited.noised(z_0, e + sign if self.variant == "ng" else e, t)
        predicted = edited.predict(z_t, t.to(z_0.device), text)
        each = (predicted - edited.target(z_0, e, t)).square().flatten(1).mean(1)
        loss = (each * self.weights(is_harmful).to(each)).mean()
        if not self.contrast:
            return loss
        x_0 = edited.to_clean(z_t, predicted, t.to(z_0.device))
        if self.variant == "lt":
            x_0 = sign * -x_0 + SHIFT  # clean: -(x0^ - 100); harmful: x0^ + 100
        weight = (5e-3 if self.variant == "ng" else 5e-5) if self.weight is None else self.weight
        return loss + weight * self.apart(x_0.flatten(1), is_harmful.tolist(), centres)

    def weights(self, is_harmful: Tensor) -> Tensor:
        """What L_DM of each sample counts, `(B,)`: the harmful ones nothing, or less than nothing."""
        return torch.where(is_harmful, -ASCENT if self.variant == "high" else 0.0, 1.0)

    def apart(self, x_0: Tensor, is_harmful: list[bool], centres: dict[bool, Tensor]) -> Tensor:
        """D of predicted clean latents `(B, n)`, averaged; a class without a centre yet pushes nobody."""
        found = []
        for x, harmful in zip(x_0, is_harmful, strict=True):
            old = centres.get(harmful, x.detach())
            centres[harmful] = self.momentum * old + (1 - self.momentum) * x.detach()
            D = (x - centres[harmful]).norm()
            if (not harmful) in centres:
                other = (x - centres[not harmful]).norm()
                D = D - self.push * (other - self.margin).clamp(min=0)
            found.append(D)
        return torch.stack(found).mean()

    def passes(self) -> int:
        """One forward and one backward pass, counted as three, for each sample."""
        return 3 * self.steps * self.batch
