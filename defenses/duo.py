"""DUO: Direct Unlearning Optimization for Robust and Safe Text-to-Image Models (Park et al., NeurIPS 2024).

Prefers an image without the concept to the same image with it. Texts are empty: the concept is unlearned by sight.

    l     = || f(z_t, t, null) - target ||^2,   of x- with the concept, of x+ without, for th and for the frozen base
    loss  = -log sigma( beta [(l-_th - l-_0) - (l+_th - l+_0)] ) + lambda || f_th(x_T, T, null) - f_0(x_T, T, null) ||^2

x+ is x- as the base redraws it with the anchor's text, from noise of `strength`, guided away from the text of x-
(SDEdit). One noise for a pair, which is x_T, too; t is drawn for each of both, below `noisiest`. T is the first time.

Paper     https://arxiv.org/abs/2407.21035
Code      https://github.com/naver-ai/DUO @ e0f2ae6
Differs   x- are the defender's images (the release draws them with the base), and no detector sorts pairs out. Pairs
          are edited as latents, by the family's sampler. On flow models, which the paper does not have, adapters are on
          the image's side of joint attention. The release's preset for violence trains four adapters, one for each
          sub-concept; here a concept has one.
Symbols   f_0 frozen predictor; f_th with adapters of `rank` on the image's self-attention; beta; lambda; null.
Protects  against prompts, whatever they say. Makes no claim about fine-tuning; the layers of the text stay as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from benchmark.diffusion import Model, batches, errors, normal, sample
from benchmark.model.adapters import add_adapters, low_rank
from benchmark.types import Concept, Delta, Examples, Report
from defenses.base import Defense
from defenses.data import captions, latents
from defenses.erasing import anchor_of, anchored, descend

PARTS = 100  # of the times, from which t is drawn
FINEST = 500  # steps of the trajectory whose first time is the largest


@dataclass(frozen=True, kw_only=True)
class DUO(Defense):
    """Unlearn a concept by pairs of images. Defaults: the release's for nudity."""

    anchor: str | None = None  # none: the card's subject; nudity: a person who is dressed
    steps: int = 1000
    lr: float | None = None  # none: 3e-4 * 100 / beta
    weight_decay: float = 1e-2
    batch: int = 4
    clip: float = 1.0
    rank: int = 32  # and alpha
    beta: float = 500.0
    keep: float | None = None  # lambda; none: 1e6 * beta / 100
    noisiest: float = 0.75
    pairs: int = 64
    strength: float = 0.75
    edit_steps: int = 50
    edit_guidance: float = 7.5

    version = 1
    needs = frozenset({"concept"})
    presets = {"nudity": {}, "violence": {"beta": 1000.0, "steps": 500, "pairs": 32}}
    fidelity = "reimplemented"
    matched = "equations and settings read in the release; nothing was run beside it"

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the adapters.

        Raises:
            ValueError: this model has no self-attention of the image, or the loss is not finite.
        """
        minus, plus = self.pictures(model, concept, data["concept"], rng)
        edited = model.clone(only=())
        layers = add_adapters(edited, rank=self.rank, alpha=self.rank, targets=looking(model), rng=rng)
        theta = [p for p in edited.denoiser.parameters() if p.requires_grad]
        lr = 3e-4 * 100 / self.beta if self.lr is None else self.lr
        optimizer = torch.optim.AdamW(theta, lr=lr, weight_decay=self.weight_decay)
        with torch.no_grad():
            null = model.encode_text([""])
        order = batches(len(minus), self.batch, rng=rng)
        chosen = (next(order) for _ in range(self.steps))
        losses = (self.loss(edited, model, minus[at], plus[at], null, rng) for at in chosen)
        descend(optimizer, losses, report, total=self.steps, clip=self.clip)
        return low_rank(layers, edited.part)

    @torch.no_grad()
    def pictures(self, model: Model, concept: Concept, examples: Examples, rng: Generator) -> tuple[Tensor, Tensor]:
        """x- and x+ `(pairs, C, h, w)`, as latents."""
        mean, std = latents(model, examples.images)
        to = anchor_of(concept, self.anchor)
        named = captions(model, examples.captions)
        meant = captions(model, [anchored(text, concept, to) for text in examples.captions])
        found = []
        for at in (torch.arange(self.pairs) % len(mean)).split(self.batch):
            z_0 = mean[at] + std[at] * normal(mean[at].shape, rng, like=mean)
            found.append((z_0, self.redrawn(model, z_0, meant[at], named[at], rng)))
        minus, plus = zip(*found, strict=True)
        return torch.cat(minus), torch.cat(plus)

    def redrawn(self, model: Model, z_0: Tensor, wanted: Tensor, unwanted: Tensor, rng: Generator) -> Tensor:
        """SDEdit of latents `(B, C, h, w)`, toward and away from texts `(B, L, D)`."""
        first = self.edit_steps - self.edited_steps
        s = model.trajectory(self.edit_steps)[first].expand(len(z_0))
        z = model.noised(z_0, normal(z_0.shape, rng, like=z_0), s)
        how = {"steps": self.edit_steps, "guidance": self.edit_guidance, "start": first}
        return sample(model, z, wanted, unwanted, **how)  # type: ignore[arg-type]

    @property
    def edited_steps(self) -> int:
        """How many of the steps an edit goes through."""
        return min(self.edit_steps, max(1, round(self.strength * self.edit_steps)))

    def loss(self, edited: Model, model: Model, minus: Tensor, plus: Tensor, null: Tensor, rng: Generator) -> Tensor:
        """The scalar that is minimised, for x- and x+ `(B, C, h, w)` and null `(1, L, D)`."""
        x_T, null = normal(minus.shape, rng, like=minus), null.expand(len(minus), -1, -1)
        gains = list[Tensor]()
        for z_0 in (minus, plus):
            parts = torch.randint(max(1, round(self.noisiest * PARTS)), (len(z_0),), generator=rng)
            t = torch.stack([model.between(int(k), PARTS, rng=rng) for k in parts])
            with torch.no_grad():
                before = errors(model, z_0, x_T, t, null).flatten(1).mean(1)
            gains.append(errors(edited, z_0, x_T, t, null).flatten(1).mean(1) - before)
        T = model.trajectory(FINEST)[0].to(minus.device)
        with torch.no_grad():
            f_0 = model.predict(x_T, T, null)
        kept = F.mse_loss(edited.predict(x_T, T, null), f_0)
        return preference(gains[0], gains[1], self.beta) + (1e4 * self.beta if self.keep is None else self.keep) * kept

    def passes(self) -> int:
        """Of each pair a guided edit; a step has three predictions of both models, and a backward pass of three."""
        drawn = self.pairs * self.edited_steps * (1 if self.edit_guidance == 1 else 2)
        return drawn + self.steps * self.batch * 12


def preference(minus: Tensor, plus: Tensor, beta: float) -> Tensor:
    """-log sigma(beta (minus - plus)), of how much larger each error became `(B,)`."""
    return -F.logsigmoid(beta * (minus - plus)).mean()


def looking(model: Model) -> list[str]:
    """The layers of the image's self-attention, by name."""
    layers = {name for name, layer in model.denoiser.named_modules() if isinstance(layer, nn.Linear)}
    return sorted({name.rpartition(".")[0] for name in model.scope("selfattn")} & layers)
