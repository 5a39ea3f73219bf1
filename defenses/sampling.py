"""Noisy latents without an image: what ESD and the methods after it train on.

z_T ~ N(0, I) is denoised with the prompt c and guidance, for a random part of `ddim_steps` steps. Which t the result is
trained at depends on who samples; k is uniform in 0 ... S - 1, with S steps:

compvis  the CompVis release: DDIM that leaves out the first step of S, for S - k steps (S - 1 at most), and t uniform
         in [1000 k / S, 1000 (k + 1) / S). For S = 50, z_t is 39 to 58 levels cleaner than t, noise is taken for 961
pndm     the diffusers release on SD 1.4, whose own scheduler is PNDM: k of its S + 1 steps, and t is the next
ddim     the family's own sampler (DDIM, or Euler): k of its S steps, and t is the next, which is the level of z_t. Of
         few steps it is the only one that makes sense, since a step of `compvis` is then hundreds of levels wide
sdd      SDD's: k of S steps, and t uniform in the part of the times that is left after k; its loop never ends at k = 0,
         so that an image that is done is then taken for noise

Code      https://github.com/rohitgandikota/erasing, CompVis release @ a2189e9 and diffusers release @ 25613d2;
          https://github.com/nannullna/safe-diffusion @ 8c57951
"""

from itertools import pairwise
from typing import Literal

import torch
from torch import Generator, Tensor

from benchmark.diffusion import Model, normal
from benchmark.types import Requirement

Sampler = Literal["compvis", "pndm", "ddim", "sdd"]


def partial_sample(
    model: Model,
    c: Tensor,
    null: Tensor,
    *,
    batch: int,
    ddim_steps: int,
    guidance: float,
    sampler: Sampler,
    rng: Generator,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """z_t `(B, C, h, w)` and its t `()`, for c and null `(1, L, D)`; `start` is the noise, if it is not to be drawn.

    Raises:
        ValueError: `pndm` of a family without a noise schedule.
    """
    k = int(torch.randint(ddim_steps, (), generator=rng))
    z = normal((batch, *model.latent_shape), rng, like=c) if start is None else start
    texts = (c.expand(batch, -1, -1), null.expand(batch, -1, -1))
    first, last = part(sampler, k, ddim_steps)
    if sampler == "pndm":
        scheduler = model.pndm(ddim_steps)
        with torch.no_grad():
            for t in scheduler.timesteps[first:last]:
                z = scheduler.step(model.guided(z, t, *texts, guidance), t, z).prev_sample
        return z, scheduler.timesteps[k].to(c.device)
    times = model.trajectory(ddim_steps)
    with torch.no_grad():
        for t, t_next in list(pairwise(times))[first:last]:
            z = model.step(z, model.guided(z, t, *texts, guidance), t, t_next)
    if sampler == "ddim":
        return z, times[k].to(c.device)
    from_image = ddim_steps - 1 - k if sampler == "sdd" else k
    return z, model.between(from_image, ddim_steps, rng=rng).to(c.device)


def part(sampler: Sampler, k: int, steps: int) -> tuple[int, int]:
    """The first of a scheduler's steps that are gone through, and the end of them."""
    if sampler == "compvis":
        return 1, 1 + min(steps - k, steps - 1)
    return 0, k or steps if sampler == "sdd" else k


def needs(sampler: Sampler, scope: str) -> tuple[Requirement, ...]:
    """What a family must have for a sampler and a scope."""
    schedule: tuple[Requirement, ...] = ("schedule",) if sampler == "pndm" else ()
    return (*schedule, "u-old") if scope == "u-old" else schedule


def mean_length(sampler: Sampler, steps: int) -> float:
    """Steps that are gone through, in the mean over k."""
    lengths = [last - first for first, last in (part(sampler, k, steps) for k in range(steps))]
    return sum(lengths) / steps


def mean_passes(sampler: Sampler, steps: int, guidance: float) -> float:
    """Samples through the denoiser for one latent, in the mean over k."""
    return mean_length(sampler, steps) * (1 if guidance == 1 else 2)
