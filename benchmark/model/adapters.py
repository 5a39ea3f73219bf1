"""LoRA for attacks, and for defenses that simulate them or are trained so: put on by peft, taken off as a delta.

W x -> W x + (alpha / r) B A x,   A ~ N(0, 1/r^2), B = 0
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from benchmark.diffusion import normal
from benchmark.types import Delta

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from peft.tuners.lora import LoraLayer


def add_adapters(
    unet: "UNet2DConditionModel", *, rank: int, alpha: int, targets: Sequence[str], rng: Generator
) -> dict[str, "LoraLayer"]:
    """Freeze the U-Net, put an adapter on each layer whose name ends in one of `targets`, and return them by name.

    Raises:
        ValueError: `targets` name no layer of this model.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # peft initialises from the global generator
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets)))
    layers = {name: module for name, module in unet.named_modules() if isinstance(module, LoraLayer)}
    for layer in layers.values():
        a = layer.lora_A["default"].weight
        a.data = normal(a.shape, rng, like=a) / rank
    return layers


def low_rank(layers: Mapping[str, "LoraLayer"]) -> Delta:
    """The adapters as they are now, the scale alpha / r folded into B."""
    return Delta(low_rank={f"unet.{name}": factors(layer) for name, layer in layers.items()})


@torch.no_grad()
def factors(layer: "LoraLayer") -> tuple[Tensor, Tensor]:
    """A `(r, in)` and (alpha / r) B `(out, r)`, on the CPU."""
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return a.detach().float().cpu().clone(), (b.detach() * layer.scaling["default"]).float().cpu().clone()
