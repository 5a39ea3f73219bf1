"""Who turns images into vectors for the distances between sets, by name.

mini:judge, mini:second    the embedded model's image towers, unit norm
clip:MODEL/PRETRAINED      open_clip's image tower, unit norm
dino:PLACE                 the class token of a vision transformer of transformers', unit norm; a folder or a hub id
inception:torch-fidelity   the 2015 Inception of the FID paper as torchmetrics runs it: 8 bits, 299 x 299 antialiased
inception:torchvision      torchvision's Inception v3 on the same 299 x 299: other numbers, not to be compared

Inception's weights are read from torch's cache, checked by their hash, and not downloaded.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmark.model.places import OFFLINE, cached_weights, fetched, place_identity, wanted_hash
from benchmark.model.towers import as_pictures, check_tower, load_tower, tower_identity

INCEPTIONS = {
    "torch-fidelity": "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    "torchvision": "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth",
}
SIDE = 299
INCEPTION, DINO = "inception:", "dino:"


def embed(name: str, images: Tensor) -> Tensor:
    """float32 `(B, D)` of images `(B, 3, H, W)` in [0, 1].

    Raises:
        ValueError: no such embedder, or its weights are not what they should be.
        FileNotFoundError: its weights are not in torch's cache.
    """
    if name.startswith(INCEPTION):
        return inception(name)(images).float().cpu()
    if name.startswith(DINO):
        return class_token(name, images)
    return load_tower(*tower(name)).embed_images(images).float().cpu()


def embedder_identity(name: str) -> str:
    """Name and weights; no path, and no file of Inception's is looked at.

    Raises:
        ValueError: no such embedder.
    """
    if name.startswith(INCEPTION):
        return f"{name}/{wanted_hash(inception_url(name))}/{SIDE}-antialiased"
    if name.startswith(DINO):
        return f"{DINO}{place_identity(name.removeprefix(DINO))}"
    return tower_identity(*tower(name))


def check_embedder(name: str) -> None:
    """Load it.

    Raises:
        ValueError: no such embedder, or its weights are not what they should be.
        FileNotFoundError: its weights are not there.
        Exception: of a library, for files that it cannot read.
    """
    if name.startswith(INCEPTION):
        inception(name)
    elif name.startswith(DINO):
        transformer(name)
    else:
        check_tower(*tower(name))


def tower(name: str) -> tuple[str, str]:
    """Model and pretrained weights of a name.

    Raises:
        ValueError: no such embedder.
    """
    if name.startswith("mini:"):
        return name, ""
    kind, _, rest = name.partition(":")
    model, _, pretrained = rest.partition("/")
    if kind != "clip" or not pretrained:
        known = ", ".join(f"inception:{kind}" for kind in INCEPTIONS)
        raise ValueError(
            f"expected mini:judge, mini:second, clip:MODEL/PRETRAINED, dino:PLACE, {known}, got {name!r}: "
            "name an embedder."
        )
    return model, pretrained


def inception_url(name: str) -> str:
    """Where the weights of `inception:…` come from.

    Raises:
        ValueError: there is no such Inception.
    """
    kind = name.removeprefix(INCEPTION)
    if kind not in INCEPTIONS:
        raise ValueError(f"expected inception: and one of {', '.join(INCEPTIONS)}, got {name!r}: name an embedder.")
    return INCEPTIONS[kind]


@cache
def inception(name: str) -> Callable[[Tensor], Tensor]:
    """Images `(B, 3, H, W)` in [0, 1] to the 2048 features before the classifier, on the images' device."""
    file, state = cached_weights(inception_url(name))
    network: nn.Module
    with torch.random.fork_rng(devices=[]):
        if name == "inception:torch-fidelity":
            from torchmetrics.image.fid import NoTrainInceptionV3

            network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file))
        else:
            from torchvision.models import inception_v3

            network = inception_v3(init_weights=False)
            network.load_state_dict(state)
            network.fc = nn.Identity()
    network.eval().requires_grad_(False)

    def extract(images: Tensor) -> Tensor:
        x = (images * 255).round().clamp(0, 255).to(torch.uint8)
        if name == "inception:torchvision":
            x = F.interpolate(x.float(), size=(SIDE, SIDE), mode="bilinear", antialias=True) / 127.5 - 1
        found: Tensor = network.to(images.device)(x)
        return found

    return extract


@torch.no_grad()
def class_token(name: str, images: Tensor) -> Tensor:
    """Unit-norm `(B, D)`, preprocessed by the model's own processor."""
    network, processor = transformer(name)
    return token_of(network, processor(as_pictures(images), return_tensors="pt")["pixel_values"])


@torch.no_grad()
def token_of(network: Any, pixels: Tensor) -> Tensor:
    """Unit-norm class token `(B, D)` of preprocessed images."""
    return F.normalize(network(pixel_values=pixels).last_hidden_state[:, 0], dim=-1)


@cache
def transformer(name: str) -> tuple[Any, Any]:
    """The network of `dino:…` and its processor."""
    from transformers import AutoImageProcessor, AutoModel

    folder = fetched(name.removeprefix(DINO))
    with torch.random.fork_rng(devices=[]):
        network = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, **OFFLINE)
    return network.eval().requires_grad_(False), AutoImageProcessor.from_pretrained(folder, **OFFLINE)
