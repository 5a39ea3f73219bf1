"""Judges by name: images to the probability of each label of a concept card.

mini:judge, mini:second        the embedded model's own: zero-shot
open_clip:MODEL/PRETRAINED     zero-shot by open_clip; open_clip:FOLDER for a folder as open_clip writes it
torchvision:MODEL[/WEIGHTS]    an ImageNet classifier with torchvision's weights, read from torch's cache
transformers:PLACE             an image classifier of transformers: a folder, or a hub id owner/name[@revision]
nudenet:PRESET                 the detector, by one of `metrics.nudenet`'s presets
q16:FILE                       Q16's two learned prompts in a safetensors file, over CLIP ViT-L/14
NAME:REST                      another package's: entry point NAME of the group titer.judges, which is called with REST

A zero-shot judge chooses among the labels of the card. A classifier has classes of its own: a label is the class that
has its name, or those that the card lists under `classes`. nudenet and q16 know the concept of the card and no other.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from torch import Tensor

from benchmark.model.towers import LOCAL, check_tower, folder_of, load_tower, tower_identity
from benchmark.types import Concept
from metrics.binary import Q16, Detector
from metrics.classifiers import Torchvision, Transformers
from metrics.judge import CALIBRATION, Judge, Seen

GROUP = "titer.judges"
OWN = ("mini", "hf-hub", "local-dir")  # kinds that open_clip tells apart itself


@dataclass(frozen=True)
class ZeroShot(Judge):
    """The labels' descriptions as texts: p = softmax(scale cos(E_I(image), E_T(texts)))."""

    model: str
    pretrained: str

    def identity(self) -> str:
        """The tower's."""
        return tower_identity(self.model, self.pretrained)

    def see(self, images: Tensor, concept: Concept) -> Seen:
        """p over the labels, and their ranks."""
        tower = load_tower(self.model, self.pretrained)
        text = tower.embed_texts(list(concept.labels.values()))
        p = (tower.scale * tower.embed_images(images) @ text.T).softmax(-1)
        return Seen(p, ranks(p))

    def check(self, concept: Concept, labels: Iterable[str]) -> None:
        """The weights; a card describes all its labels."""
        check_tower(self.model, self.pretrained)

    def place(self) -> str:
        """The folder of `open_clip:FOLDER`."""
        return f"open_clip:{folder_of(self.model)}" if self.model.startswith(LOCAL) else ""

    def calibration(self) -> Path | None:
        """Beside the weights of a folder."""
        folder = folder_of(self.model)
        return folder / CALIBRATION if folder else None


def ranks(p: Tensor) -> Tensor:
    """How many of each row's numbers are larger, `(B, C)`."""
    return (p[:, None, :] > p[:, :, None]).sum(-1).float()


@cache
def find(name: str, pretrained: str = "") -> Judge:
    """The judge of a name. `pretrained` is for names of open_clip's without a kind.

    Raises:
        ValueError: there is no such judge.
    """
    kind, colon, rest = name.partition(":")
    if not colon or kind in OWN:
        return ZeroShot(name, pretrained)
    known = {**builtin(), **{point.name: point.load() for point in entry_points(group=GROUP) if point.name == kind}}
    if kind not in known or not rest:
        raise ValueError(f"expected a judge of the kinds mini, {', '.join(sorted(builtin()))}, got {name!r}: name one.")
    judge: Judge = known[kind](rest)
    return judge


def builtin() -> Mapping[str, Callable[[str], Judge]]:
    """Who makes a judge of the rest of its name, by kind."""

    def open_clip(rest: str) -> Judge:
        model, _, pretrained = rest.rpartition("/")
        is_folder = Path(rest).expanduser().is_dir() or rest.startswith(("/", ".", "~")) or not model
        return ZeroShot(f"{LOCAL}{rest}", "") if is_folder else ZeroShot(model, pretrained)

    return {
        "open_clip": open_clip,
        "torchvision": Torchvision.named,
        "transformers": Transformers,
        "nudenet": Detector,
        "q16": Q16,
    }
