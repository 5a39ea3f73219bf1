"""One pickle -> safetensors: run as a process of its own, `python -m benchmark.imports.unpickle FILE FOLDER`.

FOLDER gets `tensors.safetensors` and `told.json`: `others`, what is beside the tensors; or `error`, why it was refused.
Nothing but `torch.load(weights_only=True)` touches the file, which refuses whatever could run code.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

TENSORS, TOLD = "tensors.safetensors", "told.json"
DEEP, MANY = 20, 1_000_000


def main(file: str, folder: str) -> None:
    """Convert one file."""
    told: dict[str, Any]
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
        found = dict(leaves(loaded))
        if len(found) > MANY:
            raise ValueError(f"{len(found):,} entries")
        tensors = {name: value.detach() for name, value in found.items() if isinstance(value, Tensor)}
        # each with memory of its own: pickles share it between tied weights, which safetensors refuses
        save_file({name: value.clone().contiguous() for name, value in tensors.items()}, Path(folder, TENSORS))
        told = {"others": {name: type(value).__name__ for name, value in found.items() if name not in tensors}}
    except Exception as error:  # whatever a spoilt or a hostile file makes torch raise
        told = {"error": f"{type(error).__name__}: {error}"}
    Path(folder, TOLD).write_text(json.dumps(told))


def leaves(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Everything in nested mappings and lists, by its names joined with dots."""
    if depth > DEEP:
        raise ValueError(f"mappings that are nested more than {DEEP} deep")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}" if name else str(key), depth + 1)
    elif isinstance(value, list | tuple):
        for key, inner in enumerate(value):
            yield from leaves(inner, f"{name}.{key}" if name else str(key), depth + 1)
    else:
        yield name, value


if __name__ == "__main__":
    main(*sys.argv[1:])
