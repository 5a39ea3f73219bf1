"""A VAE's decoder as a network to train: what goes in, what should come out, and by how much it does not.

x = Dec(u(z)) / 2 + 1/2          (u: from the denoiser's latents to the VAE's, as the family scales them)
z = m + d n,  n ~ N(0, I)        (m, d: the posterior of an image, scaled; d = 0 for latents that were drawn)
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from benchmark.diffusion import Model, batches, normal


class Decoder(nn.Module):
    """The moderated half of a VAE."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.post_quant_conv = model.vae.post_quant_conv or nn.Identity()
        self.decoder = model.vae.decoder
        self.unscaled = lambda z: model.from_latent(z)  # a function: a copy of the decoder copies no model

    def forward(self, z: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` in [0, 1], not clamped, of scaled latents `(B, C, h, w)`."""
        return self.decoder(self.post_quant_conv(self.unscaled(z))) / 2 + 0.5


class Pool:
    """Latents with mean and deviation `(N, C, h, w)`, what each should decode to, and an endless shuffled order."""

    def __init__(self, mean: Tensor, std: Tensor, target: Callable[[Tensor, Tensor], Tensor], rng: Generator) -> None:
        self.mean, self.std, self.target, self.rng = mean, std, torch.no_grad()(target), rng
        self.size = len(mean)
        self.order = (int(i) for i in batches(self.size, 1, rng=rng))

    def z(self, chosen: Tensor) -> Tensor:
        """Sampled latents of the chosen."""
        return self.mean[chosen] + self.std[chosen] * normal(self.mean[chosen].shape, self.rng, like=self.mean)

    def pair(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Sampled latents, and the images `(B, 3, H, W)` in [0, 1] that they should decode to."""
        z = self.z(chosen)
        return z, self.target(chosen, z)

    def next(self, n: int) -> tuple[Tensor, Tensor]:
        """The next n pairs in order."""
        return self.pair(self.following(n))

    def next_z(self, n: int) -> Tensor:
        """The next n in order, without what they should decode to."""
        return self.z(self.following(n))

    def following(self, n: int) -> Tensor:
        """The numbers of the next n."""
        return torch.tensor([next(self.order) for _ in range(n)])


def distance(decoder: nn.Module, pool: Pool, n: int) -> Tensor:
    """MSE of n decoded latents to what they should be."""
    z, target = pool.next(n)
    return F.mse_loss(decoder(z), target)
