"""Whether a model is what it was when it was loaded: weights, hooks, modes, schedule, tokenizers."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.diffusion import Model

SMALL = 2**15  # bytes up to which a tensor is kept as it is
BLOCK = 256  # words of 8 bytes of which a larger one's sum is kept
SIMPLE = (bool, int, float, str, bytes, torch.dtype, torch.device)
PROBE = "a photo of 2 cats, sitting"


class Seal:
    """What a model was. It keeps the model's objects, so that no other can be taken for one of them.

    Of a tensor, the bits are compared: all of a small one, the sums of each 2 KB of a larger one. A change escapes
    only if it keeps every such sum, which reordering within 2 KB does and arithmetic practically never.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.layers = {layer: (name, type(layer), noted(vars(layer))) for name, layer in layers_of(model)}
        self.tensors = tensors_of(model)
        self.shapes = {name: shape_of(tensor) for name, tensor in self.tensors.items()}
        self.bits = bits_of(self.tensors)
        self.scheduler = noted(vars(model.scheduler))
        self.tokenizers = {name: told(getattr(model, name)) for name, _ in (*model.readers, *model.listeners)}

    def broken(self) -> list[str]:
        """The names of what differs; of weights only where nothing else does."""
        found = []
        for layer, (name, cls, before) in self.layers.items():
            if type(layer) is not cls:
                found.append(f"the class of {name}")
            found += [f"{name}.{key}" for key in differing(before, vars(layer))]
        found += [name for name, tensor in self.tensors.items() if self.shapes[name] != shape_of(tensor)]
        found += [f"scheduler.{key}" for key in differing(self.scheduler, vars(self.model.scheduler))]
        for name, before in self.tokenizers.items():
            now = told(getattr(self.model, name))
            found += [f"{name} ({what})" for what in before if before[what] != now[what]]
        return found or self.weights()

    def weights(self) -> list[str]:
        """The tensors whose content differs."""
        now, found = bits_of(self.tensors), []
        for names, before in self.bits.items():
            if not torch.equal(before, now[names]):
                found += [names] if isinstance(names, str) else self.among(names, before, now[names])
        return found

    def among(self, names: tuple[str, ...], before: Tensor, now: Tensor) -> list[str]:
        """Those of some small tensors whose content differs."""
        sizes = [self.tensors[name].nbytes for name in names]
        pairs = zip(names, before.split(sizes), now.split(sizes), strict=True)
        return [name for name, a, b in pairs if not torch.equal(a, b)]


def layers_of(model: Model) -> list[tuple[str, nn.Module]]:
    """All layers by name."""
    inside = [(prefix, *pair) for prefix, part in model.modules.items() for pair in part.named_modules()]
    return [(f"{prefix}.{name}".rstrip("."), layer) for prefix, name, layer in inside]


def tensors_of(model: Model) -> dict[str, Tensor]:
    """All parameters and buffers by name."""
    inside = [(prefix, chain(part.named_parameters(), part.named_buffers())) for prefix, part in model.modules.items()]
    return {f"{prefix}.{name}": tensor for prefix, pairs in inside for name, tensor in pairs}


def bits_of(tensors: Mapping[str, Tensor]) -> dict[str | tuple[str, ...], Tensor]:
    """What is kept of the content of tensors: of each large one, and of all small ones of a dtype together."""
    small: dict[torch.dtype, dict[str, Tensor]] = {}
    found: dict[str | tuple[str, ...], Tensor] = {}
    with torch.no_grad():
        for name, tensor in tensors.items():
            flat = tensor.detach().reshape(-1)
            if tensor.nbytes <= SMALL:
                small.setdefault(tensor.dtype, {})[name] = flat
            else:
                found[name] = sums(flat.view(torch.uint8))
        return found | {tuple(some): torch.cat(list(some.values())).view(torch.uint8) for some in small.values()}


def sums(raw: Tensor) -> Tensor:
    """The sums of blocks of bytes `(N,)`, and the bytes that are left over, as int64."""
    full = len(raw) // (8 * BLOCK) * (8 * BLOCK)
    found = raw[:full].view(torch.int64).view(-1, BLOCK).sum(1)
    return found if full == len(raw) else torch.cat([found, raw[full:].long()])


def shape_of(tensor: Tensor) -> tuple[Any, ...]:
    """All of a tensor but its content."""
    return tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad, tensor.data_ptr()


def told(tokenizer: Any) -> dict[str, Any]:
    """What decides how a tokenizer reads."""
    return {
        "its length": len(tokenizer),
        "added words": repr(sorted(tokenizer.added_tokens_decoder.items())),
        "special words": repr(tokenizer.special_tokens_map),
        "longest text": tokenizer.model_max_length,
        "sides": (tokenizer.padding_side, tokenizer.truncation_side),
        "reading": tokenizer(PROBE, truncation=True, max_length=tokenizer.model_max_length).input_ids,
    }


def noted(attributes: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """An object's attributes, each with a copy of what may change inside it."""
    return {name: (value, inside(value)) for name, value in attributes.items()}


def inside(value: Any) -> Any:
    """A copy of what may change in a value: a collection's or an object's members, an array's content."""
    if isinstance(value, nn.Module | type | nn.Parameter):
        return None
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list):
        return list(value)
    return dict(vars(value)) if hasattr(value, "__dict__") else None


def differing(before: Mapping[str, tuple[Any, Any]], now: Mapping[str, Any]) -> list[str]:
    """The attributes that are others, or hold something else."""
    found = [name for name in now if name not in before] if len(now) > len(before) else []
    for name, (value, copy) in before.items():
        other = now.get(name)
        if other is value and isinstance(value, dict) and not value and not copy:  # most are collections without hooks
            continue
        if not alike(value, other) or (copy is not None and not unchanged(copy, value)):
            found.append(name)
    return found


def unchanged(copy: Any, value: Any) -> bool:
    """Whether a value still holds what it held."""
    if isinstance(value, Tensor):
        return torch.equal(copy, value)
    if isinstance(value, np.ndarray):
        return np.array_equal(copy, value)
    if isinstance(value, list):
        return len(copy) == len(value) and all(map(alike, copy, value))
    now = value if isinstance(value, Mapping) else vars(value)
    if not copy and not now:
        return True
    return list(copy) == list(now) and all(map(alike, copy.values(), now.values()))


def alike(a: Any, b: Any) -> bool:
    """Whether two members are the same object, or the same plain value."""
    return a is b or (isinstance(a, SIMPLE) and type(a) is type(b) and bool(a == b))
