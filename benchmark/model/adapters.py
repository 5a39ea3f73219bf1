"""LoRA for attacks, and for defenses that simulate them or are trained so: put on by peft, taken off as a delta.

W x -> W x + (alpha / r) B A x,   A ~ N(0, 1/r^2), B = 0
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from benchmark.diffusion import Model, normal, whole
from benchmark.types import Delta

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer


def add_adapters(
    model: Model, *, rank: int, alpha: int, targets: Sequence[str], rng: Generator
) -> dict[str, "LoraLayer"]:
    """Freeze the denoiser, put an adapter on each layer that `targets` mean in its family, and return them by name.

    Raises:
        ValueError: `targets` name no layer of this model.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    denoiser: Any = model.denoiser
    denoiser.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # peft initialises from the global generator
        denoiser.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=model.targets(targets)))
    layers = {name: module for name, module in denoiser.named_modules() if isinstance(module, LoraLayer)}
    for layer in layers.values():
        for half in (layer.lora_A, layer.lora_B):  # peft gives them the type of the frozen weights
            half.to(whole(half["default"].weight.dtype))
        a = layer.lora_A["default"].weight
        a.data = normal(a.shape, rng, like=a) / rank
    return layers


def low_rank(layers: Mapping[str, "LoraLayer"], part: str) -> Delta:
    """The adapters of a part as they are now, the scale alpha / r folded into B."""
    return Delta(low_rank={f"{part}.{name}": factors(layer) for name, layer in layers.items()})


@torch.no_grad()
def factors(layer: "LoraLayer") -> tuple[Tensor, Tensor]:
    """A `(r, in)` and (alpha / r) B `(out, r)`, on the CPU."""
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return a.detach().float().cpu().clone(), (b.detach() * layer.scaling["default"]).float().cpu().clone()
