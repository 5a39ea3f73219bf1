"""First-order MAML: a copy is trained as an attacker would, and the gradient found there is applied to the original.

th' <- th' - lr grad L_attack(th')
th  <- th - lr (dL / dth)(th')         (Finn et al., 2017, https://arxiv.org/abs/1703.03400, without second orders)
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from benchmark.diffusion import whole

Part = TypeVar("Part", bound=nn.Module)


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


def copied(module: Part) -> Part:
    """A copy to attack, every weight of it: what is frozen in the original is no secret to an attacker."""
    copy = deepcopy(module)
    for p in copy.parameters():
        p.data = p.data.to(whole(p.dtype))
    return copy.requires_grad_(True)


def transfer(loss: Tensor, learner: nn.Module, original: nn.Module) -> Tensor:
    """Add the gradient of `loss` at the attacked copy to what the original trains; returns its value."""
    attacked = dict(learner.named_parameters())
    theta = {name: p for name, p in original.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, [attacked[name] for name in theta])
    for p, gradient in zip(theta.values(), gradients, strict=True):
        p.grad = gradient if p.grad is None else p.grad + gradient
    return loss.detach()


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that take gradients."""
    return [p for p in module.parameters() if p.requires_grad]
