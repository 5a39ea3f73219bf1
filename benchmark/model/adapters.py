"""LoRA for attacks, and for defenses that simulate them or are trained so: put on by peft, taken off as a delta.

W x -> W x + (alpha / r) B A x,   A ~ N(0, 1/r^2), B = 0
W   -> m V / || V ||,  V = W + (alpha / r) B A,  m = || W ||      DoRA: m is learned, too; norms over each output
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from benchmark.deltas import whole
from benchmark.diffusion import Model, normal
from benchmark.types import Delta

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer


def add_adapters(
    model: Model,
    *,
    rank: int,
    alpha: int,
    targets: Sequence[str],
    rng: Generator,
    part: str = "",
    dora: bool = False,
) -> dict[str, "LoraLayer"]:
    """Freeze a part, put an adapter on each layer that `targets` mean in its family, and return them by name.

    Without `part` it is the denoiser.

    Raises:
        ValueError: `targets` name no layer of this model.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    adapted: Any = model.parts[part or model.part]
    adapted.requires_grad_(False)
    names = list(targets) if part not in ("", model.part) else model.targets(targets)
    with torch.random.fork_rng(devices=[]):  # peft initialises from the global generator
        adapted.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, use_dora=dora))
    layers = {name: module for name, module in adapted.named_modules() if isinstance(module, LoraLayer)}
    for layer in layers.values():
        for learned in (layer.lora_A, layer.lora_B, *([layer.lora_magnitude_vector] if dora else [])):
            learned.to(whole(learned["default"].weight.dtype))  # peft gives them the type of the frozen weights
        a = layer.lora_A["default"].weight
        a.data = normal(a.shape, rng, like=a) / rank
    return layers


def low_rank(layers: Mapping[str, "LoraLayer"], part: str) -> Delta:
    """The adapters of a part as they are now, the scale alpha / r folded into B."""
    return Delta(low_rank={f"{part}.{name}": factors(layer) for name, layer in layers.items()})


@torch.no_grad()
def decomposed(layers: Mapping[str, "LoraLayer"], part: str) -> Delta:
    """What the weights of a part have become under DoRA, less what they were: of no low rank."""
    found = {}
    for name, layer in layers.items():
        W: Tensor = layer.get_base_layer().weight.detach().float()
        A, B = (half["default"].weight.float().flatten(1) for half in (layer.lora_A, layer.lora_B))
        V = W.flatten(1) + layer.scaling["default"] * B @ A
        m = layer.lora_magnitude_vector["default"].weight.float().flatten()
        found[f"{part}.{name}.weight"] = ((m / V.norm(dim=1))[:, None] * V).view_as(W).sub(W).cpu()
    return Delta(dense=found)


@torch.no_grad()
def factors(layer: "LoraLayer") -> tuple[Tensor, Tensor]:
    """A `(r, in)` and (alpha / r) B `(out, r)`, on the CPU."""
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return a.detach().float().cpu().clone(), (b.detach() * layer.scaling["default"]).float().cpu().clone()
