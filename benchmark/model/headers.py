"""What a safetensors file says of itself, before any of it is believed: its header, and whether that can be true."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from benchmark.errors import DataError, clipped
from benchmark.given.files import opened

HEADER, FILE = 100 << 20, 1 << 40  # bytes; the first is safetensors' own limit
SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
SIZES |= {"F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Entry:
    """One tensor: its type and shape, and where its bytes are behind the header."""

    dtype: str
    shape: list[int]
    start: int
    end: int


def tensors(file: Path) -> dict[str, list[int]]:
    """The shapes in a safetensors file by name, from its header.

    Raises:
        DataError: the file is cut off, contradicts itself, or is no safetensors.
    """
    try:
        with opened(file, FILE) as handle:
            size = handle.seek(0, 2)
            handle.seek(0)
            length = int.from_bytes(handle.read(8), "little")
            if not 2 <= length <= min(HEADER, size - 8):
                raise ValueError(f"a header of {length:,} bytes")
            header = json.loads(handle.read(length))
        found = {name: entry(name, given) for name, given in header.items() if name != "__metadata__"}
        if not found:
            raise ValueError("no tensor")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = clipped(" ".join(str(error).split())) or type(error).__name__
        raise DataError(f"expected whole safetensors in {file}, got something else ({why}): copy it again.") from error
    end = 8 + length + max(each.end for each in found.values())
    if end != size:
        raise DataError(f"expected {end:,} bytes in {file}, got {size:,}: the file is cut off, copy it again.")
    check_order(file, found)
    return {name: each.shape for name, each in found.items()}


def entry(name: str, given: dict[str, Any]) -> Entry:
    """One tensor of a header.

    Raises:
        ValueError: its numbers are none, or do not agree.
    """
    shape, (start, end), dtype = given["shape"], given["data_offsets"], given["dtype"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise ValueError(f"a shape or an offset of {clipped(name)!r} that is no whole number from 0")
    if dtype not in SIZES:
        raise ValueError(f"the type {clipped(str(dtype))} of {clipped(name)!r}")
    if end - start != prod(shape) * SIZES[dtype]:
        raise ValueError(f"{end - start:,} bytes for {clipped(name)!r} of shape {clipped(str(shape))}")
    return Entry(dtype, list(shape), start, end)


def check_order(file: Path, found: dict[str, Entry]) -> None:
    """Refuse tensors that share bytes, and bytes between them.

    Raises:
        DataError: the first such place.
    """
    at = 0
    for name, each in sorted(found.items(), key=lambda item: (item[1].start, item[1].end)):
        if each.start != at:
            raise DataError(
                f"expected one tensor after the other in {file}, got {clipped(name)!r} at {each.start:,} and not at "
                f"{at:,}: copy it again."
            )
        at = each.end
