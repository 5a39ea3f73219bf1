"""Names of a checkpoint -> names of the base's parts. What fits nowhere is told, never dropped.

Wrappers and prefixes that training scripts leave behind are taken off:

    state_dict.  module.  _orig_mod.  base_model.model.  .base_layer.          whoever saved it
    unet.  transformer.  vae.  text_encoder.  text_encoder_2.                  which part it is
    text_model.                                                                as the base's own encoder has it
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from benchmark.errors import DataError, clipped
from benchmark.imports.read import Tensors

WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")
WRAPPED = "state_dict."
TEXT = "text_model."
KNOWN_PARTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2")


@dataclass
class Sorted:
    """The tensors of a checkpoint by the base's part, and what was not taken: name to reason."""

    parts: dict[str, Tensors] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def unwrapped(tensors: Mapping[str, Tensor], left_out: dict[str, str]) -> Tensors:
    """Tensors without wrappers around all of them; what lies beside a `state_dict` is left out.

    Raises:
        DataError: fused adapters lie beside the weights that they were fused into.
    """
    found = dict(tensors)
    if any(name.startswith(WRAPPED) for name in found):
        left_out |= {name: "beside the state_dict" for name in found if not name.startswith(WRAPPED)}
        found = {name.removeprefix(WRAPPED): value for name, value in found.items() if name.startswith(WRAPPED)}
    return unprefixed(found)


def unprefixed(found: Tensors) -> Tensors:
    """Tensors without the prefixes and infixes of whoever trained them.

    Raises:
        DataError: two tensors get one name.
    """
    while prefix := next((p for p in WRAPPERS if found and all(name.startswith(p) for name in found)), ""):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    if not any(".base_layer." in name for name in found):
        return found
    if lora := next((name for name in found if re.search(r"\.lora_[AB]\.", name)), ""):
        raise DataError(
            f"expected a model whose adapters are merged and gone, got {clipped(lora)!r} beside its base_layer: call "
            "`merge_and_unload()`, or `fuse_lora()` and then `unload_lora_weights()`, before it is saved."
        )
    return {name.replace(".base_layer.", "."): value for name, value in found.items()}


def split(tensors: Tensors, parts: Mapping[str, nn.Module], component: str, into: Sorted) -> None:
    """Sort tensors into parts: as `component` says, by their own prefixes, or by whose names and shapes they have.

    Raises:
        DataError: they could be of two parts, or the base has no such part.
    """
    names = [*parts, *(name for name in KNOWN_PARTS if name not in parts)]
    prefixed = {name: prefix_of(name, names) for name in tensors}
    if component:
        own = {n: t for n, t in tensors.items() if prefixed[n] in ("", component)}
        into.left_out |= {n: f"not of {component}, which was asked for" for n in tensors if n not in own}
        place(component, unprefixed({n.removeprefix(f"{component}."): t for n, t in own.items()}), parts, into)
    elif any(prefixed.values()):
        into.unexpected += [n for n, part in prefixed.items() if not part]
        for part in dict.fromkeys(filter(None, prefixed.values())):
            own = {n.removeprefix(f"{part}."): t for n, t in tensors.items() if prefixed[n] == part}
            place(part, unprefixed(own), parts, into)
    else:
        place(likeliest(tensors, parts), tensors, parts, into)


def place(part: str, tensors: Tensors, parts: Mapping[str, nn.Module], into: Sorted) -> None:
    """Put tensors under a part.

    Raises:
        DataError: the base has no such part.
    """
    if part not in parts:
        raise DataError(f"expected parts of the base, {', '.join(parts)}, got {part!r}: choose another --base.")
    if tensors:
        into.parts.setdefault(part, {}).update(tensors)


def prefix_of(name: str, parts: Iterable[str]) -> str:
    """The part that a name begins with; empty without one."""
    first = name.partition(".")[0]
    return first if first in parts else ""


def likeliest(tensors: Tensors, parts: Mapping[str, nn.Module]) -> str:
    """The part that has most of these names, with these shapes.

    Raises:
        DataError: none has any, or two have as many.
    """
    counts = {part: sum(1 for _ in alike(part, module, tensors)) for part, module in parts.items()}
    best = max(counts, key=lambda part: counts[part])
    if not counts[best]:
        shown = ", ".join(clipped(name) for name in list(tensors)[:3])
        raise DataError(f"expected weights of {', '.join(parts)}, got none: the names are {shown}. Is it of the base?")
    if twins := [part for part in counts if counts[part] == counts[best] and part != best]:
        raise DataError(f"expected weights of one part, got names that fit {best} and {twins[0]}: give --component.")
    return best


def alike(part: str, module: nn.Module, tensors: Tensors) -> Iterable[str]:
    """The names that a part has, with their shapes."""
    known = shapes(module)
    for name, value in renamed(part, module, tensors).items():
        if name in known and fits(value, known[name]):
            yield name


def renamed(part: str, module: Any, tensors: Tensors) -> Tensors:
    """Tensors under the names that the base's own module has: text encoders with or without `text_model.`, and the
    attention of old VAEs.
    """
    if part.startswith("text_encoder"):
        known = shapes(module)
        versions: list[Tensors] = [
            tensors,
            {name.removeprefix(TEXT): value for name, value in tensors.items()},
            {name if name.startswith(("text_projection", TEXT)) else TEXT + name: v for name, v in tensors.items()},
        ]
        return max(versions, key=lambda found: sum(name in known for name in found))
    if part == "vae":
        found: Tensors = module._fix_state_dict_keys_on_load(dict(tensors))  # diffusers' own, at its version
        return found
    return tensors


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a module's parameters and buffers, by name."""
    return {name: tuple(value.shape) for name, value in (*module.named_parameters(), *module.named_buffers())}


def fits(value: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor has a shape, but for sizes of 1 behind it: a 1 x 1 convolution is a linear layer."""
    return bare(tuple(value.shape)) == bare(shape)


def bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape of more than two sizes without those of 1 at its end."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
