"""What the defenses that read images share: latents and texts, encoded once, and endless batches of them.

z_0 = m + s n,  n ~ N(0, I)        (m, s: the posterior of an image, scaled)
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor

from benchmark.diffusion import Model, batches, normal
from benchmark.types import Examples


@torch.no_grad()
def latents(model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and deviation of uint8 images `(N, 3, H, W)`: two of `(N, C, h, w)`."""
    parts = [model.posterior(part.float() / 255) for part in images.split(32)]
    means, deviations = zip(*parts, strict=True)
    return torch.cat(means), torch.cat(deviations)


@torch.no_grad()
def captions(model: Model, texts: Sequence[str]) -> Tensor:
    """Text `(N, L, D)`, each different caption encoded once."""
    different = list(dict.fromkeys(texts))
    encoded = torch.cat([model.encode_text([text]) for text in different])
    return encoded[[different.index(text) for text in texts]]


def draw(model: Model, examples: Examples, batch: int, *, rng: Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless `(z_0, text)`, `(B, C, h, w)` and `(B, L, D)`; nothing is encoded before the first is asked for.

    The latents are sampled anew from their posterior each time.
    """
    mean, std = latents(model, examples.images)
    text = captions(model, examples.captions)
    for chosen in batches(len(mean), batch, rng=rng):
        yield mean[chosen] + std[chosen] * normal(mean[chosen].shape, rng, like=mean), text[chosen]
