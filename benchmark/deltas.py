"""Weights of a model's parts by name: copies to train, and changes added to them."""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from copy import deepcopy
from copyreg import dispatch_table
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.types import Delta

PLAIN = frozenset({bool, int, float, str, type(None), type, FunctionType})  # what a copy shares
COLLECTIONS = (dict, OrderedDict, set)  # most of what a layer holds, and most of them are empty


def whole(dtype: torch.dtype) -> torch.dtype:
    """In what a weight is trained that is kept in `dtype`: float32 instead of half of it."""
    return torch.float32 if dtype.itemsize == 2 else dtype


def copied(parts: Mapping[str, nn.Module], only: Collection[str] | None) -> dict[str, nn.Module]:
    """Copies of parts: what changes (`Model.clone`) is a float32 tensor of their own, all else is the same memory.

    What `deepcopy` gives, in a fraction of its time: it asks every layer how it is to be copied.
    """
    memo: dict[int, Any] = {}
    for prefix, part in parts.items():
        for name, p in part.named_parameters() if part else ():  # a model may be made without a part
            changes = only is None or prefix in only or f"{prefix}.{name}" in only
            tensor = p.detach().to(whole(p.dtype), copy=True) if changes else p.detach()
            memo[id(p)] = nn.Parameter(tensor, p.requires_grad)
    layers = {id(layer): layer for part in parts.values() if part for layer in part.modules() if is_usual(layer)}
    memo |= {key: type(layer).__new__(type(layer)) for key, layer in layers.items()}  # first all: they know each other
    for key, layer in layers.items():
        memo[key].__setstate__({name: inner(value, memo) for name, value in layer.__getstate__().items()})
    return {prefix: deepcopy(part, memo) for prefix, part in parts.items()}


def is_usual(layer: nn.Module) -> bool:
    """Whether `deepcopy` would copy what the layer holds, one by one: its class says nothing else."""
    cls = type(layer)
    says = hasattr(cls, "__deepcopy__") or "__deepcopy__" in vars(layer) or cls in dispatch_table
    usual = cls.__getstate__ is nn.Module.__getstate__ and cls.__new__ is object.__new__
    return usual and not says and cls.__reduce_ex__ is object.__reduce_ex__ and cls.__reduce__ is object.__reduce__


def inner(value: Any, memo: dict[int, Any]) -> Any:
    """A copy of what a layer holds; `memo` has, by id, what is copied already."""
    kind = type(value)
    if kind in PLAIN or (kind is tuple and PLAIN.issuperset(map(type, value))):
        return value
    if (known := memo.get(id(value))) is not None:
        return known
    if kind in COLLECTIONS and not value:
        made: Any = kind()
        memo[id(value)] = made
    elif kind in (dict, OrderedDict) and PLAIN.issuperset(map(type, value)):
        memo[id(value)] = made = kind()
        for key, held in value.items():
            made[key] = inner(held, memo)
    else:
        made = deepcopy(value, memo)
    return made


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
