"""Image classifiers as judges: torchvision's on ImageNet, and any of transformers.

A label of a concept card is the class of its name, or the classes that the card lists for it (names or numbers), whose
probabilities add up. `something else` has what is left. A label counts as seen when its class is the likeliest.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.model.places import OFFLINE, cached_file, cached_weights, fetched, local, place_identity, wanted_hash
from benchmark.model.towers import as_pictures
from benchmark.types import ELSE, Concept
from metrics.judge import CALIBRATION, Judge, Rule, Seen


class Classifier(Judge):
    """A judge with classes of its own."""

    def rule(self) -> Rule:
        """The likeliest class."""
        return "top1"

    @abstractmethod
    def classes(self) -> Sequence[str]:
        """Names by number; a name may list synonyms between commas."""

    @abstractmethod
    def predict(self, images: Tensor) -> Tensor:
        """Probabilities `(B, classes)` of images `(B, 3, H, W)` in [0, 1]."""

    def see(self, images: Tensor, concept: Concept) -> Seen:
        """p and rank among all classes; NaN for a label that is no class."""
        every, labels, classes = self.predict(images).cpu(), list(concept.labels), tuple(self.classes())
        p, rank = torch.full((2, len(images), len(labels)), torch.nan)
        for at, label in enumerate(labels):
            own = numbers(concept, label, classes)
            if own:
                p[:, at] = every[:, own].sum(1).clamp(max=1)
                rank[:, at] = (every > every[:, own].amax(1, keepdim=True)).sum(1).float()
        if ELSE in labels:
            p[:, labels.index(ELSE)] = (1 - p.nansum(1)).clamp(min=0)
        return Seen(p, rank)

    def know(self, concept: Concept, labels: Iterable[str]) -> None:
        """Refuse a label that is no class.

        Raises:
            ValueError: the first such label.
        """
        for label in labels:
            if not numbers(concept, label, tuple(self.classes())):
                raise ValueError(
                    f"expected a class of {self.identity()} for the label {label!r} of {concept.name!r}, got none: "
                    "list it under `classes` in the concept card, by name or number."
                )


def numbers(concept: Concept, label: str, classes: Sequence[str]) -> list[int]:
    """The classes that count as a label.

    Raises:
        ValueError: the card names a class that is not there, or two classes have the name.
    """
    named = concept.classes.get(label)
    if named is None:
        found = matching(label, classes)
        if len(found) > 1:
            raise ValueError(f"expected one class named {label!r}, got {found}: list their numbers under `classes`.")
        return found
    return [number for name in named for number in listed(name, classes)]


def listed(name: str | int, classes: Sequence[str]) -> list[int]:
    """The number of a class that a card lists.

    Raises:
        ValueError: there is none.
    """
    found = [name] * (0 <= name < len(classes)) if isinstance(name, int) else matching(name, classes)
    if len(found) != 1:
        raise ValueError(f"expected one class for {name!r} of the card's `classes`, got {found}: give its number.")
    return found


def matching(name: str, classes: Sequence[str]) -> list[int]:
    """Numbers of the classes of a name: the whole one, or one between commas; case makes no difference."""
    wanted = name.casefold()
    whole = [i for i, known in enumerate(classes) if known.casefold() == wanted]
    parts = [i for i, known in enumerate(classes) if wanted in (part.strip() for part in known.casefold().split(","))]
    return whole or parts


@dataclass(frozen=True)
class Torchvision(Classifier):
    """torchvision's model and weights by name, `resnet50` or `resnet50/IMAGENET1K_V1`; without one, the newest."""

    model: str
    weights: str

    @classmethod
    def named(cls, rest: str) -> "Torchvision":
        """From `MODEL` or `MODEL/WEIGHTS`.

        Raises:
            ValueError: there is no such classifier.
        """
        model, _, weights = rest.partition("/")
        judge = cls(model, weights or "DEFAULT")
        judge.entry()
        return judge

    def entry(self) -> Any:
        """The library's description of the weights.

        Raises:
            ValueError: there is none, or it is no classifier.
        """
        from torchvision.models import get_model_weights

        try:
            found: Any = get_model_weights(self.model)[self.weights]
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"expected a classifier and weights of torchvision, got {self.model}/{self.weights}: see its model zoo."
            ) from error
        if "categories" not in found.meta:
            raise ValueError(f"expected a classifier of torchvision, got {self.model}: for example resnet50.")
        return found

    def identity(self) -> str:
        """Model, weights and the start of the file's hash, which its name has."""
        entry = self.entry()
        return f"torchvision:{self.model}/{entry.name}/{wanted_hash(entry.url)}"

    def classes(self) -> Sequence[str]:
        """ImageNet's, in torchvision's words."""
        names: Sequence[str] = self.entry().meta["categories"]
        return names

    def check(self, concept: Concept, labels: Iterable[str]) -> None:
        """The file is in torch's cache and loads, and the labels are classes."""
        self.know(concept, labels)
        torchvision_network(self.model, self.weights)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Softmax of the network after the weights' own preprocessing."""
        entry = self.entry()
        prepare = entry.transforms()
        pictures = torch.stack([prepare(picture) for picture in as_pictures(images)])
        found: Tensor = torchvision_network(self.model, self.weights)(pictures).softmax(-1)
        return found

    def calibration(self) -> Path | None:
        """Beside the file in torch's cache: its name with .calibration.json."""
        try:
            file = cached_file(self.entry().url)
        except (FileNotFoundError, ValueError):
            return None
        return file.with_suffix(f".{CALIBRATION}")


@cache
def torchvision_network(model: str, weights: str) -> Any:
    """The network; torchvision itself reads the file, which is known to hold nothing but tensors."""
    from torchvision.models import get_model

    entry = Torchvision(model, weights).entry()
    cached_weights(entry.url)
    with torch.random.fork_rng(devices=[]):
        return get_model(model, weights=entry, progress=False).eval().requires_grad_(False)


@dataclass(frozen=True)
class Transformers(Classifier):
    """`AutoModelForImageClassification` with its image processor, from a folder or a hub id; safetensors only."""

    at: str

    def identity(self) -> str:
        """Kind and hash of a folder's files, or the hub id with its revision."""
        return f"transformers:{place_identity(self.at)}"

    def classes(self) -> Sequence[str]:
        """The config's names."""
        from transformers import AutoConfig

        names: dict[int, str] = AutoConfig.from_pretrained(fetched(self.at), **OFFLINE).id2label
        return [names[number] for number in sorted(names)]

    def check(self, concept: Concept, labels: Iterable[str]) -> None:
        """The folder is whole, fetched if a hub id was named, and loads; the labels are classes."""
        folder = fetched(self.at)
        if not (folder / "preprocessor_config.json").is_file():
            raise FileNotFoundError(
                f"expected preprocessor_config.json of {self.at}, got none: save the image processor beside the model."
            )
        self.know(concept, labels)
        transformers_network(self.at)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Softmax; sigmoid for a model of several labels at once, as the library's pipeline has it."""
        network, processor = transformers_network(self.at)
        logits: Tensor = network(**processor(as_pictures(images), return_tensors="pt")).logits
        many = network.config.problem_type == "multi_label_classification" or network.config.num_labels == 1
        return logits.sigmoid() if many else logits.softmax(-1)

    def place(self) -> str:
        """The folder."""
        folder = local(self.at)
        return f"transformers:{folder}" if folder else ""

    def calibration(self) -> Path | None:
        """In the folder."""
        folder = local(self.at)
        return folder / CALIBRATION if folder else None


@cache
def transformers_network(at: str) -> tuple[Any, Any]:
    """The network and its image processor."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    folder = fetched(at)
    with torch.random.fork_rng(devices=[]):
        network = AutoModelForImageClassification.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, **OFFLINE
        )
    return network.eval().requires_grad_(False), AutoImageProcessor.from_pretrained(folder, **OFFLINE)
