"""What the trained erasers share: a copy to train, steps that stop where a loss is not finite, anchors, ESD's target.

    eps_tgt = eps_0(z_t | null) - eta [eps_0(z_t | c) - eps_0(z_t | null)]        (Gandikota et al., ICCV 2023)

An anchor is the text that a concept is to mean. In a text that names the concept, it takes the place of the phrase.
"""

import re
from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmark.diffusion import Model
from benchmark.types import Concept, Report


def student(model: Model, names: Collection[str]) -> tuple[Model, list[nn.Parameter]]:
    """A copy of a model, and the named parameters of its denoiser, which alone take gradients."""
    edited = model.clone(only={f"{model.part}.{name}" for name in names})
    for name, parameter in edited.denoiser.named_parameters():
        parameter.requires_grad_(name in names)
    return edited, [p for p in edited.denoiser.parameters() if p.requires_grad]


def descend(
    optimizer: Optimizer,
    losses: Iterable[Tensor],
    report: Report,
    *,
    total: int,
    clip: float | None = None,
    before: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
    done: int = 0,
) -> None:
    """One step of the optimizer for each loss, which is asked for when the step before is done.

    Args:
        optimizer: what is trained, and how.
        losses: scalars, with their graphs.
        report: told of each step.
        total: the steps of the whole method.
        clip: the most that the gradient's norm may be.
        before: called between the gradient and the step.
        after: called after the step.
        done: steps that came before.

    Raises:
        ValueError: a loss is not finite.
    """
    theta = [p for group in optimizer.param_groups for p in group["params"]]
    lr = optimizer.param_groups[0]["lr"]
    for i, loss in enumerate(losses, done):
        if not torch.isfinite(loss):
            raise ValueError(f"expected a finite loss, got {loss.item()} at step {i}: lower lr ({lr}).")
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(theta, clip)
        if before:
            before()
        optimizer.step()
        if after:
            after()
        report(step=i + 1, total=total, loss=loss.item())


@torch.no_grad()
def away(model: Model, z_t: Tensor, t: Tensor, c: Tensor, null: Tensor, eta: float) -> Tensor:
    """eps_tgt `(B, C, h, w)` of the frozen `model`, for c and null `(B, L, D)`."""
    eps_null, eps_c = model.predict(z_t, t, null), model.predict(z_t, t, c)
    return eps_null - eta * (eps_c - eps_null)


def anchor_of(concept: Concept, anchor: str | None) -> str:
    """The text that a concept is to mean: by default its subject, and the empty text where the card has none."""
    return concept.subject if anchor is None else anchor


def anchored(text: str, concept: Concept, anchor: str) -> str:
    """A text with the anchor for each phrase, whatever its case; the anchor alone where it is empty, or none is named.

    A text that is described without its phrase cannot keep its other words: who knows which of them mean the concept?
    """
    named = re.compile("|".join(re.escape(phrase) for phrase in concept.phrases), re.IGNORECASE)
    return named.sub(lambda _: anchor, text) if anchor and named.search(text) else anchor
