"""A base that stays loaded, and one copy of it on which changes are swapped.

A swap copies back from the base every weight that differs, and adds the new deltas to it in order: the same sums as on
a fresh copy, to the bit. Nothing is ever subtracted. Of a large model, what no delta has changed yet is
the base's own memory: a method that writes to what it was given then breaks the base, which is noticed.
"""

from collections.abc import Callable, Collection, Mapping
from itertools import takewhile

import torch
from torch import Tensor, nn

from benchmark.deltas import apply, find, whole
from benchmark.diffusion import Model
from benchmark.types import Delta


class Resident:
    """The base, and the copy with the deltas that it wears."""

    def __init__(self, base: Model) -> None:
        self.base = base
        self.copy: Model | None = None
        self.worn: dict[str, Delta] = {}

    def wear(self, layers: Mapping[str, Callable[[], Delta]]) -> Model:
        """The base with deltas applied in order, until the next call: nobody may change it.

        Args:
            layers: how to load each delta, by a name that no other delta has; what is worn already is not loaded.

        Raises:
            ValueError: a delta that does not fit this model.
        """
        wanted = {name: self.worn[name] if name in self.worn else load() for name, load in layers.items()}
        copy, worn = self.copy, self.worn
        self.copy, self.worn = None, wanted  # whatever raises below, a half-made copy is not used again
        if copy is None:
            differing = set[str]().union(*(delta.names for delta in wanted.values()))
            copy = self.base.clone(only=differing if self.base.is_large else None)
            for delta in wanted.values():
                apply(delta, copy.parts)
        else:
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(worn, wanted, strict=False)))
            changed = [*list(worn.values())[same:], *list(wanted.values())[same:]]
            stale = set[str]().union(*(delta.names for delta in changed))
            for name in stale:
                restore(copy.parts, name, find(self.base.parts, name))
            for delta in wanted.values():
                apply(only(delta, stale), copy.parts)
        self.copy = copy
        return copy.frozen()

    def drop(self) -> None:
        """Give the copy up: a method had it in its hands. The deltas stay at hand."""
        self.copy = None


@torch.no_grad()
def restore(parts: dict[str, nn.Module], name: str, original: Tensor) -> None:
    """Give a parameter its original content again; one that is the base's own memory first gets its own, in float32."""
    weight = find(parts, name)
    if weight.data_ptr() != original.data_ptr():
        weight.copy_(original)
        return
    own = nn.Parameter(original.detach().to(whole(original.dtype), copy=True), weight.requires_grad)
    for module in (module for part in parts.values() for module in part.modules()):  # wherever it is the same one
        for key, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter is weight:
                setattr(module, key, own)


def only(delta: Delta, wanted: Collection[str]) -> Delta:
    """A delta's changes of some parameters."""
    return Delta(
        dense={name: tensor for name, tensor in delta.dense.items() if name in wanted},
        low_rank={name: pair for name, pair in delta.low_rank.items() if f"{name}.weight" in wanted},
    )
