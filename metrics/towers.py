"""open_clip models by name, loaded once: the image and text embeddings that several metrics use.

`mini:judge` and `mini:second` are the embedded model's own; other names are open_clip's, with `pretrained` weights.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image

from benchmark.mini import WEIGHTS


@dataclass(frozen=True)
class Tower:
    """A two-tower model with its preprocessing and tokenizer."""

    model: Any
    preprocess: Any
    tokenizer: Any

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Unit-norm `(B, D)` of images `(B, 3, H, W)` in [0, 1], preprocessed by the library as 8-bit pictures."""
        pictures = [self.preprocess(to_pil_image((x * 255).round().to("cpu", torch.uint8))) for x in images]
        return F.normalize(self.model.encode_image(torch.stack(pictures)), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm `(K, D)` of texts; each different text is encoded once."""
        different = list(dict.fromkeys(texts))
        encoded = F.normalize(self.model.encode_text(self.tokenizer(different)), dim=-1)
        return encoded[[different.index(text) for text in texts]]

    @property
    def scale(self) -> float:
        """The learned factor of the cosines."""
        return float(self.model.logit_scale.exp())


@cache
def load_tower(name: str, pretrained: str) -> Tower:
    """Load a model by name."""
    place = f"local-dir:{WEIGHTS / name.removeprefix('mini:')}" if name.startswith("mini:") else name
    tag = None if name.startswith("mini:") else pretrained or None
    with torch.random.fork_rng(devices=[]):  # a network is initialised before its weights are loaded
        model, _, preprocess = open_clip.create_model_and_transforms(place, pretrained=tag, precision="fp32")
    return Tower(model.eval().requires_grad_(False), preprocess, open_clip.get_tokenizer(place))


@cache
def tower_identity(name: str, pretrained: str) -> str:
    """Name and weights: a hash of the file for our own, open_clip's tag for others."""
    if not name.startswith("mini:"):
        return f"{name}/{pretrained}"
    weights = WEIGHTS / name.removeprefix("mini:") / "open_clip_model.safetensors"
    with weights.open("rb") as handle:
        return f"{name}/{hashlib.file_digest(handle, 'sha256').hexdigest()[:12]}"
