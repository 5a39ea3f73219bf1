"""What FLUX.1 and FLUX.2 share: 2 x 2 latents make a token, and a language model reads the text, if it is spelled."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from benchmark.model.flow import FlowModel


@dataclass(frozen=True, kw_only=True)
class Packed(FlowModel):
    """A flow transformer on packed latents, trained at uniform times."""

    density: ClassVar[Literal["logit-normal", "uniform"]] = "uniform"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """`(C, h, w)` of a latent at the VAE's native size."""
        side = int(self.vae.config.sample_size) // 2 ** (len(self.vae.config.block_out_channels) - 1)
        return int(self.config.in_channels) // 4, side, side

    @property
    def tokens(self) -> int:
        """How many tokens an image is: one for each 2 x 2 latents."""
        _, height, width = self.latent_shape
        return height * width // 4

    def encode_words(self, words: Tensor) -> Tensor:
        """Nothing: a language model reads spelled texts alone.

        Raises:
            ValueError: always.
        """
        who = getattr(self, self.listeners[0][1])
        raise ValueError(
            f"expected a spelled text for {type(self).__name__}, got word vectors: {type(who).__name__} reads it, and "
            "has no words to search."
        )

    @abstractmethod
    def shift(self, steps: int) -> float:
        """mu of a run of so many steps at the native size."""

    def spacing(self, steps: int) -> dict[str, Any]:
        """Sigmas from 1 to 1 / steps, and mu."""
        return {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": self.shift(steps)}


@dataclass(frozen=True, kw_only=True)
class Normed(Packed):
    """Packed latents that are normalised by the VAE's batch norm, of which the mode alone is taken."""

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """m and sqrt(d + e), `(4 C,)`."""
        norm: Any = self.vae.bn
        return norm.running_mean, (norm.running_var + self.vae.config.batch_norm_eps).sqrt()

    def to_latent(self, z: Tensor) -> Tensor:
        """Packed, normalised and unpacked."""
        return unpack((pack(z) - self.moments[0]) / self.moments[1], *z.shape[2:])

    def from_latent(self, z: Tensor) -> Tensor:
        """The same backwards."""
        return unpack(pack(z) * self.moments[1] + self.moments[0], *z.shape[2:])

    def spread(self, deviation: Tensor) -> Tensor:
        """Nothing: images enter by the mode."""
        return torch.zeros_like(deviation)


def pack(z: Tensor) -> Tensor:
    """`(B, C, h, w)` as tokens `(B, h w / 4, 4 C)`."""
    b, c, h, w = z.shape
    return z.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens `(B, h w / 4, 4 C)` as `(B, C, h, w)`."""
    b, _, c = tokens.shape
    grid = tokens.reshape(b, height // 2, width // 2, c // 4, 2, 2)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, height, width)


def places(*sizes: int, like: Tensor) -> Tensor:
    """Where each token of a grid is: a row of numbers for each, one for each of `sizes`."""
    return torch.cartesian_prod(*map(torch.arange, sizes)).to(like)
