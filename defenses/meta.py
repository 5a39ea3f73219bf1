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
    """A copy to attack: trained weights are copied, frozen ones shared."""
    return deepcopy(module, {id(p): p for p in module.parameters() if not p.requires_grad})


def transfer(loss: Tensor, learner: nn.Module, original: nn.Module) -> Tensor:
    """Add the gradient of `loss` at the attacked copy to the original's (first-order MAML); returns its value."""
    gradients = torch.autograd.grad(loss, trainable(learner))
    for p, gradient in zip(trainable(original), gradients, strict=True):
        p.grad = gradient if p.grad is None else p.grad + gradient
    return loss.detach()


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that take gradients."""
    return [p for p in module.parameters() if p.requires_grad]
