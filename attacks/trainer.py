"""The one fine-tuning loop that all weight attacks share: the defaults of the diffusers training scripts.

    loss = L_DM(examples) + prior_weight L_DM(prior)

AdamW (0.9, 0.999), weight decay 1e-2, eps 1e-8, gradient norm clipped to 1, constant rate, posterior samples of the
images' latents, t uniform over the schedule. Nothing depends on how many steps are still to come, so that a run's
state after b steps is the end of a run of b steps.
Source: huggingface/diffusers examples/text_to_image/train_text_to_image_lora.py @ 58eb52c; the other optimizers as
Patronus' attacker has them, Mustard-lord/Patronus src/utils.py @ 5491b24.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Generator, Tensor, nn, optim

from benchmark.diffusion import Model, batches, denoising_loss, difference, normal
from benchmark.types import Delta, Examples, Report

Optimizer = Literal["adamw", "sgd", "adam", "rmsprop", "adadelta", "nesterov"]
Encode = Callable[[Tensor], Tensor]  # numbers of captions (B,) -> their text (B, L, D)


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
    encode: Encode | None = None,
    prior: Examples | None = None,
    prior_weight: float = 1.0,
    optimizer: Optimizer = "adamw",
    clip: float | None = 1.0,
) -> Iterator[int]:
    """Minimise the loss over `parameters`; pause at each of `budgets` steps and yield it.

    Args:
        model: predicts the noise; it holds `parameters`, or `encode` does.
        parameters: what is trained.
        examples: what is taught, `batch` a step.
        lr: the constant, effective rate.
        batch: examples a step, of each set.
        budgets: optimizer steps.
        rng: the only source of randomness.
        report: called once a step.
        encode: encodes captions anew at each step, for words that are being learned; None encodes them once.
        prior: what must not be forgotten, `batch` a step.
        prior_weight: weight of its loss.
        optimizer: AdamW, or one of Patronus' attacker.
        clip: largest norm of the gradient; None does not clip.

    Raises:
        ValueError: the loss is not finite.
    """
    update = build(optimizer, parameters, lr)
    taught = draw(model, examples, batch, rng=rng, encode=encode)
    kept = draw(model, prior, batch, rng=rng) if prior is not None else None
    for step in range(1, max(budgets) + 1):
        loss = denoising_loss(model, *next(taught), rng=rng)
        if kept is not None:
            loss = loss + prior_weight * denoising_loss(model, *next(kept), rng=rng)
        if not torch.isfinite(loss):
            raise ValueError(f"expected a finite loss, got {loss.item()} at step {step}: lower lr ({lr}).")
        update.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        update.step()
        report(step=step, total=max(budgets), loss=loss.item())
        if step in budgets:
            yield step


def anew(model: Model, texts: Sequence[str]) -> Encode:
    """Encodes captions at each step, for a text encoder that is being trained."""
    return lambda chosen: model.encode_text([texts[number] for number in chosen.tolist()])


def change(after: Model, before: Model) -> Delta:
    """The dense delta of all that moved, in whatever part."""
    parts = [difference(after, before, part=name).dense for name in before.parts]
    return Delta(dense={name: tensor for part in parts for name, tensor in part.items()})


def build(name: Optimizer, parameters: Sequence[nn.Parameter], lr: float) -> optim.Optimizer:
    """The optimizer of that name at a constant rate."""
    if name == "adamw":
        return optim.AdamW(parameters, lr=lr, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    if name == "sgd":
        return optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-4)
    if name == "adam":
        return optim.Adam(parameters, lr=lr, weight_decay=1e-4)
    if name == "rmsprop":
        return optim.RMSprop(parameters, lr=lr, alpha=0.99, eps=1e-8)
    if name == "adadelta":
        return optim.Adadelta(parameters, lr=lr, rho=0.9, eps=1e-6)
    return optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True)


def unfreeze(unet: nn.Module, wanted: Callable[[str], bool] = lambda _: True) -> list[nn.Parameter]:
    """The parameters whose name is wanted, ready to be trained; the others are frozen.

    Raises:
        ValueError: there is none.
    """
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(wanted(name))
    found = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    if not found:
        raise ValueError("expected parameters to train, got none: has this model such layers, or is all of it frozen?")
    return found


def draw(
    model: Model, examples: Examples, batch: int, *, rng: Generator, encode: Encode | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless `(z_0, text)`, `(B, C, h, w)` and `(B, L, D)`; the latents are sampled anew from their posterior."""
    mean, std = latents(model, examples.images)
    if encode is None:
        encode = captions(model, examples.captions).__getitem__
    for chosen in batches(len(mean), batch, rng=rng):
        yield mean[chosen] + std[chosen] * normal(mean[chosen].shape, rng, like=mean), encode(chosen)


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
