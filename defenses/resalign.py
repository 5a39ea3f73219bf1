"""ResAlign: resilient safety-driven unlearning for diffusion models (Li et al., NeurIPS 2025).

Trains adapters th so that the model is safe before, and after, many simulated fine-tunings w of it:

    L_out(w, th) = (1 - beta) L_h(th) + beta L_h(w) + kappa R(th)
    L_h = - || eps(z_t, t, c) - eps ||^2  on unsafe pairs           R = || eps_th(z_t, t, c) - eps_0(z_t, t, c) ||^2
    w near the minimum of  l_in(w) + 1/2 || w - th ||^2              (Moreau envelope, gamma = 1)
    g_w = dL_out / dw,  g_h = dL_out / dth;   v_1 = g_w,  v_{k+1} = J v_k + g_w,  J = (1 - s) - s H     (Richardson)
    G   = s v_K + g_h        (at s = 1: the K first terms of (I + H)^-1 g_w; H Hessian of l_in at w, on one batch)

The gate: s = 1 is halved, up to five times, while J lets a v_k grow in the mean over tensors, or || G || > `gate`; then
G = g_h. Each outer step averages G over `attacks` of the 15 configurations `CONFIGURATIONS`, drawn without replacement.

Paper     https://arxiv.org/abs/2507.16302
Code      the authors' ResAlign @ 14775d3, train/, by notes on it
Differs   the data of the attacks: the release has three sets of its own, of which each configuration names one; here
          all read `inner_data`. DreamBooth's caption has the card's class for "person", its prior is the safe split. An
          attack's Adam begins anew (the release's keeps its moments, and corrects their bias twice); all three first
          configurations read their own set (the release's loaders collide). After full fine-tuning, the whole change
          from the base is cut to the rank; which one is cut in the release, the notes do not say. J^j g is summed from
          H^i g, so that a retry of the gate costs nothing.
Symbols   th adapters; w attacked adapters; eps_0 base; z_t noisy latents; t time; c text; beta, kappa weights.
Protects  against fine-tuning, benign or not, by the attacks simulated; and against prompts that name the concept.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from benchmark.diffusion import Model, errors, normal
from benchmark.model.adapters import add_adapters, low_rank
from benchmark.types import Concept, Delta, Examples, Report
from defenses.base import Defense
from defenses.curvature import Vector, Way, growth, hessian, neumann, norm, powers
from defenses.data import draw
from defenses.meta import fork, reset, trainable
from defenses.simulated import CONFIGURATIONS, Data, finetune, mixed

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
DOWN, UP = 0.008, 0.002  # deviations of both factors at the start: it is not the base
RETRIES = 5


@dataclass(frozen=True, kw_only=True)
class ResAlign(Defense):
    """Unlearn by ascent, through simulated fine-tuning. Defaults are the release's."""

    steps: int = 160
    attacks: int = 3  # configurations of an outer step
    lr: float = 2e-4
    weight_decay: float = 1e-2
    rank: int = 4
    batch: int = 1  # unsafe pairs, and those of the attacks
    retain_batch: int = 4
    beta: float = 0.8  # weight of the attacked model
    kappa: float = 1.6  # of retention; rises by `kappa_rise` in the second half
    kappa_rise: float = 0.4
    terms: int = 5  # K; 1: first-order MAML
    gate: float | None = 0.2  # largest norm of G; None: G is never left out
    meta_rate: float = 0.3  # scales G, which Adam undoes
    hessian: Way = "exact"  # difference: as much memory as a first-order method, and twice the passes
    inner_data: Literal["mixed", "concept", "safe"] = "mixed"  # reconstructed: the release has sets of its own
    inner_steps: int | None = None  # of each attack; None: as published
    inner_rate: float = 1.0  # times the published rates of the attacks; other models need others
    loss_cap: float | None = None  # a pair whose error is above has no ascent, as in GIFT; None: as published

    version = 1
    needs = frozenset({"concept", "safe"})
    presets = {
        "first-order": {"terms": 1},
        "difference": {"hessian": "difference"},
    }
    fidelity = "reconstructed"
    matched = (
        "losses, weights, start, attacks, hypergradient, gate and optimizers as in notes on the release; ours are "
        "the data of the attacks. Nothing was run beside it"
    )

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the adapters of all attention projections.

        Raises:
            ValueError: this model has no such layers, or the loss is not finite.
        """
        edited = model.clone(only=())
        layers = add_adapters(edited, rank=self.rank, alpha=self.rank, targets=TARGETS, rng=rng)
        begin(layers.values(), rng)
        learner = fork(edited)
        theta, w = trainable(edited.denoiser), trainable(learner.denoiser)
        optimizer = torch.optim.AdamW(theta, lr=self.lr, betas=(0.9, 0.999), weight_decay=self.weight_decay)
        unsafe = draw(model, data["concept"], self.batch, rng=rng)
        safe = draw(model, data["safe"], self.retain_batch, rng=rng)
        inner = data[self.inner_data] if self.inner_data != "mixed" else mixed(data["concept"], data["safe"])
        sets = Data.of(model, concept, inner, data["safe"], self.batch, rng)
        for i in range(self.steps):
            losses, sums = [], [torch.zeros_like(p) for p in theta]
            for number in torch.randperm(len(CONFIGURATIONS), generator=rng)[: self.attacks].tolist():
                how = CONFIGURATIONS[number].scaled(self.inner_steps, self.inner_rate)
                reset(w, theta)
                finetune(learner, model, how, sets, self.rank, rng=rng)
                loss, G = self.look(edited, learner, model, unsafe, safe, sets, i / max(1, self.steps), rng)
                if not torch.isfinite(loss):
                    raise ValueError(f"expected a finite loss, got {loss.item()} at step {i}: lower lr ({self.lr}).")
                losses.append(loss)
                sums = [total + g for total, g in zip(sums, G, strict=True)]
            for p, total in zip(theta, sums, strict=True):
                p.grad = self.meta_rate * total / self.attacks
            optimizer.step()
            report(step=i + 1, total=self.steps, loss=torch.stack(losses).mean().item())
        return low_rank(layers, edited.part)

    def look(
        self,
        edited: Model,
        learner: Model,
        model: Model,
        unsafe: Iterator[tuple[Tensor, Tensor]],
        safe: Iterator[tuple[Tensor, Tensor]],
        sets: Data,
        progress: float,
        rng: Generator,
    ) -> tuple[Tensor, Vector]:
        """L_out after one attack, and its gradient G for the adapters of `edited`."""
        theta, w = trainable(edited.denoiser), trainable(learner.denoiser)
        z_0, c = next(unsafe)
        t = model.times(len(z_0), rng=rng)
        L_w, L_th = (self.L_h(m, z_0, normal(z_0.shape, rng, like=z_0), t, c) for m in (learner, edited))
        R = retention(edited, model, *next(safe), rng=rng)
        g_w = torch.autograd.grad(self.beta * L_w, w)
        g_h = torch.autograd.grad((1 - self.beta) * L_th + self.kappa_at(progress) * R, theta)
        G = self.hypergradient(g_w, g_h, learner, sets, rng)
        return ((1 - self.beta) * L_th + self.beta * L_w + self.kappa_at(progress) * R).detach(), G

    def L_h(self, m: Model, z_0: Tensor, eps: Tensor, t: Tensor, c: Tensor) -> Tensor:  # noqa: N802
        """Ascent on unsafe pairs."""
        each = errors(m, z_0, eps, t, c).flatten(1).mean(1)
        return -(each if self.loss_cap is None else each.clamp(max=self.loss_cap)).mean()

    def kappa_at(self, progress: float) -> float:
        """kappa, with progress in [0, 1) through the training."""
        p = 2 * progress - 1
        return self.kappa + (self.kappa_rise / (1 + exp(-10 * (p - 0.5))) if p >= 0 else 0.0)

    def hypergradient(self, g_w: Vector, g_h: Vector, learner: Model, sets: Data, rng: Generator) -> Vector:
        """G, or g_h if no s passes the gate."""
        H = [g_w]
        if self.terms > 1:
            z_0, c = next(sets.inner)
            t, eps = learner.times(len(z_0), rng=rng), normal(z_0.shape, rng, like=z_0)
            w = trainable(learner.denoiser)
            H = powers(hessian(lambda: errors(learner, z_0, eps, t, c).mean(), w, self.hessian), g_w, self.terms)
        return gated(H, g_h, self.gate)

    def passes(self) -> int:
        """Those of a mean configuration: its attack, L_h twice, R with the base's, and the Hessian products."""
        inner = sum(how.scaled(self.inner_steps, self.inner_rate).passes for how in CONFIGURATIONS)
        exact = 3 + 2 * (self.terms - 1)  # the meter counts the second backward pass through a prediction
        products = 6 * (self.terms - 1) if self.hessian == "difference" else exact
        one = (
            self.batch * (inner / len(CONFIGURATIONS) + 6 + (products if self.terms > 1 else 0)) + 4 * self.retain_batch
        )
        return round(self.steps * self.attacks * one)


def gated(H: Sequence[Vector], g_h: Vector, gate: float | None) -> Vector:
    """G = s v_K + g_h of the powers H^i g_w, i < K, with the first s that passes; else g_h."""
    K = len(H)
    for s in (2.0**-n for n in range(RETRIES + 1)):
        v = [neumann(H, s, 0, k) for k in range(K)]
        grows = max((growth(neumann(H, s, 1, k + 1), v[k]) for k in range(K - 1)), default=0.0)
        G = tuple(s * v_p + g for v_p, g in zip(v[-1], g_h, strict=True))
        if grows <= 1 and (gate is None or norm(G) <= gate):
            return G
    return g_h


def retention(edited: Model, model: Model, z_0: Tensor, c: Tensor, *, rng: Generator) -> Tensor:
    """R: what the base predicts for safe pairs is kept."""
    t, eps = model.times(len(z_0), rng=rng), normal(z_0.shape, rng, like=z_0)
    z_t = model.noised(z_0, eps, t)
    with torch.no_grad():
        kept = model.predict(z_t, t.to(z_0.device), c)
    return F.mse_loss(edited.predict(z_t, t.to(z_0.device), c), kept)


def begin(layers: "Iterable[LoraLayer]", rng: Generator) -> None:
    """Both factors start as noise."""
    for layer in layers:
        for half, deviation in ((layer.lora_A, DOWN), (layer.lora_B, UP)):
            p: nn.Parameter = half["default"].weight
            p.data = deviation * normal(p.shape, rng, like=p)
