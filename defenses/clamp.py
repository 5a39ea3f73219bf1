"""CLAMP: immunising against long-horizon fine-tuning by contractive optimisation dynamics (Sarker et al., CVPR 2026).

Follows a harmful fine-tuning for K steps, and makes what is left to gain behind them small:

    w_0 = th,  u_t = w_{t+1} - w_t = T(w_t) - w_t,  T(w) = w - lr grad L_H(w)         g_K = grad L_H(w_K)
    c^      = || T(w_K + e v) - T(w_K) || / e                                         v a random unit vector
    kap_t   = second difference of L_H at w_t along u^_t = u_t / || u_t ||            curvature
    B       = || u_K || / (1 - c^),  dL_tail = || g_K || B + (Lip / 2) B^2
    dL_inf  = [L_H(w_0) - L_H(w_K)] + dL_tail                                         all that can ever be gained
    L       = lp L_primary + ll max(0, dL_inf - m) + lc softplus(c^ - c_max)
              + lk sum_t softplus(kap_min - kap_t) - li L_H(w_0)

Each number's gradient at its own w_t is given to th, and comes from differences of gradients: nothing is differentiated
twice. L_H is one function in a step, with the same images, noise and times at each point.

Paper     CVPR 2026, of which notes with its equations were at hand
Code      none was found
Differs   unknown: every constant is reconstructed, and so are the trained weights, L_primary (L_DM on safe images),
          the attacker (SGD), Lip (the largest kap_t), and the first order (the paper goes back through the inner loop,
          for which at 512 px no memory has room). Curvature is the difference of two gradients along u^_t: the second
          difference of the loss where that is a parabola, and in float32 more than rounding.
Symbols   th immunised weights; w attacked; T the attacker's update; u, g as above; e, d probes.
Protects  against fine-tuning on the concept, for longer than was simulated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from benchmark.diffusion import Model, denoising_loss, difference, errors, normal
from benchmark.types import Concept, Delta, Examples, Report
from defenses.base import Defense
from defenses.curvature import Vector, norm
from defenses.data import draw
from defenses.erasing import student
from defenses.meta import fork, give, reset, trainable

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
SLACK = 0.05  # 1 - c^ is no smaller in B: above it the bound has no meaning, and c^ has its own term


@dataclass(frozen=True, kw_only=True)
class CLAMP(Defense):
    """Immunise the attention against K steps and what would follow. Every default is reconstructed."""

    steps: int = 1000
    lr: float = 1e-5
    weight_decay: float = 1e-2
    batch: int = 1
    inner_steps: int = 3  # K
    inner_lr: float = 1e-4
    probe: float = 1e-2  # e and d, as the norm of a change of all weights
    m: float = 0.0
    c_max: float = 0.9
    kap_min: float = 0.0
    weight_primary: float = 1.0
    weight_gain: float = 1.0
    weight_contraction: float = 1.0
    weight_curvature: float = 1.0
    weight_ascent: float = 0.1

    version = 1
    needs = frozenset({"concept", "safe"})
    fidelity = "reconstructed"
    matched = "the equations as in notes on the paper; no constant is published"

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the change of the attention projections.

        Raises:
            ValueError: this model has no such layers, or the loss is not finite.
        """
        keys = [f".{key}." for key in model.targets(TARGETS)]
        names = {n for n, _ in model.denoiser.named_parameters() if any(key in f".{n}." for key in keys)}
        if not names:
            raise ValueError(f"expected parameters named {'|'.join(TARGETS)}, got none: has this model attention?")
        edited, theta = student(model, names)
        learner = fork(edited)
        w = trainable(learner.denoiser)
        optimizer = torch.optim.AdamW(theta, lr=self.lr, betas=(0.9, 0.999), weight_decay=self.weight_decay)
        malicious, safe = (draw(model, data[split], self.batch, rng=rng) for split in ("concept", "safe"))
        for i in range(self.steps):
            optimizer.zero_grad()
            primary = self.weight_primary * denoising_loss(edited, *next(safe), rng=rng)
            primary.backward()
            z_0, c = next(malicious)
            fixed = z_0, normal(z_0.shape, rng, like=z_0), model.times(len(z_0), rng=rng), c
            v = tuple(normal(p.shape, rng, like=p) for p in w)
            reset(w, theta)
            loss, gradient = self.gain(lambda given=fixed: errors(learner, *given).mean(), w, v)  # type: ignore[misc]
            if not torch.isfinite(loss + primary):
                raise ValueError(f"expected a finite loss, got {loss.item()} at step {i}: lower lr ({self.lr}).")
            give(theta, gradient)
            nn.utils.clip_grad_norm_(theta, 1.0)
            optimizer.step()
            report(step=i + 1, total=self.steps, loss=(loss + primary).item())
        return difference(edited, model, names=names)

    def gain(self, L_H: Callable[[], Tensor], w: Sequence[nn.Parameter], v: Vector) -> tuple[Tensor, Vector]:
        """All terms but the first, and their gradient for th = w; `v` is any vector. w is attacked on the way."""
        at = Point(L_H, w)
        first, g = at.look()
        slopes, numbers, value = [g], [first], first
        kaps: list[Tensor] = []
        for _ in range(self.inner_steps):
            u = unit(g)
            (_, up), (_, down) = at.look((u, self.probe)), at.look((u, -self.probe))
            kaps.append(dot(u, scaled(up, down, 1 / (2 * self.probe), -1 / (2 * self.probe))))
            bend = scaled(up, down, 1 / self.probe**2, 1 / self.probe**2)
            slopes.append(scaled(bend, g, 1.0, -2 / self.probe**2))
            at.move((g, -self.inner_lr))
            value, g = at.look()
        c, c_slope = self.contraction(at, unit(v), g)
        numbers += [*kaps, value, torch.tensor(norm(g)).to(first), c]
        slopes += [g, self.along(at, unit(g)), c_slope]
        scalars = [number.detach().clone().requires_grad_(True) for number in numbers]
        loss = self.total(scalars)
        shares = torch.autograd.grad(loss, scalars, allow_unused=True)
        pairs = [(s, slope) for s, slope in zip(shares, slopes, strict=True) if s is not None]
        return loss.detach(), tuple(sum(s * slope[i] for s, slope in pairs) for i in range(len(w)))  # type: ignore[misc]

    def contraction(self, at: "Point", v: Vector, g: Vector) -> tuple[Tensor, Vector]:
        """c^ at w_K, and its gradient."""
        e = self.probe
        _, g_v = at.look((v, e))
        change = tuple(v_p - self.inner_lr * (a - b) / e for v_p, a, b in zip(v, g_v, g, strict=True))
        r = unit(change)
        there, here = self.along(at, r, (v, e)), self.along(at, r)
        return torch.tensor(norm(change)).to(g[0]), scaled(there, here, -self.inner_lr / e, self.inner_lr / e)

    def along(self, at: "Point", r: Vector, *away: "tuple[Vector, float]") -> Vector:
        """H r, at w or away from it."""
        e = self.probe
        return scaled(at.look(*away, (r, e))[1], at.look(*away, (r, -e))[1], 1 / (2 * e), -1 / (2 * e))

    def total(self, numbers: Sequence[Tensor]) -> Tensor:
        """The terms of L_H(w_0), kap_0, ..., L_H(w_K), || g_K ||, c^."""
        first, *kaps, last, n, c = numbers
        gained = first - last + self.tail(n, c, torch.stack(kaps).detach().max().clamp(min=0))
        return (
            self.weight_gain * F.relu(gained - self.m)
            + self.weight_contraction * F.softplus(c - self.c_max)
            + self.weight_curvature * F.softplus(self.kap_min - torch.stack(kaps)).sum()
            - self.weight_ascent * first
        )

    def tail(self, n: Tensor, c: Tensor, lip: Tensor) -> Tensor:
        """dL_tail of || g_K || and c^."""
        B = self.inner_lr * n / (1 - c).clamp(min=SLACK)
        return n * B + lip / 2 * B**2

    def passes(self) -> int:
        """Three for each gradient and sample: L_primary's, three for each inner step, and eight around them."""
        return 3 * self.steps * self.batch * (3 * self.inner_steps + 9)


class Point:
    """A loss of weights that can be looked at away from where they are."""

    def __init__(self, loss: Callable[[], Tensor], w: Sequence[nn.Parameter]) -> None:
        self.loss, self.w = loss, w

    def look(self, *away: tuple[Vector, float]) -> tuple[Tensor, Vector]:
        """The value and the gradient at w + sum of h v; w stays."""
        start = [p.detach().clone() for p in self.w] if away else []
        self.move(*away)
        value = self.loss()
        gradient = torch.autograd.grad(value, list(self.w))
        if away:
            reset(self.w, start)
        return value.detach(), gradient

    @torch.no_grad()
    def move(self, *by: tuple[Vector, float]) -> None:
        """w <- w + sum of h v."""
        for v, h in by:
            for p, v_p in zip(self.w, v, strict=True):
                p.add_(v_p, alpha=h)


def scaled(one: Vector, other: Vector, a: float, b: float) -> Vector:
    """a one + b other."""
    return tuple(a * x + b * y for x, y in zip(one, other, strict=True))


def unit(v: Vector) -> Vector:
    """v / || v ||; nothing stays nothing."""
    length = norm(v)
    return tuple(x / length for x in v) if length else v


def dot(a: Vector, b: Vector) -> Tensor:
    """<a, b>."""
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()
