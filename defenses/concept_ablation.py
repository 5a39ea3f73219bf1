"""Concept Ablation: Ablating Concepts in Text-to-Image Diffusion Models (Kumari et al., ICCV 2023).

On images of an anchor concept c_a, drawn by the base, the model learns to answer to the concept c* as to the anchor:

    loss = || eps_th(z_t | c*) - sg eps_th(z_t | c_a) ||^2  [ + lambda L_DM(th; anchors) ]        (model-based, Eq. 4)
    loss = || eps_th(z_t | c*) - target ||^2                [ + lambda L_DM(th; anchors) ]        (noise-based, Eq. 5)

Keys and values of a text's first row, the begin token, get no gradient, as in both releases.

Paper     https://arxiv.org/abs/2303.13516
Code      https://github.com/nupurkmr9/concept-ablation @ c11fb1b, diffusers release; CompVis release (`compvis`)
Differs   c* are captions with the concept, c_a the same with the anchor: the defender's prompts that name it, or ours
          (`templates`); the release rewrites captions of anchors, by patterns for each kind. z_0 is a latent that the
          base drew, by the family's own sampler, without a way through the VAE. No augmentation, which the release has
          for objects. lr is the optimizer's: the release's 2e-6 times a batch of 8, and twice that with a prior. On
          flow models, which the paper does not have, only what the entry layers answer to the first row is detached.
Symbols   eps_th the predictor being trained, sg without gradient; c* concept; c_a anchor; lambda `prior`.
Protects  against prompts that name c*. Makes no claim about fine-tuning.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from benchmark.diffusion import Model, Scope, batches, denoising_loss, difference, normal, sample
from benchmark.types import Concept, Delta, Examples, Report, Requirement, Split
from defenses.base import Defense, Part
from defenses.data import captions
from defenses.erasing import anchor_of, descend, student
from defenses.templates import filled, templates


@dataclass(frozen=True, kw_only=True)
class ConceptAblation(Defense):
    """Map a concept to its anchor, on the anchor's images. Defaults: the release's for styles."""

    anchor: str | None = None  # none: the card's subject
    steps: int = 100
    lr: float = 1.6e-5
    weight_decay: float = 1e-2
    batch: int = 8
    clip: float | None = 1.0
    scope: Scope | Literal["attn"] = "x-strict"  # attn: all attention, of the image and of the text
    aim: Literal["model", "noise"] = "model"
    prior: float = 0.0  # for an anchor that is a word of the concept, and for nudity
    detach_first: bool = True
    anchor_images: int = 1000
    image_steps: int = 25
    image_guidance: float = 6.0
    texts: Literal["templates", "defender"] = "templates"  # the captions that name the concept

    version = 1
    presets = {
        "style": {},
        "overlap": {"prior": 1.0, "lr": 3.2e-5},
        "nudity": {"scope": "attn", "lr": 6.4e-5, "steps": 400, "prior": 1.0},
        "compvis": {"prior": 0.2, "clip": None},
        "noise": {"aim": "noise"},
    }
    fidelity = "reimplemented"
    matched = "equations and settings read in both releases; nothing was run beside them"

    @property
    def removable(self) -> Part | None:
        """Keys and values, where they alone are trained; on a flow model they are not what reads the text."""
        return "keys_values" if self.scope == "x-strict" else None

    @property
    def reads(self) -> tuple[Split, ...]:
        """Of whose prompts it reads the texts."""
        return ("defender",) if self.texts == "defender" else ()

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the change of the parameters in `scope`.

        Raises:
            ValueError: `scope` selects no parameter, no prompt of the defender names the phrase, or the loss is not
                finite.
        """
        names = self.names(model)
        edited, theta = student(model, names)
        pairs = filled(concept, templates(concept, self.texts), anchor_of(concept, self.anchor))
        pairs = [pairs[i % len(pairs)] for i in range(self.anchor_images)]
        c_star, c_a = (captions(model, texts) for texts in zip(*pairs, strict=True))
        z_0 = self.draw(model, c_a, rng)
        optimizer = torch.optim.AdamW(theta, lr=self.lr, weight_decay=self.weight_decay)
        with ExitStack() as stack:
            if self.detach_first:
                stack.enter_context(first_row_detached(edited))
            order, kept = (batches(len(z_0), self.batch, rng=rng) for _ in range(2))
            losses = (self.step(edited, z_0, c_star, c_a, next(order), kept, rng) for _ in range(self.steps))
            descend(optimizer, losses, report, total=self.steps, clip=self.clip)
        return difference(edited, model, names=names)

    def names(self, model: Model) -> set[str]:
        """The parameters that are trained."""
        return model.scope("x") | model.scope("selfattn") if self.scope == "attn" else model.scope(self.scope)

    def draw(self, model: Model, c_a: Tensor, rng: Generator) -> Tensor:
        """The anchor's images, as latents `(N, C, h, w)` of texts `(N, L, D)`."""
        with torch.no_grad():
            null, found = model.encode_text([""]), []
        for texts in c_a.split(self.batch):
            z_T = normal((len(texts), *model.latent_shape), rng, like=c_a)
            how = {"steps": self.image_steps, "guidance": self.image_guidance}
            found.append(sample(model, z_T, texts, null.expand_as(texts), **how))  # type: ignore[arg-type]
        return torch.cat(found)

    def step(
        self,
        edited: Model,
        z_0: Tensor,
        c_star: Tensor,
        c_a: Tensor,
        at: Tensor,
        kept: Iterator[Tensor],
        rng: Generator,
    ) -> Tensor:
        """The loss of one step, on the images at `at`."""
        eps, t = normal(z_0[at].shape, rng, like=z_0), edited.times(len(at), rng=rng)
        z_t, device = edited.noised(z_0[at], eps, t), z_0.device
        noise = edited.target(z_0[at], eps, t) if self.aim == "noise" else None
        loss = self.loss(edited, z_t, t.to(device), c_star[at], c_a[at], noise)
        if self.prior:
            other = next(kept)
            loss = loss + self.prior * denoising_loss(edited, z_0[other], c_a[other], rng=rng)
        return loss

    def loss(
        self, edited: Model, z_t: Tensor, t: Tensor, c_star: Tensor, c_a: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """The first term, for z_t `(B, C, h, w)`, t `(B,)`, c* and c_a `(B, L, D)`, or `noise` as target."""
        if noise is None:
            with torch.no_grad():
                noise = edited.predict(z_t, t, c_a)
        return F.mse_loss(edited.predict(z_t, t, c_star), noise)

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """What its scope needs."""
        return ("u-old",) if self.scope == "u-old" else ()

    def passes(self) -> int:
        """The anchor's images, guided; a step has a trained prediction, the target's, and one of the prior."""
        drawn = self.anchor_images * self.image_steps * (1 if self.image_guidance == 1 else 2)
        return drawn + self.steps * self.batch * (3 + (self.aim == "model") + 3 * (self.prior != 0))


@contextmanager
def first_row_detached(model: Model) -> Iterator[None]:
    """While it lasts, what the layers that read the text answer to its first row carries no gradient."""

    def detached(module: Any, args: Any, found: Tensor) -> Tensor:
        return torch.cat([found[:, :1].detach(), found[:, 1:]], dim=1)

    layers = [layer.name for layer in model.text_layers() if layer.reads == "words"]
    handles = [model.denoiser.get_submodule(name).register_forward_hook(detached) for name in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
