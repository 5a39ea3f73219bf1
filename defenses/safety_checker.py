"""Safety checker: an image that a CLIP sees the concept in is shown black.

    s_m = round(cos(x, k_m) - tk_m + a, 3)       m = 1 ... M in order; a = 0, and 0.01 from the first s_m > 0 on
    r_j = round(cos(x, c_j) - th_j + a, 3)       black if any r_j > 0

Paper     none of its own; read off its weights by Rando et al. 2022, https://arxiv.org/abs/2210.04610
Code      huggingface/diffusers 0.42, `StableDiffusionSafetyChecker`
Differs   nothing for a published checker, which knows what it was made for and nothing else: nudity, whatever concept
          the card names. For any other concept c_j is what a CLIP's text tower makes of the card's description of it,
          there are no k_m, and all th_j are one field: as no paper has it. On the embedded model that CLIP may be its
          judge's: such a row meets the one who judges it, so read `presence_second` beside it.
Symbols   x embedding of the image; c_j, k_m of the concepts and of what wants special care; th_j, tk_m thresholds.
Protects  against prompts, while the guard is there: who draws on his own leaves it out. A black image counts as one
          without the concept; the metric `black` tells how many there were, on safe prompts those of false alarms.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmark.guard import Guard
from benchmark.model.places import fetched
from benchmark.model.towers import as_pictures, load_tower
from benchmark.types import Concept
from defenses.base import GuardDefense

Embed = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Checker(Guard):
    """Blackens what is seen in images. Without `texts`, `tower` is the place of a published checker."""

    tower: str
    pretrained: str
    texts: tuple[str, ...]
    threshold: float

    def finish(self, images: Tensor) -> Tensor:
        """Black in place of images `(B, 3, H, W)` that show a concept."""
        known = of_texts(self.tower, self.pretrained, self.texts, self.threshold) if self.texts else of(self.tower)
        is_seen = known.sees(images.detach()).to(images.device)
        return torch.where(is_seen[:, None, None, None], torch.zeros_like(images), images)


@dataclass(frozen=True, eq=False)
class Known:
    """Embeddings `(K, D)` with thresholds `(K,)`: c and th of concepts, k and tk of special care."""

    embed: Embed
    c: Tensor
    th: Tensor
    k: Tensor
    tk: Tensor

    def sees(self, images: Tensor) -> Tensor:
        """Which images `(B,)` show a concept."""
        return self.flags(F.normalize(self.embed(images).float().cpu(), dim=-1))

    def flags(self, x: Tensor) -> Tensor:
        """The same of unit-norm embeddings `(B, D)`; any r_j > 0."""
        special, r = (x @ F.normalize(v, dim=-1).T - t for v, t in ((self.k, self.tk), (self.c, self.th)))
        a = torch.zeros(len(x))
        for s in special.T:
            a = torch.where((s + a).round(decimals=3) > 0, 0.01, a)
        return ((r + a[:, None]).round(decimals=3) > 0).any(dim=1)


@cache
def of_texts(tower: str, pretrained: str, texts: tuple[str, ...], threshold: float) -> Known:
    """Texts as concepts, by a CLIP that open_clip reads."""
    clip = load_tower(tower, pretrained)
    c = clip.embed_texts(texts)
    return Known(clip.embed_images, c, torch.full((len(c),), threshold), c[:0], torch.zeros(0))


@cache
def of(place: str) -> Known:
    """A checker as diffusers saves it: a folder, or a hub id.

    Raises:
        FileNotFoundError: there is none.
    """
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    folder = fetched(place)
    with torch.random.fork_rng(devices=[]):
        net: Any = StableDiffusionSafetyChecker.from_pretrained(folder, local_files_only=True).eval()
    side = int(net.config.vision_config.image_size)
    processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})

    @torch.no_grad()
    def embed(images: Tensor) -> Tensor:
        pixels = processor(as_pictures(images), return_tensors="pt").pixel_values
        found: Tensor = net.visual_projection(net.vision_model(pixels)[1])
        return found

    names = ("concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights")
    return Known(embed, *(getattr(net, name).detach() for name in names))


@dataclass(frozen=True, kw_only=True)
class SafetyChecker(GuardDefense):
    """Show black where a CLIP sees the concept. The default is the one that Stable Diffusion 1 came with: nudity."""

    tower: str = "CompVis/stable-diffusion-safety-checker"  # or, with `described`, a name of open_clip's, or mini:judge
    pretrained: str = ""  # open_clip's weights of `tower`
    described: bool = False  # the card's concept by its description, instead of a published checker's own
    threshold: float = 0.25  # th, a cosine, of described concepts

    version = 1
    several = True
    guarding = Checker
    presets = {"sd": {}, "described": {"described": True, "tower": "ViT-L-14", "pretrained": "openai"}}
    fidelity = "official-matched"
    matched = (
        "which images the checker of diffusers 0.42.1 blackens, the same for random weights and thresholds, its "
        "special care and its rounding among them; with `described` there is nothing to compare with"
    )

    def guard(self, concept: Concept) -> Checker:
        """The checker of the concept, or of what it was made for."""
        texts = tuple(one.labels[one.name] for one in concept.each) if self.described else ()
        return Checker(tower=self.tower, pretrained=self.pretrained, texts=texts, threshold=self.threshold)
