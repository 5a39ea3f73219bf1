"""GIFT: Gradient-aware Immunization against malicious fine-tuning (Abdalla et al., 2025).

Alternates between keeping safe concepts (lower level) and spoiling the malicious one, at the output and in every
layer (upper level):

    L_P(theta) = L_DM(theta; D_S)                                                       (prior preservation)
    L_I(theta) = - L_DM(theta; D_M) + beta L_noise(theta; D_M)                          (immunisation)
    L_noise    = 1/|layers| sum_l MMD^2( rows of h_l(z_t, t, c), rows of g_l ),  g_l ~ N(0, I)
    for k in 1..K:   n_P times  theta <- AdamW(theta, grad L_P, alpha_P)
                     n_I times  theta <- AdamW(theta, grad L_I, alpha_I)

The rows of h_l are its spatial positions. MMD is the biased estimate with the sum of five Gaussian kernels
exp(-d / w_i), d the squared distance, w_i = 2^i / 2^2 times the mean d over the joint sample (no gradient). w grows
with the number of channels as d does, so that no further normalisation by it is needed.

Paper     https://arxiv.org/abs/2507.13598
Code      none was found; MMD as in https://github.com/domenicrosati/representation-noising, which GIFT builds on
Differs   unknown: only the abstract and reviews could be read. The two levels, representation noising, K, the names
          alpha_P, alpha_I and beta and the ablations are the paper's; every constant marked so below is reconstructed.
          K counts rounds of both levels. The paper gives GIFT and IMMA 1,000 "immunisation steps" alike, and IMMA's are
          steps of both levels together: counted so, as in `alike`, K is 500, and each has 500 ascents.
Symbols   D_S safe images; D_M malicious images; h_l activations of layer l; g_l noise; z_t noisy latents; c text.
Protects  against fine-tuning on the concept, and keeps safe concepts learnable.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from benchmark.diffusion import Model, denoising_loss, difference, normal
from benchmark.types import Concept, Delta, Examples, Report
from defenses.base import Defense
from defenses.data import draw

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")

KERNELS = 5  # RepNoise
MIDDLE = 2  # RepNoise: the mean distance is divided by 2^MIDDLE, then doubled from kernel to kernel


@dataclass(frozen=True, kw_only=True)
class GIFT(Defense):
    """Ascend on malicious images and turn their activations to noise, while training on safe ones."""

    steps: int = 1000  # K, the paper's if it counts rounds
    n_p: int = 1  # reconstructed: lower steps in a round, as IMMA's inner
    n_i: int = 1  # reconstructed: upper steps in a round, as IMMA's outer
    lr_prior: float = 5e-6  # alpha_P, reconstructed: MIMA's inner rate
    lr_immunise: float = 1e-5  # alpha_I, reconstructed: the range of IMMA and MIMA
    beta: float = 1.0  # reconstructed: the paper studies it, its value is unknown
    rows: int = 256  # reconstructed: spatial positions compared in a layer, at most
    noise_ref: Literal["unit", "matched"] = "unit"  # reconstructed; matched: the base's mean and deviation per channel
    loss_cap: float = 1.0  # reconstructed: a sample whose loss is above has no ascent; unbounded ascent diverges
    scope: Literal["full", "attn"] = "full"  # reconstructed; attn: IMMA's parameters
    ablation: Literal["none", "max", "max_noise"] = "none"  # the paper's rows: max: -L_DM alone; max_noise: L_I alone
    batch: int = 1  # reconstructed
    weight_decay: float = 1e-2  # reconstructed: IMMA's

    version = 1
    needs = frozenset({"concept", "safe"})
    presets = {"alike": {"steps": 500}, "max": {"ablation": "max"}, "max-noise": {"ablation": "max_noise"}}
    fidelity = "reconstructed"
    matched = "structure, K and ablations as in the abstract and public reviews, MMD as in RepNoise's release"

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the change of the parameters in `scope`. The loss reported is the round's last, L_I.

        Raises:
            ValueError: `scope` selects no parameter of this model, or a loss is not finite.
        """
        immunised = model.clone(only={f"{model.part}.{name}" for name in in_scope(model, self.scope)})
        theta = in_scope(immunised, self.scope)
        for parameter in theta.values():
            parameter.requires_grad_(True)
        lower, upper = self.optimizer(theta, self.lr_prior), self.optimizer(theta, self.lr_immunise)
        safe, malicious = (draw(model, data[split], self.batch, rng=rng) for split in ("safe", "concept"))

        def prior() -> Tensor:
            return denoising_loss(immunised, *next(safe), rng=rng)  # L_P

        def immunise() -> Tensor:
            return self.loss(immunised, model, *next(malicious), rng=rng)  # L_I

        turns = [(prior, lower)] * (self.n_p if self.ablation == "none" else 0) + [(immunise, upper)] * self.n_i
        for k in range(self.steps):
            loss = torch.tensor(torch.nan)
            for loss_of, optimizer in turns:
                loss = loss_of()
                if not torch.isfinite(loss):
                    rates = f"lr_prior ({self.lr_prior}) or lr_immunise ({self.lr_immunise})"
                    raise ValueError(f"expected a finite loss, got {loss.item()} at step {k}: lower {rates}.")
                descend(loss, optimizer)
            report(step=k + 1, total=self.steps, loss=loss.item())
        return difference(immunised, model, names=set(theta))

    def loss(self, immunised: Model, model: Model, z_0: Tensor, text: Tensor, *, rng: Generator) -> Tensor:
        """L_I, which is minimised, on malicious latents `(B, C, h, w)` and text `(B, L, D)`."""
        t = model.times(len(z_0), rng=rng)
        eps = normal(z_0.shape, rng, like=z_0)
        z_t, target, t = model.noised(z_0, eps, t), model.target(z_0, eps, t), t.to(z_0.device)
        with activations(immunised) as h:
            predicted = immunised.predict(z_t, t, text)
        errors = F.mse_loss(predicted, target, reduction="none").flatten(1).mean(1)
        ascent = -errors.clamp(max=self.loss_cap).mean()
        if self.ablation == "max":
            return ascent
        if self.noise_ref == "unit":
            return ascent + self.beta * self.noising(h, None, rng)
        with torch.no_grad(), activations(model) as reference:
            model.predict(z_t, t, text)
        return ascent + self.beta * self.noising(h, reference, rng)

    def noising(self, h: list[Tensor], reference: list[Tensor] | None, rng: Generator) -> Tensor:
        """L_noise of activations `(B, C, h, w)`, against N(0, I) or the moments of each reference channel."""
        distances = []
        for layer, h_l in enumerate(h):
            x = spatial_rows(h_l)
            x = x[torch.randperm(len(x), generator=rng)[: self.rows].to(x.device)]
            g_l = normal(x.shape, rng, like=x)
            if reference is not None:
                r = spatial_rows(reference[layer])
                g_l = r.mean(0) + r.std(0, correction=0) * g_l
            distances.append(mmd(x, g_l))
        return torch.stack(distances).mean()

    def optimizer(self, theta: Mapping[str, nn.Parameter], lr: float) -> torch.optim.AdamW:
        """AdamW at a constant rate; each level has its own state."""
        return torch.optim.AdamW(theta.values(), lr=lr, betas=(0.9, 0.999), weight_decay=self.weight_decay, eps=1e-8)

    def passes(self) -> int:
        """Three for each sample of both levels, and one for the base's activations."""
        lower = 3 * self.n_p if self.ablation == "none" else 0
        matched = self.noise_ref == "matched" and self.ablation != "max"
        return self.steps * self.batch * (lower + (4 if matched else 3) * self.n_i)


def in_scope(model: Model, scope: Literal["full", "attn"]) -> dict[str, nn.Parameter]:
    """theta by name."""
    keys = [f".{key}." for key in model.targets(ATTENTION)] if scope == "attn" else ["."]
    found = {name: p for name, p in model.denoiser.named_parameters() if any(key in name for key in keys)}
    if not found:
        raise ValueError(f"expected scope {scope!r} to select parameters, got none: has this model such layers?")
    return found


@contextmanager
def activations(model: Model) -> Iterator[list[Tensor]]:
    """Collect the outputs of the denoiser's blocks, `(B, C, h, w)` or `(B, N, C)`, while the context lasts."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        h = model.features(output)
        found.append(h.float() if h.dtype.itemsize == 2 else h)  # mixed precision

    handles = [layer.register_forward_hook(keep) for layer in model.layers()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def spatial_rows(h: Tensor) -> Tensor:
    """Each spatial position of `(B, C, h, w)`, or token of `(B, N, C)`, as a row: `(B h w, C)` or `(B N, C)`."""
    return (h.movedim(1, -1) if h.ndim == 4 else h).flatten(0, -2)


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """Biased squared MMD of two samples `(n, C)`: mean(K_xx + K_yy - K_xy - K_yx); in [0, 2 KERNELS]."""
    n = len(x)
    both = torch.cat([x, y])
    both = both - both.mean(0)  # moves no distance, and keeps the digits that the next line would lose
    squares = both.square().sum(1)
    d = (squares[:, None] + squares[None] - 2 * both @ both.T).clamp(min=0)
    mean = d.detach().sum() / (4 * n * n - 2 * n)  # over pairs of different rows
    kernel = torch.stack([torch.exp(-d / (mean * 2.0 ** (i - MIDDLE))) for i in range(KERNELS)]).sum(0)
    return (kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n]).mean()


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step down `loss`, the norm of the gradient clipped to 1."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
