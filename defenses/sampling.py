"""Noisy latents without an image: what ESD and the methods after it train on.

z_T ~ N(0, I) is denoised with the prompt c, by DDIM with guidance, up to a random one of `ddim_steps` steps.

Code      https://github.com/rohitgandikota/erasing, CompVis release @ a2189e9 and diffusers release
"""

import torch
from torch import Generator, Tensor

from benchmark.diffusion import Model, ddim, normal, sample


def partial_sample(
    model: Model,
    c: Tensor,
    null: Tensor,
    *,
    batch: int,
    ddim_steps: int,
    guidance: float,
    from_edited: bool,
    rng: Generator,
) -> tuple[Tensor, Tensor]:
    """z_t `(B, C, h, w)` and its t `()`, for c and null `(1, L, D)`.

    `from_edited`: t is uniform inside its DDIM bin, as in the CompVis release, which samples from the model being
    edited; otherwise it is the DDIM step itself, as in the diffusers release, which samples from the frozen one.
    """
    done = int(torch.randint(ddim_steps, (), generator=rng))
    z_T = normal((batch, *model.latent_shape), rng, like=c)
    texts = (c.expand(batch, -1, -1), null.expand(batch, -1, -1))
    z_t = sample(model, z_T, *texts, steps=ddim_steps, guidance=guidance, stop=done)
    low = int(ddim(model, ddim_steps).timesteps[done])
    if not from_edited:
        return z_t, torch.tensor(low, device=c.device)
    train_steps = int(model.scheduler.config.num_train_timesteps)
    within = int(torch.randint(train_steps // ddim_steps, (), generator=rng))
    return z_t, torch.tensor(min(low + within, train_steps - 1), device=c.device)
