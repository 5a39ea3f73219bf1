"""LPIPS: how far an image is from the undefended base's of the same prompt and seed (Zhang et al., CVPR 2018).

    d(x, y) = sum_l mean_{h,w} sum_c w_lc (f_lchw(x) - f_lchw(y))^2,   |f_l.hw| = 1

    f_l   activations of a network's layer l, unit norm over its channels
    w_l   the heads that the paper fitted to people's answers; torchmetrics brings them

`mini` is not LPIPS proper: one layer of the embedded model's image tower in place of the network, its tokens in place
of h and w, and w = 1, because no heads were fitted to it. Its identity says so.

Direction  lower is better for fidelity.
Range      [0, inf); mini: [0, 4].
Per        pair.
Backbone   `backbone`: alex, vgg or squeeze, torchvision's weights from torch's cache; mini, the embedded image tower.
Reference  torchmetrics' functional LPIPS on the same weights; the sum above in float64.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmark.mini import WEIGHTS
from benchmark.model.perceptual import features
from benchmark.model.places import cached_weights, digest, wanted_hash
from benchmark.types import Concept, Prompt
from metrics.base import PairMetric

Distance = Callable[[Tensor, Tensor], Tensor]
Network = Literal["alex", "vgg", "squeeze"]
URLS: dict[Network, str] = {
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "squeeze": "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
}


@dataclass(frozen=True, kw_only=True)
class LPIPS(PairMetric):
    """Perceptual distance to the base's image."""

    backbone: Literal["alex", "vgg", "squeeze", "mini"] = "alex"  # the paper's v0.1 default
    side: int = 256  # larger images are shrunk to it, by area; ours, since the heads were fitted to small patches

    version = 1
    splits = frozenset({"safe"})
    higher_is = "attacker"  # a larger distance is damage that the defense did
    bounds = (0.0, math.inf)

    def identity(self) -> str:
        """The heads, the network and the size."""
        if self.backbone == "mini":
            return f"unit-squares,no-heads@mini:image_tower/{digest(WEIGHTS / 'image_tower/model.safetensors')[:12]}"
        return f"lpips-0.1,side<={self.side}@torchvision:{self.backbone}/{wanted_hash(URLS[self.backbone])}"

    def check(self, concept: Concept | None, prompts: Sequence[Prompt]) -> None:
        """The network's weights are in torch's cache."""
        if self.backbone != "mini":
            lpips(self.backbone)

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[Prompt], reference: Tensor) -> Mapping[str, Tensor]:
        """`value`: `(B,)`."""
        if self.backbone == "mini":
            return {"value": unit_squares(features("mini")(images), features("mini")(reference))}
        return {"value": lpips(self.backbone)(self.shrunk(images), self.shrunk(reference))}

    def shrunk(self, images: Tensor) -> Tensor:
        """The images, at most `side` pixels wide and high."""
        small = (min(images.shape[-2], self.side), min(images.shape[-1], self.side))
        return images if small == images.shape[-2:] else F.interpolate(images, small, mode="area")


def unit_squares(f: Tensor, g: Tensor) -> Tensor:
    """Mean over tokens of |f/|f| - g/|g||^2 for `(B, L, D)`: `(B,)`."""
    return (F.normalize(f, dim=-1) - F.normalize(g, dim=-1)).square().sum(-1).mean(-1)


@cache
def lpips(name: Network) -> Distance:
    """torchmetrics' network with its heads; nothing is downloaded.

    Raises:
        FileNotFoundError: the weights are not in torch's cache.
    """
    cached_weights(URLS[name])
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    with torch.random.fork_rng(devices=[]):
        network = LearnedPerceptualImagePatchSimilarity(net_type=name).net

    def distance(f: Tensor, g: Tensor) -> Tensor:
        found: Tensor = network.to(f.device)(f, g, normalize=True)
        return found.flatten()

    return distance
