"""open_clip models by name, loaded once: the image and text embeddings that several metrics use.

`mini:judge` and `mini:second` are the embedded model's own; `local-dir:FOLDER` is a folder as open_clip writes it;
other names are open_clip's, with `pretrained` weights, which open_clip fetches into its own cache, or a file of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmark.mini import WEIGHTS
from benchmark.model.places import ABSENT, digest

LOCAL, FILE = "local-dir:", "open_clip_model.safetensors"
HUB = "hf-hub:"
QUICK = "-quickgelu"


@dataclass(frozen=True)
class Tower:
    """A two-tower model with its preprocessing and tokenizer."""

    model: Any
    preprocess: Any
    tokenizer: Any

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Unit-norm `(B, D)` of images `(B, 3, H, W)` in [0, 1], preprocessed by the library as 8-bit pictures."""
        pictures = [self.preprocess(picture) for picture in as_pictures(images)]
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


def as_pictures(images: Tensor) -> list[Any]:
    """Images `(B, 3, H, W)` in [0, 1] as the 8-bit pictures that libraries preprocess."""
    from torchvision.transforms.v2.functional import to_pil_image

    return [to_pil_image((x * 255).round().to("cpu", torch.uint8)) for x in images]


@cache
def load_tower(name: str, pretrained: str) -> Tower:
    """Load a model by name."""
    import open_clip

    folder = folder_of(name)
    place = f"{LOCAL}{folder}" if folder else name
    file = file_of(pretrained)
    tag = None if folder else str(file) if file else pretrained or None
    quick = bool(tag) and needs_quick_gelu(name, pretrained)
    with torch.random.fork_rng(devices=[]):  # a network is initialised before its weights are loaded
        model, _, preprocess = open_clip.create_model_and_transforms(
            place, pretrained=tag, precision="fp32", force_quick_gelu=quick
        )
    return Tower(model.eval().requires_grad_(False), preprocess, open_clip.get_tokenizer(place))


def tower_identity(name: str, pretrained: str) -> str:
    """Name and weights: a hash of the file for a folder or a file, open_clip's tag for others.

    Nothing need be there yet.
    """
    folder = folder_of(name)
    if folder is None:
        quick = QUICK if needs_quick_gelu(name, pretrained) and not name.endswith(QUICK) else ""
        file = file_of(pretrained)
        return f"{name}{quick}/{digest(file)[:12] if file else pretrained}"
    label = name if name.startswith("mini:") else "open_clip"
    return f"{label}/{digest(folder / FILE)[:12] if (folder / FILE).is_file() else ABSENT}"


def check_tower(name: str, pretrained: str) -> None:
    """Load the model: from the folder, or fetched by open_clip into its cache.

    Raises:
        FileNotFoundError: the weights are not there and cannot be fetched.
        ValueError: open_clip knows no such weights.
        Exception: of the library, for files that it cannot read.
    """
    locate_tower(name, pretrained)
    load_tower(name, pretrained)


def locate_tower(name: str, pretrained: str) -> None:
    """Have the weights at hand; the errors are those of `check_tower`."""
    folder = folder_of(name)
    if folder is not None:
        if not (folder / FILE).is_file():
            raise FileNotFoundError(f"expected {FILE}, got none in {folder}: save the model there with open_clip.")
        return
    if name.startswith(HUB) or file_of(pretrained):
        return
    import open_clip

    known = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in known:
        raise ValueError(
            f"expected weights of open_clip's {name}, got {pretrained!r}: choose one of {', '.join(known) or 'none'}."
        )
    try:
        open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, pretrained))
    except Exception as error:  # of the several libraries that download
        raise FileNotFoundError(
            f"expected the weights {name}/{pretrained}, got {type(error).__name__}: fetch them with open_clip where "
            "there is a network, or name a folder of your own."
        ) from error


def folder_of(name: str) -> Path | None:
    """Where a model with files of its own is; None for the names of open_clip."""
    if name.startswith("mini:"):
        return WEIGHTS / name.removeprefix("mini:")
    return Path(name.removeprefix(LOCAL)).expanduser().resolve() if name.startswith(LOCAL) else None


def file_of(pretrained: str) -> Path | None:
    """The file that weights are given as; None for a tag of open_clip's."""
    path = Path(pretrained).expanduser()
    return path.resolve() if pretrained and path.is_file() else None


def needs_quick_gelu(name: str, pretrained: str) -> bool:
    """Whether weights were trained with OpenAI's approximation of GELU; open_clip only warns where it is not set.

    A file is known for OpenAI's by its hash, which is in the address that it comes from. One that was saved anew is
    not: then the name must end in -quickgelu.
    """
    import open_clip

    if file := file_of(pretrained):
        return digest(file) in str(open_clip.get_pretrained_cfg(name, "openai").get("url", ""))
    return bool(open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu"))
