"""Whether a pipeline got all its weights from its folder: what is missing is left empty, or filled with noise."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmark.errors import DataError
from benchmark.model.weights import tensors, weight_files

PREFIX = "text_model."  # some versions of transformers write it, and all read it


def check_loaded(folder: Path, pipe: Any, parts: Iterable[str]) -> None:
    """Refuse a pipeline with a weight that its folder lacks, or that is no number.

    Raises:
        DataError: the first of them.
    """
    for part in parts:
        module = getattr(pipe, part)
        if lacking := next((name for name, weight in module.named_parameters() if weight.is_meta), None):
            raise DataError(f"expected {lacking} among the weights of {folder / part}, got none: copy them again.")
        if part.startswith("text_encoder"):
            check_texts(folder / part, module)
        for name, weight in module.named_parameters():
            if not torch.isfinite(weight).all():
                raise DataError(f"expected finite weights in {folder / part}, got NaN or infinity in {name}.")


def check_texts(part: Path, module: torch.nn.Module) -> None:
    """Refuse a text encoder of which a weight is missing: transformers would fill it with noise.

    Raises:
        DataError: the first such weight.
    """
    found = {name.removeprefix(PREFIX) for file in weight_files(part) for name in tensors(file)}
    for name, _ in module.named_parameters():
        if name.removeprefix(PREFIX) not in found:
            raise DataError(f"expected {name} among the weights of {part}, got none: copy them again.")
