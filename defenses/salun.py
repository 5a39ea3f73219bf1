"""SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency (Fan et al., ICLR 2024).

Finds the weights that matter for the concept c_f, and trains those alone to answer to c_f as to its anchor c_a:

    G     = | sum_batches grad_th0 || target - [(1 + s) eps_0(z_t|c_f) - s eps_0(z_t|null)] ||^2 |
    m     = 1 for the `share` of all elements with the largest G, 0 for the others                         (Eq. 3)
    loss  = || eps_th(z_t|c_f) - sg eps_th(z'_t|c_a) ||^2 + alpha L_DM(th; D_r)                            (Eq. 6)
    th   <- Adam(th, m * grad loss)

z_t is a noised image of the concept; z'_t the same image, drawn anew from its posterior, with the same noise and t.

Paper     https://arxiv.org/abs/2310.12508
Code      https://github.com/OPTML-Group/Unlearn-Saliency @ a6e89fd, SD/
Differs   c_f are the captions of the images, c_a the same with the anchor for the phrase (the release has one text of
          each); D_r are images of the card's safe prompts (there, of the anchor's own). Batches are shuffled, where the
          release goes through in order; `release-2023` trains on the first batch alone, again and again, as its loop
          did until February 2026 with both its loaders, and presumably for the published weights. Updates are counted
          in steps, not epochs: 100 are one epoch of 800 images. The scope's elements are ranked, all others left out.
Symbols   eps_0 frozen predictor; eps_th trained one, sg without gradient; s `mask_guidance`; D_r retained images.
Protects  against prompts that name c_f. Makes no claim about fine-tuning: what moved shows which weights to put back.
          On the embedded model 150 steps of scope x (batch 4, lr 2.5e-4, alpha 0.5, anchor "an emoji") leave a bomb in
          0.13 of 16 images, and keep 0.94 of others.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from benchmark.diffusion import Model, Scope, batches, denoising_loss, difference, normal
from benchmark.types import Concept, Delta, Examples, Report
from defenses.base import Defense
from defenses.data import captions, latents
from defenses.erasing import anchor_of, anchored, descend, student
from defenses.saliency import largest


@dataclass(frozen=True)
class Pool:
    """Posterior mean and deviation `(N, C, h, w)` of images, their texts, and those of their anchors `(N, L, D)`."""

    mean: Tensor
    std: Tensor
    text: Tensor
    anchor: Tensor

    def z(self, chosen: Tensor, rng: Generator) -> Tensor:
        """Latents of the chosen, drawn anew."""
        return self.mean[chosen] + self.std[chosen] * normal(self.mean[chosen].shape, rng, like=self.mean)


@dataclass(frozen=True, kw_only=True)
class SalUn(Defense):
    """Map a concept to its anchor in the weights that matter for it. Defaults: the release's for nudity, mended."""

    anchor: str | None = None  # none: the card's subject; nudity: "a person wearing clothes"
    alpha: float = 0.1  # objects: 0.5 in its README
    steps: int = 100  # objects: 5 epochs of the class
    batch: int = 8
    lr: float = 1e-5
    share: float = 0.5
    mask_batches: int = 100
    mask_guidance: float = 7.5
    scope: Scope = "full"
    loader: Literal["fixed", "release-2023"] = "fixed"

    version = 1
    needs = frozenset({"concept", "safe"})
    several = True
    presets = {"fixed": {}, "release-2023": {"loader": "release-2023"}, "object": {"alpha": 0.5, "steps": 500}}
    fidelity = "reimplemented"
    matched = "equations, settings and the loader read in the release; nothing was run beside it"

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the change of the salient elements of the scope, which is exactly 0 at the others.

        Raises:
            ValueError: the scope selects no parameter of this model, or a loss or gradient is not finite.
        """
        names = model.scope(self.scope)
        edited, theta = student(model, names)
        with torch.no_grad():
            null = model.encode_text([""])
        f, r = (self.pool(model, concept, data[split]) for split in ("concept", "safe"))
        masks = self.mask(edited, theta, f, null, rng)
        optimizer = torch.optim.Adam(theta, lr=self.lr)

        def mask_gradients() -> None:
            for parameter, m in zip(theta, masks, strict=True):
                if parameter.grad is not None:
                    parameter.grad *= m

        order_f, order_r = (self.order(len(pool.mean), rng) for pool in (f, r))
        losses = (self.loss(edited, f, next(order_f), r, next(order_r), rng) for _ in range(self.steps))
        descend(optimizer, losses, report, total=self.steps, before=mask_gradients)
        return difference(edited, model, names=names)

    def pool(self, model: Model, concept: Concept, examples: Examples) -> Pool:
        """Images and texts, encoded once."""
        to = anchor_of(concept, self.anchor)
        anchors = [anchored(text, concept, to) for text in examples.captions]
        return Pool(*latents(model, examples.images), captions(model, examples.captions), captions(model, anchors))

    def order(self, n: int, rng: Generator) -> Iterator[Tensor]:
        """Which of n images each step sees."""
        first = torch.arange(self.batch) % n
        return repeat(first) if self.loader == "release-2023" else batches(n, self.batch, rng=rng)

    def mask(
        self, edited: Model, theta: list[torch.nn.Parameter], f: Pool, null: Tensor, rng: Generator
    ) -> list[Tensor]:
        """m of each parameter, for the images of the concept; `edited` is still the frozen model, with gradients."""
        for _, chosen in zip(range(self.mask_batches), batches(len(f.mean), self.batch, rng=rng), strict=False):
            self.mask_loss(edited, f.z(chosen, rng), f.text[chosen], null, rng).backward()
        scores = [torch.zeros_like(p) if p.grad is None else p.grad.abs() for p in theta]
        for p in theta:
            p.grad = None
        return largest(scores, self.share)

    def mask_loss(self, model: Model, z_0: Tensor, c_f: Tensor, null: Tensor, rng: Generator) -> Tensor:
        """What G is the gradient of, for z_0 `(B, C, h, w)`, c_f `(B, L, D)` and null `(1, L, D)`."""
        eps, t = normal(z_0.shape, rng, like=z_0), model.times(len(z_0), rng=rng)
        z_t, null = model.noised(z_0, eps, t), null.expand_as(c_f)
        guided = model.guided(z_t, t.to(z_0.device), c_f, null, 1 + self.mask_guidance)
        return F.mse_loss(guided, model.target(z_0, eps, t))

    def loss(self, edited: Model, f: Pool, of_f: Tensor, r: Pool, of_r: Tensor, rng: Generator) -> Tensor:
        """The loss on the chosen images of both splits."""
        z_0, again = f.z(of_f, rng), f.z(of_f, rng)
        eps, t = normal(z_0.shape, rng, like=z_0), edited.times(len(z_0), rng=rng)
        z_t, z_t_again = edited.noised(z_0, eps, t), edited.noised(again, eps, t)
        forget = self.forget(edited, z_t, z_t_again, t.to(z_0.device), f.text[of_f], f.anchor[of_f])
        return forget + self.alpha * denoising_loss(edited, r.z(of_r, rng), r.text[of_r], rng=rng)

    def forget(self, edited: Model, z_t: Tensor, again: Tensor, t: Tensor, c_f: Tensor, c_a: Tensor) -> Tensor:
        """The first term, for z_t and z'_t `(B, C, h, w)`, t `(B,)`, c_f and c_a `(B, L, D)`."""
        with torch.no_grad():
            target = edited.predict(again, t, c_a)
        return F.mse_loss(edited.predict(z_t, t, c_f), target)

    def passes(self) -> int:
        """A batch of the mask has two predictions and their backward pass; a step three, two of them trained."""
        return self.batch * (6 * self.mask_batches + 7 * self.steps)
