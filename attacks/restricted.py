"""An attacker whose hands are bound: a fine-tuning service that keeps some tensors frozen, whatever data it is sent.

    theta_i <- theta_i - lr (1 - m_i) grad_i L,     m_i in {0, 1}: one bit for each tensor i

A mask is the list of the tensors with m_i = 1, as a delta names them; `*` stands for any part of a name. Who has the
weights is bound by nothing: such an attack stands beside the others, in no rank.

Paper     FreezeAsGuard: Huang, Wang & Gao, 2024, https://arxiv.org/abs/2405.17472
Code      https://github.com/pittisl/FreezeAsGuard @ 12856a8
Differs   the mask is given, and not learned: the release finds it by two levels of optimisation over images of the
          target and of innocent use, at a share of 0.2 of about 686 tensors. Masks that it wrote are lists of bits in
          the order of `unet.named_parameters()`: write down the names.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from attacks.base import Standing, WeightAttack


@dataclass(frozen=True, kw_only=True)
class Restricted(WeightAttack):
    """Mixed into weight attacks that a service can offer."""

    frozen: tuple[str, ...] = ()  # tensors that stay, such as unet.*attn2*; none: whoever has the weights

    @property
    def stands(self) -> Standing:
        """Beside the others, once a tensor is frozen."""
        return "beside" if self.frozen else self.standing

    def moves(self, part: str) -> Callable[[str], bool]:
        """Which tensors of a part are trained, by their names in it."""
        return lambda name: not is_frozen(f"{part}.{name}", self.frozen)


def check(frozen: Iterable[str], parts: Iterable[tuple[str, nn.Module]]) -> None:
    """Refuse a mask that names nothing here.

    Raises:
        ValueError: no parameter of `parts` has such a name.
    """
    names = [f"{part}.{name}" for part, module in parts for name, _ in module.named_parameters()]
    for pattern in frozen:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"expected names of trained tensors in `frozen`, got {pattern!r}, which is none of {len(names)}, such "
                f"as {names[0]}: name them as a delta does, or with *."
            )


def is_frozen(name: str, frozen: Iterable[str]) -> bool:
    """Whether a mask has a tensor, by its name in a delta."""
    return any(fnmatchcase(name, pattern) for pattern in frozen)


def left(part: str, module: nn.Module, endings: Sequence[str], frozen: Sequence[str]) -> list[str]:
    """The layers of a part whose names end so and whose weights are not frozen, by their whole names."""
    layers = [name for name, one in module.named_modules() if isinstance(one, nn.Linear | nn.Conv2d)]
    meant = [name for name in layers if any(f".{name}".endswith(f".{ending}") for ending in endings)]
    return [name for name in meant if not is_frozen(f"{part}.{name}.weight", frozen)]
