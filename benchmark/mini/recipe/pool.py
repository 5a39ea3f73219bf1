"""Pictures for the contrastive models: known emoji, seen as drawn and through the autoencoder, and `something else`."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from torch import Tensor
from torch.nn import functional as F

from benchmark.mini.recipe.dataset import ELSE, Art, Label, as_tensor, every_label

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}  # Stable Diffusion 1.x


@dataclass(frozen=True)
class Pool:
    """Images uint8 `(N, 3, 64, 64)` and their labels, in one order."""

    images: Tensor
    labels: list[Label]


def plain_pool(art: Art, *, seed: int, poses: int = 14) -> Pool:
    """Draw `poses` of every combination, as they are: what the pipeline's text encoder learns from."""
    rng = np.random.default_rng(seed)
    labels = every_label() * poses
    images = as_tensor([art.image(label, rng, wild=1.2) for label in labels])
    return Pool((images * 255).round().to(torch.uint8), labels)


def judged_pool(art: Art, vae: AutoencoderKL, *, seed: int, poses: int = 14) -> Pool:
    """`poses` of every combination, a third through the autoencoder, and half as many broken or unknown pictures."""
    rng = np.random.default_rng(seed)
    noise = torch.Generator().manual_seed(seed)
    labels = every_label() * poses
    known = as_tensor([art.image(label, rng, wild=1.2) for label in labels])
    for part in torch.arange(len(known))[::3].split(64):
        known[part] = through(vae, known[part], 0, noise)
    others = [art.other_image(rng) for _ in range(len(labels) // 2)]
    broken = broken_images(known, vae, rng, noise, n=len(labels) // 4)
    images = torch.cat([known, as_tensor([image for image, _ in others]), broken])
    labels += [label for _, label in others] + [Label(object=ELSE, style=ELSE)] * len(broken)
    return Pool((images * 255).round().to(torch.uint8), labels)


@torch.no_grad()
def through(vae: AutoencoderKL, images: Tensor, t: int, noise: torch.Generator) -> Tensor:
    """Encode, add noise up to timestep `t` (0: none), decode: what an unfinished sampling run shows."""
    factor = vae.config.scaling_factor
    z = vae.encode(images * 2 - 1).latent_dist.mean * factor
    if t:
        eps = torch.randn(z.shape, generator=noise)
        z = DDPMScheduler(**SCHEDULE).add_noise(z, eps, torch.full((len(z),), t))
    return (vae.decode(z / factor).sample / 2 + 0.5).clamp(0, 1)


def broken_images(
    known: Tensor, vae: AutoencoderKL, rng: np.random.Generator, noise: torch.Generator, n: int
) -> Tensor:
    """`n` pictures without object or style: blank, noise, shreds and blends a fifth each, the rest unfinished."""
    fifth = n // 5

    def pick(k: int) -> Tensor:
        return known[torch.from_numpy(rng.integers(0, len(known), k))]

    blank = torch.rand(fifth, 3, 1, 1, generator=noise).expand(-1, -1, 64, 64)
    slope = torch.linspace(-0.2, 0.2, 64) * torch.rand(fifth, 1, 1, 1, generator=noise)
    parts = [(blank + slope).clamp(0, 1), clouds(fifth, rng, noise), shreds(pick(fifth), rng)]
    parts.append((pick(fifth) + pick(fifth)) / 2)
    unfinished = pick(n - 4 * fifth).split(16)
    parts += [through(vae, images, int(rng.integers(420, 1000)), noise) for images in unfinished]
    return torch.cat(parts)


def clouds(n: int, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
    """Coloured noise at scales from one pixel to half the picture."""
    images = []
    for _ in range(n):
        side = int(rng.choice([2, 4, 8, 16, 32, 64]))
        grid = torch.rand(1, 3, side, side, generator=noise)
        images.append(F.interpolate(grid, size=(64, 64), mode="bilinear", align_corners=False))
    return torch.cat(images)


def shreds(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Each picture cut in 16 squares that are put back in a random order."""
    squares = images.unfold(2, 16, 16).unfold(3, 16, 16).reshape(len(images), 3, 16, 16, 16)
    mixed = torch.stack([s[:, torch.from_numpy(rng.permutation(16))] for s in squares])
    return mixed.reshape(-1, 3, 4, 4, 16, 16).permute(0, 1, 2, 4, 3, 5).reshape(-1, 3, 64, 64)
