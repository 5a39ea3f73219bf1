"""Training against a simulated attack: clone, attack, look, and the gradient found there goes to the original.

    th' = th;  th' <- th' - lr grad L_attack(th')       `fork` or `copied`, then `attack`: each step may be looked at
    th.grad += (dL / dth)(th')                          `transfer`: first-order MAML, no graph is kept

Alternating levels need no copy: each is one `step` of its own optimizer, as in IMMA. What depends on second orders is
in `curvature`. First-order MAML: Finn et al., 2017, https://arxiv.org/abs/1703.03400, without second orders.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from benchmark.deltas import whole
from benchmark.diffusion import Model

Part = TypeVar("Part", bound=nn.Module)
Loss = Callable[[], Tensor]


def descend(
    optimizer: Optimizer, steps: int, gradient: Callable[[int], Tensor], schedule: LRScheduler | None = None
) -> Iterator[Tensor]:
    """Yield the loss of each step; `gradient(i)` leaves the gradients of step i and returns its loss."""
    for i in range(steps):
        optimizer.zero_grad()
        loss = gradient(i)
        optimizer.step()
        if schedule:
            schedule.step()
        yield loss


def step(loss: Tensor, optimizer: Optimizer, *, clip: float | None = None) -> None:
    """One step down `loss` by the optimizer's parameters alone; `clip` is the largest norm of their gradient."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if clip is not None:
        nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()


def attack(optimizer: Optimizer, losses: Iterable[Loss], *, clip: float | None = None) -> Iterator[int]:
    """Go one step down each loss, and yield its number: what stands in the loop looks at the attacked copy."""
    for k, loss in enumerate(losses):
        step(loss(), optimizer, clip=clip)
        yield k


def fork(model: Model, *, every: bool = False) -> Model:
    """A copy of `model` to attack.

    Args:
        model: an edited copy of the base.
        every: every weight of the denoiser is the attacker's: what is frozen in the original is no secret to him.
            Otherwise what the original trains is, and all else is the same memory.
    """
    if every:
        parts: dict[str, Any] = {model.part: copied(model.denoiser)}
        return replace(model, **parts)
    return model.clone(only={f"{model.part}.{n}" for n, p in model.denoiser.named_parameters() if p.requires_grad})


def copied(module: Part) -> Part:
    """A copy to attack, every weight of it."""
    copy = deepcopy(module)
    for p in copy.parameters():
        p.data = p.data.to(whole(p.dtype))
    return copy.requires_grad_(True)


@torch.no_grad()
def reset(learner: Sequence[Tensor], original: Sequence[Tensor]) -> None:
    """The attacked copy is the original again: for the next attack."""
    for w, p in zip(learner, original, strict=True):
        w.copy_(p)


def transfer(loss: Tensor, learner: nn.Module, original: nn.Module) -> Tensor:
    """Add the gradient of `loss` at the attacked copy to what the original trains; returns its value."""
    attacked = dict(learner.named_parameters())
    theta = {name: p for name, p in original.named_parameters() if p.requires_grad}
    give(theta.values(), torch.autograd.grad(loss, [attacked[name] for name in theta]))
    return loss.detach()


def give(theta: Iterable[nn.Parameter], gradients: Iterable[Tensor]) -> None:
    """Add gradients to those that parameters have."""
    for p, gradient in zip(theta, gradients, strict=True):
        p.grad = gradient if p.grad is None else p.grad + gradient


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that take gradients."""
    return [p for p in module.parameters() if p.requires_grad]
