"""The one fine-tuning loop that all weight attacks share: the defaults of the diffusers training scripts.

AdamW (0.9, 0.999), weight decay 1e-2, eps 1e-8, gradient norm clipped to 1, constant rate, posterior samples of the
images' latents, t uniform over the schedule.
Source: huggingface/diffusers examples/text_to_image/train_text_to_image_lora.py @ 58eb52c.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor, nn

from benchmark.diffusion import Model, batches, denoising_loss, normal
from benchmark.types import Examples, Report


def train(
    model: Model,
    parameters: Sequence[nn.Parameter],
    examples: Examples,
    *,
    lr: float,
    batch: int,
    budgets: Sequence[int],
    rng: Generator,
    report: Report,
) -> Iterator[int]:
    """Minimise L_DM over `parameters` on `examples`; pause at each of `budgets` steps and yield it.

    Raises:
        ValueError: the loss is not finite.
    """
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    mean, std = latents(model, examples.images)
    text = captions(model, examples.captions)
    order = batches(len(mean), batch, rng=rng)
    for step in range(1, max(budgets) + 1):
        chosen = next(order)
        z_0 = mean[chosen] + std[chosen] * normal(mean[chosen].shape, rng, like=mean)
        loss = denoising_loss(model, z_0, text[chosen], rng=rng)
        if not torch.isfinite(loss):
            raise ValueError(f"expected a finite loss, got {loss.item()} at step {step}: lower lr ({lr}).")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        report(step=step, total=max(budgets), loss=loss.item())
        if step in budgets:
            yield step


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
