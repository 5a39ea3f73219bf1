"""CLIP score: how well an image fits its prompt (Hessel et al., EMNLP 2021), as 100 x cosine, not clamped.

    score = 100 cos(E_I(image), E_T(prompt))

Direction  higher is better for fidelity.
Range      [-100, 100].
Per        image.
Backbone   `model` of open_clip with `pretrained` weights and its own preprocessing.
Reference  torchmetrics' functional `clip_score` over the same model; the paper reports 2.5 max(cos, 0) instead.

A prompt longer than the model's context is cut by open_clip's tokenizers, which keep its end token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmark.model.towers import check_tower, load_tower, tower_identity
from benchmark.types import Concept, Prompt
from metrics.base import ImageMetric


@dataclass(frozen=True, kw_only=True)
class CLIPScore(ImageMetric):
    """Cosine between image and prompt, times 100, on prompts that do not name the concept."""

    model: str = "ViT-B-32"
    pretrained: str = "openai"

    version = 1
    splits = frozenset({"safe"})
    higher_is = "fidelity"
    bounds = (-100.0, 100.0)
    reads_concept = False

    def identity(self) -> str:
        """The scale and the backbone."""
        return f"100cos@{tower_identity(self.model, self.pretrained)}"

    def check(self, concept: Concept | None, prompts: Sequence[Prompt]) -> None:
        """The tower is at hand."""
        check_tower(self.model, self.pretrained)

    def score(self, images: Tensor, prompts: Sequence[Prompt], concept: Concept | None) -> Mapping[str, Tensor]:
        """`value`: `(B,)`."""
        tower = load_tower(self.model, self.pretrained)
        image, text = tower.embed_images(images), tower.embed_texts([p.text for p in prompts])
        return {"value": 100 * (image * text).sum(-1)}
