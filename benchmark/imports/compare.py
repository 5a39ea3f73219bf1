"""A part's tensors and the base's -> what differs, elementwise; and whether a file holds weights or their differences.

    x = the file,  b = the base,  r = rounding to the file's type
    weights      change = x - b  where x != r(b), else 0        || x - b || / || b || < 0.5
    difference   change = x                                      || x || / || b || < 0.5, and x does not point along b

A file of 16 bits differs from the base in every number by rounding alone: those are no change.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from benchmark.errors import DataError, clipped
from benchmark.imports.names import fits, renamed
from benchmark.imports.read import Tensors

Values = Literal["weights", "difference"]
NEAR, ALONG = 0.5, 0.5  # relative distance to the base; cosine with it


@dataclass
class Part:
    """One part of a checkpoint beside the base's.

    Attributes:
        given: tensors by the base's names, in the base's shapes.
        base: the base's parameters of these names.
        missing: parameters of the base that the file does not have.
        unexpected: names of the file that the base does not have.
        buffers: names that are no parameters, and equal the base's.
        dtypes: how many tensors are of which type.
    """

    name: str
    given: Tensors
    base: Tensors
    missing: list[str]
    unexpected: list[str] = field(default_factory=list)
    buffers: list[str] = field(default_factory=list)
    dtypes: Counter[str] = field(default_factory=Counter)


def beside(part: str, module: Any, tensors: Tensors) -> Part:
    """A part's tensors under the base's names.

    Raises:
        DataError: a shape or a buffer is not the base's, or a number is not finite.
    """
    parameters = {name: value.detach() for name, value in module.named_parameters()}
    buffers = dict(module.named_buffers())
    found = renamed(part, module, tensors)
    made = Part(part, {}, {}, [name for name in parameters if name not in found])
    for name, value in found.items():
        if name not in parameters and name not in buffers:
            made.unexpected.append(f"{part}.{name}")
            continue
        wanted = parameters.get(name, buffers.get(name))
        assert wanted is not None
        if not fits(value, tuple(wanted.shape)):
            raise DataError(
                f"expected {part}.{clipped(name)} of shape {tuple(wanted.shape)}, got {tuple(value.shape)}: it is of "
                "another model than --base."
            )
        value = value.reshape(wanted.shape)
        if not bool(torch.isfinite(value.float()).all()):
            raise DataError(f"expected finite weights, got some in {part}.{clipped(name)} that are not: copy it again.")
        if name in buffers:
            if not torch.equal(value.float(), wanted.to(value.dtype).float()):
                raise DataError(f"expected the base's {part}.{clipped(name)}, which no training changes, got another.")
            made.buffers.append(f"{part}.{name}")
            continue
        made.given[name], made.base[name] = value, wanted
        made.dtypes[str(value.dtype).removeprefix("torch.")] += 1
    return made


def kind_of(parts: list[Part]) -> Values:
    """Whether tensors are weights or differences, by norms over all of them.

    Raises:
        DataError: they are neither.
    """
    apart, own, base, product = 0.0, 0.0, 0.0, 0.0
    for x, b in ((part.given[name].double(), part.base[name].double()) for part in parts for name in part.given):
        apart += float((x - b).square().sum())
        own += float(x.square().sum())
        base += float(b.square().sum())
        product += float((x * b).sum())
    if base and apart < NEAR**2 * base:
        return "weights"
    cosine = product / (own * base) ** 0.5 if own and base else 0.0
    if base and own < NEAR**2 * base and abs(cosine) < ALONG:
        return "difference"
    raise DataError(
        f"expected weights near the base's or small differences from them, got tensors of {ratio(own, base):.2g} times "
        f"its norm at {ratio(apart, base):.2g} of it away: is it of another model? If not, give --values."
    )


def ratio(of: float, to: float) -> float:
    """The quotient of two norms from their squares."""
    return (of / to) ** 0.5 if to else float("inf")


def change(part: Part, values: Values) -> Tensors:
    """What differs, float32 by the base's names; what is equal is left out."""
    found = {name: changed(value, part.base[name], values) for name, value in part.given.items()}
    return {name: value for name, value in found.items() if bool(value.any())}


def changed(x: Tensor, b: Tensor, values: Values) -> Tensor:
    """The change of one tensor; 0 where the file's number is the base's, rounded to the file's type."""
    if values == "difference":
        return x.float()
    return torch.where(x == b.to(x.dtype), torch.zeros_like(b), x.float() - b.float())
