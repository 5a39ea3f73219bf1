"""LoRA files -> pairs `down (r, in)`, `up (out, r)` by module of the base, the scale alpha / r folded into `up`.

    <part>.<module>.lora_A.weight, lora_B                     diffusers
    base_model.model.<module>.lora_A.weight                   PEFT, with adapter_config.json
    <part>.<module>.processor.to_q_lora.down.weight           before PEFT; also `.lora.down.`, `.lora_linear_layer.`
    lora_unet_<module>.lora_down.weight, lora_up, alpha       kohya, SPM; dots are `_`; lora_te_, lora_te1_, lora_te2_

Names go through the converters of the installed diffusers, which are private and pinned by
`tests/imports/test_formats.py`; modules of CompVis' names through those of `ldm`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from diffusers.loaders import lora_conversion_utils as converters
from diffusers.utils import state_dict_utils as states
from torch import Tensor

from benchmark.errors import DataError, clipped
from benchmark.imports import ldm
from benchmark.imports.names import KNOWN_PARTS, TEXT, Sorted, place, prefix_of
from benchmark.imports.read import Tensors

ANY = re.compile(r"lora_(A|B|down|up)(\.|$)|[._]lora\.(down|up)\.|lora_linear_layer\.|_lora\.(down|up)\.")
OTHERS = re.compile(r"dora_scale|lora_magnitude_vector|hada_w|lokr_w|lora_mid|oft_|\.diff(_b)?$")
HALF = re.compile(r"(?P<module>.+?)\.lora_(?P<side>[AB])(\.[\w-]+)?\.weight")
Scale = Callable[[str, int], float]


def is_lora(names: Iterable[str]) -> bool:
    """Whether any name is that of an adapter."""
    return any(ANY.search(name) or OTHERS.search(name) for name in names)


def is_kohya(names: Iterable[str]) -> bool:
    """Whether adapters are named as kohya's scripts do."""
    return any(name.endswith(".lora_down.weight") for name in names)


def convert(tensors: Tensors, parts: Mapping[str, Any], component: str, scale: Scale, into: Sorted) -> None:
    """Sort an adapter file into pairs, `<module>.down` and `<module>.up`, of the base's parts.

    Raises:
        DataError: they are no products of two matrices, half of one is missing, or the base has no such part.
    """
    if other := next((name for name in tensors if OTHERS.search(name)), ""):
        raise DataError(
            f"expected plain LoRA, got {clipped(other)!r}, which is no product of two matrices: merge it into the "
            "model where it was trained, and import that."
        )
    tensors = folded(tensors)
    tensors = from_kohya(tensors, parts) if is_kohya(tensors) else tensors
    groups: dict[str, Tensors] = {}
    for name, value in tensors.items():
        part = prefix_of(name, KNOWN_PARTS)
        groups.setdefault(part, {})[name.removeprefix(f"{part}.") if part else name] = value
    for part, own in groups.items():
        of_part(component or part, own, parts, scale, into)


def of_part(part: str, own: Tensors, parts: Mapping[str, Any], scale: Scale, into: Sorted) -> None:
    """The pairs of one part; of "", of the one whose modules they name."""
    halves: dict[str, dict[str, Tensor]] = {}
    for name, value in modern(part, own).items():
        if found := HALF.fullmatch(name if name.endswith(".weight") else f"{name}.weight"):
            halves.setdefault(found["module"], {})[found["side"]] = value
        else:
            into.unexpected.append(name)
    if lone := next((name for name, pair in halves.items() if len(pair) < 2), ""):
        raise DataError(f"expected both factors of each adapter, got one of {clipped(lone)!r}: save it again.")
    part = part or whose(halves, parts)
    place(part, {}, parts, into)
    names = modules(part, halves, parts[part])
    for module, pair in halves.items():
        place(part, {f"{names[module]}.down": pair["A"]}, parts, into)
        place(part, {f"{names[module]}.up": pair["B"].float() * scale(f"{part}.{module}", len(pair["A"]))}, parts, into)


def modern(part: str, own: Tensors) -> Tensors:
    """An adapter's names as PEFT has them, but for the prefix; those of today stay."""
    if not part.startswith("text_encoder"):
        found: Tensors = states.convert_unet_state_dict_to_peft(own)
    elif any("_lora." in name for name in own):
        found = states.convert_state_dict_to_peft(own, states.StateDictType.DIFFUSERS_OLD)
    elif any("lora_linear_layer" in name or ".lora." in name for name in own):
        found = states.convert_state_dict_to_peft(own, states.StateDictType.DIFFUSERS)
    else:
        found = own
    return found


def whose(names: Iterable[str], parts: Mapping[str, Any]) -> str:
    """The part that has most of these modules.

    Raises:
        DataError: none has any, or two have as many.
    """
    names = list(names)
    known = {part: {name for name, _ in module.named_modules()} for part, module in parts.items()}
    counts = {part: sum(n in known[part] for n in modules(part, names, parts[part]).values()) for part in parts}
    best = max(counts, key=lambda part: counts[part])
    if not counts[best]:
        raise DataError(f"expected adapters of {', '.join(parts)}, got {clipped(names[0])!r}: is it of the base?")
    if sum(counts[best] == count for count in counts.values()) > 1:
        raise DataError(f"expected adapters of one part, got names that fit several, as {best}: give --component.")
    return best


def modules(part: str, names: Iterable[str], module: Any) -> dict[str, str]:
    """The names of modules as the base has them; those that it has no name for stay."""
    names, known = list(names), {name for name, _ in module.named_modules()}
    if part == "unet" and ldm.is_ldm(f"{name}." for name in names):
        bare = {name: f"{name.removeprefix(ldm.UNET).removeprefix('diffusion_model.')}.weight" for name in names}
        found = ldm.unet_names(bare.values(), module.config)
        return {name: found.get(old, name).removesuffix(".weight") for name, old in bare.items()}
    if part.startswith("text_encoder"):
        return {
            name: next((n for n in (name, name.removeprefix(TEXT), TEXT + name) if n in known), name) for name in names
        }
    return {name: name for name in names}


def folded(tensors: Tensors) -> Tensors:
    """Tensors with each `alpha` of their own folded into `up`, and gone."""
    found = {name: value for name, value in tensors.items() if not name.endswith(".alpha")}
    for name, alpha in tensors.items():
        if name.endswith(".alpha"):
            module = name.removesuffix(".alpha")
            own = [n for n in found if n.startswith((f"{module}.", f"{module}_lora."))]
            downs = [n for n in own if re.search(r"lora_down\.|\.down\.|lora_A\.", n)]
            ups = [n for n in own if re.search(r"lora_up\.|\.up\.|lora_B\.", n)]
            if len(downs) != 1 or len(ups) != 1:
                raise DataError(f"expected one adapter for {clipped(name)!r}, got {len(downs)}: save it again.")
            found[ups[0]] = found[ups[0]].float() * (float(alpha) / len(found[downs[0]]))
    return found


def from_kohya(tensors: Tensors, parts: Mapping[str, Any]) -> Tensors:
    """kohya's names as diffusers had them before PEFT.

    Raises:
        DataError: diffusers has no name for one.
    """
    try:
        given = dict(tensors)
        if "unet" in parts:
            given = converters._maybe_map_sgm_blocks_to_diffusers(given, parts["unet"].config)
            found, _ = converters._convert_non_diffusers_lora_to_diffusers(given)
        else:
            found = converters._convert_kohya_flux_lora_to_diffusers(given)
    except (ValueError, KeyError, IndexError) as error:
        why = clipped(" ".join(str(error).split()), 300)
        raise DataError(f"expected adapters in kohya's names, got some that diffusers does not know: {why}") from error
    renamed: Tensors = found
    return renamed
