"""What an adapter is multiplied by: alpha / r, where its own settings say alpha; else 1, as diffusers takes it.

PEFT writes adapter_config.json beside the weights, diffusers the same words into the header of the safetensors. Without
either, PEFT's own file does not say its scale, and is refused.
"""

import json
import re
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

from benchmark.errors import DataError
from benchmark.imports.lora import Scale
from benchmark.imports.sources import ADAPTER
from benchmark.model.layout import read_json

HEADER = "lora_adapter_metadata"  # diffusers.loaders.lora_base.LORA_ADAPTER_METADATA_KEY


def scale_of(folder: Path | None, header: Mapping[str, str], is_peft: bool) -> Scale:
    """The scale of an adapter by its name, `<part>.<module>`, and rank.

    Args:
        folder: where adapter_config.json is.
        header: of the safetensors.
        is_peft: whether the file is PEFT's own, whose settings are needed.

    Raises:
        DataError: the settings are missing, or are not those of a plain LoRA.
    """
    if folder is not None:
        return of_settings(read_json(folder / ADAPTER), str(folder / ADAPTER))
    if HEADER in header:
        return of_header(json.loads(header[HEADER]))
    if is_peft:
        raise DataError(f"expected {ADAPTER} beside PEFT's adapter, which says its alpha, got none: copy it there.")
    return lambda name, rank: 1.0


def of_header(told: Mapping[str, Any]) -> Scale:
    """Settings of several parts in one mapping, each key with its part before it."""
    parts: dict[str, dict[str, Any]] = {}
    for name, value in told.items():
        part, _, key = name.partition(".")
        parts.setdefault(part, {})[key] = value
    scales = {part: of_settings(settings, f"the header's {part}") for part, settings in parts.items()}

    def scale(name: str, rank: int) -> float:
        of_part = scales.get(name.partition(".")[0])
        return of_part(name, rank) if of_part else 1.0

    return scale


def of_settings(settings: Mapping[str, Any], place: str) -> Scale:
    """The scale that a LoraConfig of PEFT means."""
    if settings.get("peft_type", "LORA") != "LORA" or settings.get("use_dora"):
        got = "DoRA" if settings.get("use_dora") else settings["peft_type"]
        raise DataError(f"expected a plain LoRA in {place}, got {got}: merge it into the model, and import that.")
    patterns: Mapping[str, float] = settings.get("alpha_pattern") or {}
    whole = settings.get("lora_alpha")
    if not isinstance(whole, int | float):
        raise DataError(f"expected the number lora_alpha in {place}, got {whole!r}: save the adapter again.")

    def scale(name: str, rank: int) -> float:
        module = name.partition(".")[2]
        own = [alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module)]
        return float(own[0] if own else whole) / (sqrt(rank) if settings.get("use_rslora") else rank)

    return scale
