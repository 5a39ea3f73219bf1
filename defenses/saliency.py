"""Which weights matter: the share of all elements with the largest numbers, found without sorting them.

Non-negative float32 numbers are ordered as their bits are, read as integers: the threshold is searched bit by bit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def largest(scores: Sequence[Tensor], share: float) -> list[Tensor]:
    """Masks that are true at `share` of all elements together, rounded: those with the largest scores.

    Args:
        scores: float32 tensors of any shapes, none below 0; of equal ones the first are taken.
        share: from 0 to 1.

    Raises:
        ValueError: a score is negative or not finite.
    """
    if not all(bool(torch.isfinite(one).all() and (one >= 0).all()) for one in scores):
        raise ValueError("expected finite scores of 0 or more, got others: lower mask_guidance.")
    wanted = round(share * sum(one.numel() for one in scores))
    if wanted == 0:
        return [torch.zeros_like(one, dtype=torch.bool) for one in scores]
    bits = [one.float().contiguous().view(torch.int32) for one in scores]
    threshold = 0
    for bit in reversed(range(31)):
        tried = threshold | 1 << bit
        if sum(int((one >= tried).sum()) for one in bits) >= wanted:
            threshold = tried
    masks = [one > threshold for one in bits]
    left = wanted - sum(int(mask.sum()) for mask in masks)
    for mask, one in zip(masks, bits, strict=True):
        ties = one == threshold
        chosen = ties & (ties.flatten().cumsum(0).reshape(ties.shape) <= left)
        mask |= chosen
        left -= int(chosen.sum())
    return masks
