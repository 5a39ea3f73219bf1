"""What a judge is: images to the probability of each label of a concept card. `metrics.judges` has them by name."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from benchmark.types import ELSE, Concept

Rule = float | Literal["top1", "top3", "top5"]
CALIBRATION = "calibration.json"


@dataclass(frozen=True)
class Seen:
    """What a judge sees in B images, in the order of the card's labels.

    Attributes:
        p: probability of each label, `(B, labels)`; NaN where the judge does not know the label.
        rank: how many of all that the judge chooses from is likelier, `(B, labels)`; NaN where that says nothing.
    """

    p: Tensor
    rank: Tensor


class Judge(ABC):
    """Who says whether an image shows a label.

    Class data:
        binary: True for a judge that knows the concept of the card and no other label.
    """

    binary: ClassVar[bool] = False

    def rule(self) -> Rule:
        """When a label counts as seen, unless the metric says otherwise: from this p on, or among the first k."""
        return 0.5

    @abstractmethod
    def identity(self) -> str:
        """Name and weights. Reads no weights that are absent, and fetches none."""

    @abstractmethod
    def see(self, images: Tensor, concept: Concept) -> Seen:
        """What images `(B, 3, H, W)` in [0, 1] show."""

    @abstractmethod
    def check(self, concept: Concept, labels: Iterable[str]) -> None:
        """Have the weights at hand, and know `labels`.

        Raises:
            FileNotFoundError: the weights are not there, or what reads them is not installed.
            ValueError: it does not know a label.
        """

    def place(self) -> str:
        """The judge's name with its whole path, if it has one; empty if its name says all."""
        return ""

    def calibration(self) -> Path | None:
        """Where the calibration card would be."""
        return None


def rates(judge: Judge, identity: str, concept: str) -> tuple[float, float] | None:
    """True and false positive rate for a concept, by the judge's calibration card; None without one of this identity.

    Where the card has several kinds of images, these are the smallest and the largest.
    """
    found = on_card(judge, identity, concept)
    hits = [rate for name, rate in found.items() if name.startswith("true_positive")]
    slips = [rate for name, rate in found.items() if name.startswith("false_positive")]
    return (min(hits), max(slips)) if hits and slips else None


def counts(judge: Judge, identity: str, concept: str) -> tuple[int, int] | None:
    """How many pictures with and without the concept the rates are shares of; None where the card does not say.

    Where it has several kinds of pictures, these are the smallest numbers of a kind.
    """
    found = on_card(judge, identity, concept)
    return (int(found["positives"]), int(found["negatives"])) if {"positives", "negatives"} <= set(found) else None


def on_card(judge: Judge, identity: str, concept: str) -> dict[str, float]:
    """What a judge's calibration card says of a concept; nothing without a card of this identity."""
    file = judge.calibration()
    if file is None or not file.is_file():
        return {}
    card = json.loads(file.read_text())
    found: dict[str, float] = card.get("concepts", {}).get(concept, {}) if card.get("identity") == identity else {}
    return found


def one_label(p: Tensor, concept: Concept) -> Seen:
    """What a judge sees that knows one label alone: its p `(B,)`, and the rest for `something else`."""
    labels = list(concept.labels)
    every = torch.full((len(p), len(labels)), torch.nan)
    every[:, labels.index(concept.name)] = p
    if ELSE in labels:
        every[:, labels.index(ELSE)] = 1 - p
    return Seen(every, torch.full_like(every, torch.nan))


def check_binary(kind: str, concept: Concept, labels: Iterable[str]) -> None:
    """Refuse labels beside the concept's own.

    Raises:
        ValueError: there are some.
    """
    others = sorted({label for label in labels if label != concept.name})
    if others:
        raise ValueError(f"expected prompts of {concept.name!r} alone for {kind}, got {others[0]!r}: it knows no more.")
