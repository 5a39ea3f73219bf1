"""A source's files beside a model -> the change that they are: part by part, under the model's names, or not at all."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmark.diffusion import Model
from benchmark.errors import DataError, clipped
from benchmark.imports import ldm, lora, names
from benchmark.imports.compare import Part, Values, beside, change, kind_of
from benchmark.imports.names import Sorted
from benchmark.imports.read import Held, read
from benchmark.imports.scales import scale_of
from benchmark.imports.sources import Source
from benchmark.imports.unchanged import check_unchanged
from benchmark.types import Delta

TOLD = 5  # names in a message


@dataclass
class Read:
    """What was read so far: the change, and what to say of it."""

    formats: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    dense: dict[str, Any] = field(default_factory=dict)
    low_rank: dict[str, Any] = field(default_factory=dict)
    components: list[str] = field(default_factory=list)
    dtypes: Counter[str] = field(default_factory=Counter)
    matched: int = 0
    equal: int = 0
    missing: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    header: dict[str, str] = field(default_factory=dict)

    @property
    def delta(self) -> Delta:
        """The change."""
        return Delta(dense=self.dense, low_rank=self.low_rank)


def look(given: Source, model: Model, component: str = "", values: Values | None = None) -> Read:
    """Read a source as a change of a model.

    Raises:
        DataError: it cannot be read, does not fit the model, or is the model itself.
    """
    seen = Read()
    for part, held in pieces(given, model, component, seen):
        seen.header |= held.header
        told = held.header.get("component", "")  # as ESD's newest trainer writes it
        add(held, part or component or (told if told in model.parts else ""), given, model, values, seen)
    if seen.delta.is_zero:
        raise DataError(
            f"expected a change of the base, got its own weights in {given.address}: a moving average, or a part that "
            "was not trained? Give the file that was."
        )
    return seen


def pieces(given: Source, model: Model, component: str, seen: Read) -> Iterator[tuple[str, Held]]:
    """What the files of a source hold, part by part: a pipeline is larger than what it changes."""
    for part, files in given.parts.items():
        if part and not hasattr(model, part):
            seen.left_out[part] = "no part that draws"
        elif part and component and part != component:
            seen.left_out[part] = f"not {component}, which was asked for"
        else:
            given.hash(part)
            held = read(files)
            if part and part not in model.parts:
                check_unchanged(part, held.tensors, getattr(model, part))
                seen.left_out[part] = "equal to the base's"
            else:
                yield part, held


def add(held: Held, part: str, given: Source, model: Model, values: Values | None, seen: Read) -> None:
    """Read one piece: take off wrappers, sort by part, convert names, compare.

    Raises:
        DataError: a name fits nowhere, or none fits.
    """
    into = Sorted(left_out=dict.fromkeys(held.others, "no tensor"))
    is_peft = any(name.startswith("base_model.model.") for name in held.tensors)
    tensors = names.unwrapped(held.tensors, into.left_out)
    if lora.is_lora(tensors):
        kind = "kohya LoRA" if lora.is_kohya(tensors) else "PEFT LoRA" if is_peft else "diffusers LoRA"
        scale = scale_of(given.settings, held.header, is_peft)
        lora.convert(tensors, model.parts, part, scale, into)
        refuse(into, tensors)
        add_pairs(into, model, seen)
    else:
        if ldm.is_ldm(tensors):
            kind = "CompVis state dict"
            ldm.convert(tensors, model.parts, into)
            for other in [name for name in into.parts if part and name != part]:
                into.left_out[other] = f"not {part}, which was asked for"
                del into.parts[other]
        else:
            kind = "pipeline folder" if given.index else "diffusers state dict"
            names.split(tensors, model.parts, part, into)
        found = [beside(name, model.parts[name], own) for name, own in into.parts.items()]
        into.unexpected += [name for each in found for name in each.unexpected]
        refuse(into, tensors if any(each.given for each in found) else {})
        add_parts(found, model, values, seen)
    seen.formats.append(kind)
    seen.left_out |= into.left_out


def refuse(into: Sorted, tensors: dict[str, Any]) -> None:
    """Refuse names that the base does not have, and a file without any that it has.

    Raises:
        DataError: either.
    """
    if into.unexpected:
        more = f" and {len(into.unexpected) - TOLD} more" if len(into.unexpected) > TOLD else ""
        told = ", ".join(clipped(name) for name in into.unexpected[:TOLD])
        raise DataError(
            f"expected names of the base alone, got {told}{more}: is it of another model? If it is only a part of what "
            "the file holds that you want, give --component."
        )
    if not tensors or not into.parts:
        raise DataError("expected weights that the base has, got none: is it of another model, or an empty file?")


def add_pairs(into: Sorted, model: Model, seen: Read) -> None:
    """Keep adapters.

    Raises:
        DataError: one does not fit the layer that it names.
    """
    for part, tensors in into.parts.items():
        parameters = dict(model.parts[part].named_parameters())
        modules = [name.removesuffix(".down") for name in tensors if name.endswith(".down")]
        for module in modules:
            down, up = tensors[f"{module}.down"], tensors[f"{module}.up"]
            weight = parameters.get(f"{module}.weight")
            if weight is None:
                raise DataError(f"expected names of the base alone, got {part}.{clipped(module)}: is it of another?")
            if (
                len(up) != len(weight)
                or up.flatten(1).shape[1] != len(down)
                or down[0].numel() * len(up) != weight.numel()
            ):
                raise DataError(
                    f"expected an adapter for {tuple(weight.shape)} at {part}.{clipped(module)}, got factors of "
                    f"{tuple(down.shape)} and {tuple(up.shape)}: it is of another model than --base."
                )
            seen.low_rank[f"{part}.{module}"] = down.float().contiguous(), up.float().contiguous()
            seen.dtypes[str(down.dtype).removeprefix("torch.")] += 2
        seen.matched += len(modules)
        seen.components.append(part)
    seen.values.append("adapters")


def add_parts(found: list[Part], model: Model, values: Values | None, seen: Read) -> None:
    """Keep what differs of whole tensors."""
    found = [part for part in found if part.given]
    kind = values or kind_of(found)
    for part in found:
        changed = change(part, kind)
        seen.dense |= {f"{part.name}.{name}": value for name, value in changed.items()}
        seen.matched += len(part.given)
        seen.equal += len(part.given) - len(changed)
        seen.missing += [f"{part.name}.{name}" for name in part.missing]
        seen.left_out |= dict.fromkeys(part.buffers, "no parameter, and equal to the base's")
        seen.dtypes += part.dtypes
        seen.components.append(part.name)
        if kind == "weights" and not part.missing and len(changed) == len(part.given):
            seen.warnings.append(
                f"no tensor of {part.name} equals the base's: it was trained whole, or on another base, whose "
                "differences then count as its change"
            )
    seen.values.append(kind)
