"""AEGIS: Adversarial Target-Guided Retention-Data-Free Robust Concept Erasure (Li et al., ICLR 2026).

Erases against an adversarial prompt c*, toward a target built from an adversarial embedding c', and lets a pull back
to the original weights act only where it meets the erasing gradient. One step, for the concept c_e:

    z_t    sampled with the prompt c_e, as in ESD
    c*  <- c* - beta sign grad_c*  || eps_th(z_t|c*) - eps_0(z_t|c_e) ||^2                              (prompt)
    c'  <- c' - beta sign grad_c' [ a || eps_0(z_t|c') - eps_th(z_t|c_e) ||^2
                                    + || eps_0(z_t|c') - eps_0(z_t|c_e) ||^2 ]                          (AET)
    tgt  = eps_0(z_t|null) - eta [ eps_0(z_t|c') - eps_0(z_t|null) ]
    g_e  = grad_th L_e,  L_e = || eps_th(z_t|c*) - tgt ||^2
    g_r  = grad_th L_r = th - th_0,  L_r = 1/2 || th - th_0 ||^2                                        (PR)
    g    = g_e + lambda g_r,  lambda = -omega <g_e, g_r> / ||g_r||^2 where <g_e, g_r> < 0, else 0        (DGR)
    th  <- Adam(th, g)
    omega <- omega - mu sign dL_r/domega:  omega + mu, at most 1, after a conflict, and unchanged otherwise

Paper     https://arxiv.org/abs/2602.06771
Code      none: https://github.com/Feng-peng-Li/AEGIS holds a Readme only
Differs   reconstructed from notes on the paper, not from its text. Reconstructed: eta, beta, mu, `weight`, the scopes,
          the start of c' and c* (normal, with the deviation of the token table), the sampler (ESD's), and that `layer`
          means each tensor. The notes' formula lets c' approach eps_th (a = 1), their prose lets it retreat (a = -1).
          Norms of predictions are means, and lambda without rectification is divided likewise: Adam's eps alone can
          tell (0.6 % after 5 steps, tiny model). bfloat16, as in presets for real models, keeps 97 % of g's signs.
Symbols   eps_0, th_0 frozen predictor and its weights; eps_th, th trained ones; c* is `prefix` free word vectors before
          the words of c_e; c' is one free word vector alone; eta negative guidance; beta step of both searches;
          a `aet_sign`; omega, mu strength of the rectification and its step; null the empty prompt.
Protects  against adversarial prompts. Makes no claim about fine-tuning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from benchmark.diffusion import Model, Scope, difference
from benchmark.types import Concept, Delta, Examples, Report, Requirement
from defenses.base import Defense
from defenses.free_words import adversarial, table_noise, with_room
from defenses.sampling import Sampler, mean_passes, needs, partial_sample


@dataclass(frozen=True, kw_only=True)
class AEGIS(Defense):
    """Erase a phrase against searched prompts and targets, without data for retention. Prompts only."""

    steps: int = 1000  # the paper's
    lr: float = 1e-5  # the paper's
    batch: int = 1  # the paper's
    eta: float = 1.0  # reconstructed: ESD's
    beta: float = 1e-3  # reconstructed: the step of AdvUnlearn's attack
    mu: float | None = None  # reconstructed: 2 / steps, so that omega reaches 1 when half of them meet a conflict
    prefix: int = 1  # reconstructed: AdvUnlearn's; 0: c* is c_e
    scope: Scope | Literal["by kind"] = "by kind"  # reconstructed, ESD's habit: x for styles, u-old for all else
    aet: bool = True  # False: c' is c_e, which is ESD's target
    aet_sign: Literal[-1, 1] = 1  # 1: the formula; -1: the prose
    regularise: bool = True  # False: g = g_e
    rectify: Literal["layer", "global", "none"] = "layer"  # global: one product over all; none: lambda is `weight`
    omega: float | None = None  # None: learned from 0; a number: fixed
    weight: float = 1.0  # reconstructed: the ablation's constant lambda, where norms of predictions are sums
    sampled_from: Literal["edited", "frozen"] = "edited"  # reconstructed: ESD's
    start_guidance: float = 3.0  # reconstructed: ESD's
    ddim_steps: int = 50  # reconstructed: ESD's
    sampler: Sampler = "compvis"  # reconstructed: ESD's; few steps need `ddim`
    erase: Literal["phrase", "wordings"] = "phrase"  # wordings: one of the card's a step; ours, as in ESD

    version = 2
    several = True
    presets = {
        "paper": {},
        "without-aet": {"aet": False},
        "without-pr": {"regularise": False},
        "without-dgr": {"rectify": "none"},
        "omega-1": {"omega": 1.0},
    }
    fidelity = "reconstructed"
    matched = "equations and settings read in notes on the paper; its constants were not, and there is no code"

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the change of the parameters in the scope that erases `concept.phrase`; `loss` reported is L_e.

        Raises:
            ValueError: the scope selects no parameter, a wording leaves no room for the prefix, or L_e is not finite.
        """
        names = model.scope(self.scope_for(concept))
        edited = model.clone(only={f"{model.part}.{name}" for name in names})
        for name, parameter in edited.denoiser.named_parameters():
            parameter.requires_grad_(name in names)
        theta = [p for n, p in edited.denoiser.named_parameters() if n in names]
        theta_0 = [p for n, p in model.denoiser.named_parameters() if n in names]
        optimizer = torch.optim.Adam(theta, lr=self.lr)
        texts = (*concept.phrases, *(concept.wordings if self.erase == "wordings" else ()))
        with torch.no_grad():
            words, empty = with_room(model, texts, self.prefix), with_room(model, [""], self.prefix)
            encoded, null = model.encode_words(words), model.encode_text([""])
        free = table_noise(model, self.prefix + 1, rng)  # ablations draw them too, to stay paired
        omega = 0.0 if self.omega is None else self.omega
        for i in range(self.steps):
            chosen = int(torch.randint(len(words), (), generator=rng))
            both, c_e = torch.cat([words[chosen : chosen + 1], empty]), encoded[chosen : chosen + 1]
            z_t, t = self.draw(edited if self.sampled_from == "edited" else model, c_e, null, rng)
            free = self.search(edited, model, z_t, t, c_e, both, free)
            with torch.no_grad():
                c_star, c_prime = adversarial(model, both, free)
            loss = self.loss(edited, model, z_t, t, c_star, c_prime if self.aet else c_e, null)
            if not torch.isfinite(loss):
                raise ValueError(f"expected a finite loss, got {loss.item()} at step {i + 1}: lower lr ({self.lr}).")
            g_e = torch.autograd.grad(loss, theta)
            g_r = [(now - before).detach() for now, before in zip(theta, theta_0, strict=True)]
            g, conflict = self.gradient(g_e, g_r, omega, size=z_t[0].numel())
            for parameter, direction in zip(theta, g, strict=True):
                parameter.grad = direction
            optimizer.step()
            if conflict and self.omega is None:
                omega = min(1.0, omega + self.omega_step)
            report(step=i + 1, total=self.steps, loss=loss.item())
        return difference(edited, model, names=names)

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """Words to search, and what its sampler and its scope need."""
        return ("words", *needs(self.sampler, self.scope_for(concept)))

    @property
    def omega_step(self) -> float:
        """mu: what omega grows by after a conflict."""
        return 2 / self.steps if self.mu is None else self.mu

    def scope_for(self, concept: Concept) -> Scope:
        """The parameters trained for this concept."""
        by_kind: Scope = "x" if concept.kind == "style" else "u-old"
        return by_kind if self.scope == "by kind" else self.scope

    def draw(self, model: Model, c_e: Tensor, null: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        """z_t `(B, C, h, w)` and t `()`, sampled with the prompt c_e `(1, L, D)`."""
        return partial_sample(
            model,
            c_e,
            null,
            batch=self.batch,
            ddim_steps=self.ddim_steps,
            guidance=self.start_guidance,
            sampler=self.sampler,
            rng=rng,
        )

    def search(
        self, edited: Model, model: Model, z_t: Tensor, t: Tensor, c_e: Tensor, words: Tensor, free: Tensor
    ) -> Tensor:
        """The free vectors `(1, k + 1, D)` after one signed step; c_e is `(1, L, D)`, words are as in `adversarial`."""
        free = free.detach().requires_grad_()
        c_star, c_prime = adversarial(model, words, free)
        with torch.no_grad():
            eps_0 = predict(model, z_t, t, c_e)
        found = F.mse_loss(predict(edited, z_t, t, c_star), eps_0)  # Eq. prompt
        if self.aet:
            with torch.no_grad():
                eps_th = predict(edited, z_t, t, c_e)
            eps_prime = predict(model, z_t, t, c_prime)
            found = found + self.aet_sign * F.mse_loss(eps_prime, eps_th) + F.mse_loss(eps_prime, eps_0)  # Eq. AET
        (gradient,) = torch.autograd.grad(found, free)  # of both searches: neither term reads the other's vectors
        return free.detach() - self.beta * gradient.sign()

    def loss(
        self, edited: Model, model: Model, z_t: Tensor, t: Tensor, c_star: Tensor, c_prime: Tensor, null: Tensor
    ) -> Tensor:
        """L_e, for z_t `(B, C, h, w)`, t `()`, c*, c' and null `(1, L, D)`."""
        with torch.no_grad():
            eps_null, eps_prime = predict(model, z_t, t, null, c_prime).chunk(2)
            tgt = eps_null - self.eta * (eps_prime - eps_null)
        return F.mse_loss(predict(edited, z_t, t, c_star), tgt)

    def gradient(
        self, g_e: Sequence[Tensor], g_r: Sequence[Tensor], omega: float, *, size: int
    ) -> tuple[list[Tensor], bool]:
        """g, and whether erasing and retention conflict anywhere. No drift (g_r = 0) is no conflict.

        `size` are the numbers of a prediction, C h w: g_e is that of a mean over them, the equation's of a sum.
        """
        if not self.regularise:
            return list(g_e), False
        if self.rectify == "none":
            return [e + self.weight / size * r for e, r in zip(g_e, g_r, strict=True)], False
        products = torch.stack([(e * r).sum() for e, r in zip(g_e, g_r, strict=True)])
        squares = torch.stack([(r * r).sum() for r in g_r])
        if self.rectify == "global":
            products, squares = products.sum().expand_as(products), squares.sum().expand_as(squares)
        smallest = torch.finfo(squares.dtype).tiny
        factors = torch.where(products < 0, -omega * products / squares.clamp_min(smallest), 0.0)
        return [e + f * r for e, f, r in zip(g_e, factors, g_r, strict=True)], bool((products < 0).any())

    def passes(self) -> int:
        """A step has 7 predictions and 3 backward passes, 5 and 2 without AET, and part of a guided trajectory."""
        drawn = mean_passes(self.sampler, self.ddim_steps, self.start_guidance)
        return round(self.steps * self.batch * (drawn + (13 if self.aet else 9)))


def predict(model: Model, z_t: Tensor, t: Tensor, *texts: Tensor) -> Tensor:
    """Predictions `(n B, C, h, w)` for z_t `(B, C, h, w)` with each of n texts `(1, L, D)`, in one call."""
    return model.predict(z_t.repeat(len(texts), 1, 1, 1), t, torch.cat(texts).repeat_interleave(len(z_t), 0))
