"""Quantisation: weights rounded to a few bits, each output channel on its own grid. A control without data or base.

    W_i <- s_i round(W_i / s_i),   s_i = max_j | W_ij | / (2^(bits - 1) - 1)

What a deployed model goes through. A defense that lives in differences smaller than a step of the grid would be lost.

Paper     Nagel et al., https://arxiv.org/abs/2106.08295, for uniform symmetric quantisation per channel
Code      torch.fake_quantize_per_channel_affine, which it equals
Differs   the weights alone, simulated in float32: rounded to nearest without calibration, activations stay; every
          Linear and Conv2d of the denoiser, no bias.
Symbols   W_i weights of one output channel; s_i step of its grid.
Access    weights
Budget    one rounding, whatever the grid; nothing is trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from attacks.base import WeightEdit
from benchmark.diffusion import Model
from benchmark.types import Delta


@dataclass(frozen=True, kw_only=True)
class Quantize(WeightEdit):
    """The weights of the denoiser, rounded."""

    bits: Literal[8, 6, 5, 4, 3] = 8

    version = 1
    unit = "rounding"
    presets = {"int8": {"bits": 8}, "int4": {"bits": 4}}

    def budgets(self, asked: Sequence[int]) -> tuple[int, ...]:
        """One rounding, whatever is asked."""
        return (1,)

    def edited(self, model: Model, other: Model, budget: int) -> Delta:
        """What rounding adds."""
        layers = {n: m for n, m in model.denoiser.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        found = {f"{model.part}.{name}.weight": m.weight.detach().float().cpu() for name, m in layers.items()}
        return Delta(dense={name: rounded(W, self.bits) - W for name, W in found.items()})


def rounded(W: Tensor, bits: int) -> Tensor:
    """Weights `(out, ...)` on the grids of their channels; a channel of zeros stays."""
    s = W.abs().flatten(1).amax(1) / (2 ** (bits - 1) - 1)
    s = s.where(s > 0, s.new_ones(())).view(-1, *[1] * (W.ndim - 1))
    return s * (W / s).round()
