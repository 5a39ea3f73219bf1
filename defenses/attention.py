"""MACE's second stage: adapters that take the image's attention from a concept. The equations are in `mace`."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from benchmark.diffusion import Model, normal
from benchmark.model.adapters import add_adapters, low_rank
from benchmark.types import Concept, Examples, Report, Requirement
from defenses.data import latents
from defenses.templates import ended, own


@dataclass(frozen=True, kw_only=True)
class Unattended:
    """Adapters of rank 1 on keys and values, trained on attention alone."""

    lora_steps: int = 50  # 0: stage 1 alone
    lora_lr: float = 1e-5
    times: Literal["early", "uniform"] = "early"  # early: Eq. 5, most of it between 200 and 400 of 1000
    mask: Literal["attention", "none"] = "attention"

    def unattend(
        self,
        model: Model,
        edited: Model,
        pairs: Sequence[tuple[str, str]],
        examples: Examples,
        *,
        rng: Generator,
        report: Report,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The adapters by layer, `down (1, D)` and `up (out, 1)`; none without a step.

        Raises:
            ValueError: the text shares its attention, or the loss is not finite.
        """
        if not self.lora_steps:
            report(step=1, total=1, loss=nan)
            return {}
        learner, names = edited.clone(), [layer.name for layer in model.text_layers()]
        layers = add_adapters(learner, rank=1, alpha=1, targets=names, rng=rng)
        theta = [p for p in learner.denoiser.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(theta, lr=self.lora_lr, weight_decay=0.01)
        mean, std = latents(model, examples.images)
        for step in range(1, self.lora_steps + 1):
            chosen = torch.randint(len(mean), (1,), generator=rng)
            z_0 = mean[chosen] + std[chosen] * normal(mean[:1].shape, rng, like=mean)
            pair = pairs[int(torch.randint(len(pairs), (), generator=rng))]
            loss = self.attention_loss(model, learner, z_0, pair, rng)
            if not torch.isfinite(loss):
                raise ValueError(f"expected a finite loss, got {loss.item()}: lower lora_lr ({self.lora_lr}).")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(theta, 1.0)
            optimizer.step()
            report(step=step, total=self.lora_steps, loss=loss.item())
        found = low_rank(layers, model.part).low_rank
        return {name.removeprefix(f"{model.part}."): pair for name, pair in found.items()}

    def attention_loss(
        self, model: Model, learner: Model, z_0: Tensor, pair: tuple[str, str], rng: Generator
    ) -> Tensor:
        """L_attn at one time, of one image's latents `(1, C, h, w)` and one caption."""
        t = self.time(model, rng)
        z_t = model.noised(z_0, normal(z_0.shape, rng, like=z_0), t[None])
        text, its_own = model.encode_text(pair[:1]), own(model, pair)
        S = its_own | ended(model, pair[0])
        pixels: list[Tensor | None] = [None] * len(model.text_layers())
        if self.mask == "attention":
            with torch.no_grad(), model.attending() as before:
                model.predict(z_t, t, text)
            pixels = [above(A[..., its_own]) for A in before]
        with learner.attending() as after:
            learner.predict(z_t, t, text)
        learner.meter.watch(after[-1])  # the prediction is no part of the loss
        return total(after, pixels, S)

    def time(self, model: Model, rng: Generator) -> Tensor:
        """A time `()`."""
        if self.times == "uniform":
            return model.times(1, rng=rng)[0]
        k = int(torch.multinomial(density(1000), 1, generator=rng))
        return model.between(k, 1000, rng=rng)

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """An attention to the text alone, to take it from the concept."""
        return ("apart",) if self.lora_steps else ()

    def passes(self) -> int:
        """A step has a prediction and its backward pass, and one more for the mask."""
        return self.lora_steps * (4 if self.mask == "attention" else 3)


def density(n: int) -> Tensor:
    """xi of n times, from the image: sigma(.05 (t - 200)) - sigma(.05 (t - 400)), summed to 1 (Eq. 5)."""
    t = torch.arange(n, dtype=torch.float64) * 1000 / n
    xi = (0.05 * (t - 200)).sigmoid() - (0.05 * (t - 400)).sigmoid()
    return xi / xi.sum()


def above(A: Tensor) -> Tensor:
    """Pixels `(B, N)` that attend to rows `(B, heads, N, n)` more than the mean pixel does."""
    paid = A.sum(-1).mean(1)
    return paid > paid.mean(1, keepdim=True)


def total(attention: Sequence[Tensor], pixels: Sequence[Tensor | None], S: Tensor) -> Tensor:
    """L_attn: the Frobenius norms, not squared, of each layer's `(1, heads, N, L)` at masked pixels and rows S."""
    norms = []
    for A, mask in zip(attention, pixels, strict=False):
        chosen = A[..., S]
        norms.append((chosen if mask is None else chosen * mask[:, None, :, None]).norm())
    return torch.stack(norms).sum()
