"""The mini model's variational autoencoder: 64 px to 16 x 16 x 4 latents, in Stable Diffusion's format."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from benchmark.mini.recipe.dataset import Art, as_tensor, random_label
from benchmark.mini.recipe.loop import train

BATCH, STEPS, LR, KL_WEIGHT = 8, 3000, 2e-3, 3e-4


def new_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 48, 80),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,  # few: a norm over two channels would lose the mean colour
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False,
        sample_size=64,
    )


def edges(x: Tensor) -> Tensor:
    """Differences between neighbouring pixels, across and down, flattened together."""
    return torch.cat([(x[..., 1:] - x[..., :-1]).flatten(), (x[..., 1:, :] - x[..., :-1, :]).flatten()])


def train_autoencoder(art: Art, out: Path, *, seed: int, steps: int = STEPS) -> AutoencoderKL:
    """Fit reconstruction and edges (L1), with a light KL; half of the images are emoji that no caption names."""
    torch.manual_seed(seed)
    model = new_autoencoder()

    def step(i: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, i])
        noise = torch.Generator().manual_seed(seed * 1_000_003 + i)
        images = [
            art.image(random_label(rng), rng, wild=1.5) if rng.random() < 0.6 else art.other_image(rng)[0]
            for _ in range(BATCH)
        ]
        x_pm1 = as_tensor(images) * 2 - 1
        posterior = model.encode(x_pm1).latent_dist
        x_hat = model.decode(posterior.sample(generator=noise)).sample
        l1, edge = F.l1_loss(x_hat, x_pm1), F.l1_loss(edges(x_hat), edges(x_pm1))
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return {"loss": l1 + edge + KL_WEIGHT * kl, "l1": l1, "edge": edge, "kl": kl}

    model = train(model, step, steps=steps, lr=LR, log=out / "autoencoder.csv", decay=0.998)
    with torch.no_grad():
        rng = np.random.default_rng(seed)
        x_pm1 = as_tensor([art.image(random_label(rng), rng) for _ in range(256)]) * 2 - 1
        z = model.encode(x_pm1).latent_dist.mean
    model.register_to_config(scaling_factor=round(1 / float(z.std()), 5))
    model.save_pretrained(out / "vae")
    return model
