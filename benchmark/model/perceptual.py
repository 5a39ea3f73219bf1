"""Perceptual networks: images to features that gradients pass through. A leaf.

vgg19    VGG-19 up to relu3_4, images in [0, 1] as they are (no ImageNet normalisation, as in Patronus' release)
mini     the image tower of the embedded model's CLIP: hidden states after its middle layer
pixels   the images themselves
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmark.mini import WEIGHTS

NAMES = ("vgg19", "mini", "pixels")
RELU3_4 = 18  # layers of torchvision's VGG-19 up to it, itself included


@cache
def features(name: str) -> Callable[[Tensor], Tensor]:
    """The network called `name`: images `(B, 3, H, W)` in [0, 1] to `(B, …)`, on the images' device and in their type.

    Raises:
        ValueError: no network has that name.
        FileNotFoundError: the weights of VGG-19 are not in torch's cache; nothing is downloaded here.
    """
    if name == "pixels":
        return lambda images: images
    if name == "mini":
        return image_tower()
    if name == "vgg19":
        return vgg19()
    raise ValueError(f"expected a perceptual network of {', '.join(NAMES)}, got {name!r}: choose one of them.")


def image_tower() -> Callable[[Tensor], Tensor]:
    """Hidden states `(B, L, D)`; other sizes than the tower's are resized, bilinearly and antialiased."""
    from transformers import CLIPVisionModel

    with torch.random.fork_rng(devices=[]):
        tower = CLIPVisionModel.from_pretrained(WEIGHTS / "image_tower", dtype=torch.float32, local_files_only=True)
    frozen(tower)
    side = int(tower.config.image_size)
    middle = int(tower.config.num_hidden_layers) // 2 + 1  # 0 is the embedding; of three layers, after the second

    def extract(images: Tensor) -> Tensor:
        if images.shape[-2:] != (side, side):
            images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
        x_pm1 = images * 2 - 1
        found: Tensor = tower.to(x_pm1)(pixel_values=x_pm1, output_hidden_states=True).hidden_states[middle]
        return found

    return extract


def vgg19() -> Callable[[Tensor], Tensor]:
    """relu3_4 `(B, 256, H/4, W/4)`."""
    from torchvision.models import VGG19_Weights
    from torchvision.models import vgg19 as build

    weights = VGG19_Weights.IMAGENET1K_V1
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if not file.is_file():
        raise FileNotFoundError(f"expected the weights of VGG-19, got no file {file}: download {weights.url} to there.")
    with torch.random.fork_rng(devices=[]):
        layers = frozen(build(weights=weights).features[:RELU3_4])

    def extract(images: Tensor) -> Tensor:
        found: Tensor = layers.to(images)(images)
        return found

    return extract


def frozen(network: nn.Module) -> nn.Module:
    """The network, in evaluation mode and without gradients of its weights."""
    return network.eval().requires_grad_(False)
