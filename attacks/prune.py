"""Pruning: the smallest weights of each layer become 0 (Han et al., NeurIPS 2015). A control without data or base.

    W_ij <- 0   for the share p of a layer's weights with the smallest | W_ij |

Compression that nobody means as an attack. What a defense hides in small changes of small weights would come back.

Paper     https://arxiv.org/abs/1506.02626; as a revival of erased concepts: https://arxiv.org/abs/2603.06640
Code      torch.nn.utils.prune, `l1_unstructured`, which it equals; no code of the second paper was read
Differs   one shot, nothing is retrained; every Linear and Conv2d of the denoiser, no bias.
Symbols   W weights of one layer; p share.
Access    weights
Budget    percent of each layer's weights; nothing is trained. A step is one percent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.base import WeightEdit
from benchmark.diffusion import Model
from benchmark.types import Delta


@dataclass(frozen=True, kw_only=True)
class Prune(WeightEdit):
    """The smallest weights of each layer of the denoiser, set to 0."""

    percent: tuple[int, ...] = (20, 40)  # ours

    version = 1
    unit = "% of each layer's weights set to 0"

    def budgets(self, asked: Sequence[int]) -> tuple[int, ...]:
        """The percentages, whatever the grid of optimizer steps."""
        return tuple(sorted(set(self.percent)))

    def edited(self, model: Model, other: Model, budget: int) -> Delta:
        """Minus the weights that go."""
        layers = {n: m for n, m in model.denoiser.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        return Delta(
            dense={f"{model.part}.{name}.weight": -smallest(m.weight, budget / 100) for name, m in layers.items()}
        )


def smallest(W: Tensor, p: float) -> Tensor:
    """The share p of the weights that are nearest to 0, and 0 elsewhere, on the CPU."""
    W = W.detach().float().cpu()
    kept = torch.zeros_like(W).flatten()
    chosen = torch.topk(W.abs().flatten(), round(p * W.numel()), largest=False).indices
    kept[chosen] = W.flatten()[chosen]
    return kept.view_as(W)
