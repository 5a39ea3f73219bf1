"""What an import cannot carry must be as in the base: another family of pipeline, or a part that no delta changes."""

from pathlib import Path

import torch
from torch import nn

from benchmark.errors import DataError, clipped
from benchmark.imports.read import Tensors
from benchmark.model.weights import family_of


def check_pipeline(folder: Path, base: Path) -> None:
    """Refuse a pipeline of another family than the base's.

    Raises:
        DataError: it is.
    """
    got, wanted = family_of(folder), family_of(base)
    if got.name != wanted.name:
        raise DataError(
            f"expected a pipeline like the base's, {wanted.pipelines[0]}, got {got.pipelines[0]} in {folder}."
        )


def check_unchanged(part: str, tensors: Tensors, module: nn.Module) -> None:
    """Refuse a change of a part that methods do not change, such as T5.

    Raises:
        DataError: there is one.
    """
    known = module.state_dict()
    for name, value in tensors.items():
        own = known.get(name)
        if own is None or own.shape != value.shape or not torch.equal(own.to(value.dtype), value):
            raise DataError(f"expected the base's {part}, which titer does not change, got another {clipped(name)}.")
