"""The contracts of the metrics."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Generator, Tensor

from benchmark.types import Concept, Prompt, Split
from metrics.embedders import check_embedder, embedder_identity


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """A frozen dataclass: its fields are its config, its documentation and part of its key.

    Class data:
        version: bump it when the numbers may change.
        per: what it scores: an image, an image beside the base's, an image beside the images that attacks are taught
            with, or a set of images beside the base's.
        splits: which prompts' images it scores.
        higher_is: better for whom.
        bounds: smallest and largest value.
        reads_concept: True when the score depends on the concept card.
        after_attack: False for metrics of utility, which are taken before any attack.
        thresholds: fields that only decide columns from other, raw ones; with them comes `rethreshold`.
    """

    version: ClassVar[int]
    per: ClassVar[Literal["image", "pair", "reference", "set"]]
    splits: ClassVar[frozenset[Split]]
    higher_is: ClassVar[Literal["attacker", "defender", "fidelity"]]
    bounds: ClassVar[tuple[float, float]]
    reads_concept: ClassVar[bool] = False
    after_attack: ClassVar[bool] = True
    thresholds: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def identity(self) -> str:
        """The exact variant, with the weights it uses; two identities are never averaged.

        It needs no weights: those that are absent are named as such, and nothing is fetched.
        """

    def for_card(self, concept: Concept) -> "Metric":
        """The metric for one concept; another instance where the card decides something, such as the judge."""
        return self

    def takes(self, split: Split, concept: Concept) -> bool:
        """Whether it scores the images of a split."""
        return split in self.splits

    def places(self) -> Mapping[str, str]:
        """Fields that hold a path, as they must be read elsewhere on this machine; a path is not part of a key."""
        return {}

    def check(self, concept: Concept | None, prompts: Sequence[Prompt]) -> None:
        """Have at hand what scoring images of these prompts needs; called before anything is computed.

        What a field names by a library's own name or hub id may be fetched into that library's cache.

        Raises:
            FileNotFoundError: weights are missing, or a package is not installed.
            ValueError: a field, the card or the prompts do not fit.
        """
        return

    def rethreshold(self, columns: Mapping[str, Tensor], concept: Concept | None) -> Mapping[str, Tensor]:
        """The columns that the fields in `thresholds` decide, from the raw ones of a score `(N,)`."""
        return {}

    def calibration(self, concept: Concept) -> tuple[float, float] | None:
        """True and false positive rate for the concept, where they are known."""
        return None

    def calibrated_on(self, concept: Concept) -> tuple[int, int] | None:
        """Of how many pictures these rates are shares, where that is known."""
        return None


class ImageMetric(Metric):
    """One number for each image."""

    per = "image"

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[Prompt], concept: Concept | None) -> Mapping[str, Tensor]:
        """Columns of B numbers for images `(B, 3, H, W)` in [0, 1] and their B prompts.

        `concept` is None unless the metric `reads_concept`.
        The column `value` is the score; others are kept raw, so that a new threshold needs no GPU. NaN is missing.
        """


class PairMetric(Metric):
    """One number for each image beside the undefended base's image of the same prompt and seed."""

    per = "pair"
    after_attack = False

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[Prompt], reference: Tensor) -> Mapping[str, Tensor]:
        """Columns of B numbers, as `ImageMetric.score`; `reference` `(B, 3, H, W)` in [0, 1]."""


class ReferenceMetric(Metric):
    """One number for each image beside all images of the concept that attacks are taught with."""

    per = "reference"

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[Prompt], reference: Tensor) -> Mapping[str, Tensor]:
        """Columns of B numbers, as `ImageMetric.score`; `reference` `(N, 3, H, W)` in [0, 1]."""


class SetMetric(Metric):
    """One number for two sets of images: the defended model's and the undefended base's.

    A field `embedder` names who turns images into vectors, see `metrics.embedders`.

    Class data:
        enough: images below which the number carries a warning.
    """

    embedder: str
    enough: ClassVar[int] = 0
    per = "set"
    after_attack = False

    def embedded_by(self) -> str:
        """The embedder with its weights; metrics that agree on it share the features."""
        return embedder_identity(self.embedder)

    def check(self, concept: Concept | None, prompts: Sequence[Prompt]) -> None:
        """The embedder is at hand."""
        check_embedder(self.embedder)

    @abstractmethod
    def distance(self, f: Tensor, g: Tensor, *, rng: Generator) -> Mapping[str, float]:
        """`value`, `ci_low`, `ci_high` (NaN where unknown) for features `(N, D)` and `(M, D)`."""
