"""Who turns images into vectors for the distances between sets, by name.

mini:judge, mini:second    the embedded model's image towers, unit norm
clip:MODEL/PRETRAINED      open_clip's image tower, unit norm
inception:torch-fidelity   the 2015 Inception of the FID paper as torchmetrics runs it: 8 bits, 299 x 299 antialiased
inception:torchvision      torchvision's Inception v3 on the same 299 x 299: other numbers, not to be compared

Inception's weights are read from torch's cache, checked by their hash. Nothing is downloaded.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metrics.towers import load_tower, tower_identity

INCEPTIONS = {
    "torch-fidelity": "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    "torchvision": "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth",
}
SIDE = 299


def embed(name: str, images: Tensor) -> Tensor:
    """float32 `(B, D)` of images `(B, 3, H, W)` in [0, 1].

    Raises:
        ValueError: no such embedder, or its weights are not what they should be.
        FileNotFoundError: its weights are not in torch's cache.
    """
    if name.startswith("inception:"):
        return inception(name)(images).float().cpu()
    return load_tower(*tower(name)).embed_images(images).float().cpu()


def embedder_identity(name: str) -> str:
    """Name and weights; no path and no file of Inception's is looked at.

    Raises:
        ValueError: no such embedder.
    """
    if name.startswith("inception:"):
        return f"{name}/{wanted_hash(inception_url(name))}/{SIDE}-antialiased"
    return tower_identity(*tower(name))


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
            f"expected mini:judge, mini:second, clip:MODEL/PRETRAINED, {known}, got {name!r}: name an embedder."
        )
    return model, pretrained


def inception_url(name: str) -> str:
    """Where the weights of `inception:…` come from.

    Raises:
        ValueError: there is no such Inception.
    """
    kind = name.removeprefix("inception:")
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


def wanted_hash(url: str) -> str:
    """The first digits of the sha256 that torch's hub writes at the end of a file name."""
    return url.rpartition("-")[2].removesuffix(".pth")


def cached_weights(url: str) -> tuple[Path, dict[str, Tensor]]:
    """The file of `url` in torch's cache, and what it holds. Libraries may read it, too: it holds nothing but tensors.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: its hash is not the one in its name.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.is_file():
        raise FileNotFoundError(f"expected the weights {file.name}, got no file {file}: download {url} to there.")
    found = digest(file)
    if not found.startswith(wanted_hash(url)):
        raise ValueError(
            f"expected sha256 {wanted_hash(url)}… of {file}, got {found[:8]}…: delete it and download {url} again."
        )
    return file, torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)


@cache
def digest(file: Path) -> str:
    """The sha256 of a file, in hex."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
