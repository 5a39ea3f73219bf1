"""Weights of a model's parts by name: copies to train, and changes added to them."""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.types import Delta

EMPTIED = (dict, OrderedDict, set)  # collections of a layer that `copied` makes itself where they are empty


def whole(dtype: torch.dtype) -> torch.dtype:
    """In what a weight is trained that is kept in `dtype`: float32 instead of half of it."""
    return torch.float32 if dtype.itemsize == 2 else dtype


def copied(parts: Mapping[str, nn.Module], only: Collection[str] | None) -> dict[str, nn.Module]:
    """Copies of parts: what changes (`Model.clone`) is a float32 tensor of their own, all else is the same memory.

    In half of `deepcopy`'s time: most of what a layer holds is collections without hooks.
    """
    layers = [layer for part in parts.values() if part for layer in part.modules()]
    inside = (value for layer in layers for value in vars(layer).values())
    memo: dict[int, Any] = {id(value): type(value)() for value in inside if type(value) in EMPTIED and not value}
    for prefix, part in parts.items():
        for name, p in part.named_parameters() if part else ():  # a model may be made without a part
            changes = only is None or prefix in only or f"{prefix}.{name}" in only
            tensor = p.detach().to(whole(p.dtype), copy=True) if changes else p.detach()
            memo[id(p)] = nn.Parameter(tensor, p.requires_grad)
    return {prefix: deepcopy(part, memo) for prefix, part in parts.items()}


def apply(delta: Delta, parts: dict[str, nn.Module]) -> None:
    """Add a delta to the weights of `parts`, strictly."""
    for name, difference in delta.dense.items():
        add(parts, name, difference)
    for name, (down, up) in delta.low_rank.items():
        weight = find(parts, f"{name}.weight")
        product = up.flatten(1) @ down.flatten(1)
        add(parts, f"{name}.weight", product.reshape(weight.shape) if product.numel() == weight.numel() else product)


def add(parts: dict[str, nn.Module], name: str, difference: Tensor) -> None:
    """weight += difference, if the weight exists and has that shape."""
    weight = find(parts, name)
    if weight.shape != difference.shape:
        raise ValueError(
            f"expected a delta of shape {tuple(weight.shape)} for {name!r}, got {tuple(difference.shape)}: "
            "was it made for another model?"
        )
    with torch.no_grad():
        weight.add_(difference.to(weight))


def find(parts: dict[str, nn.Module], name: str) -> Tensor:
    """The parameter called `<part>.<name in part>`."""
    part, _, inner = name.partition(".")
    try:
        return parts[part].get_parameter(inner)
    except (KeyError, AttributeError) as error:
        raise ValueError(
            f"expected a parameter of {', '.join(parts)}, got {name!r}, which this model lacks: "
            "was the delta made for another model?"
        ) from error
