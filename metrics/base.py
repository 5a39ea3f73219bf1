"""The contracts of the metrics."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Generator, Tensor

from benchmark.types import Concept, Prompt, Split
from metrics.embedders import embedder_identity


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """A frozen dataclass: its fields are its config, its documentation and part of its key.

    Class data:
        version: bump it when the numbers may change.
        per: what it scores: an image, an image beside the base's, or a set of images beside the base's.
        splits: which prompts' images it scores.
        higher_is: better for whom.
        bounds: smallest and largest value.
        reads_concept: True when the score depends on the concept card.
        after_attack: False for metrics of utility, which are taken before any attack.
    """

    version: ClassVar[int]
    per: ClassVar[Literal["image", "pair", "set"]]
    splits: ClassVar[frozenset[Split]]
    higher_is: ClassVar[Literal["attacker", "defender", "fidelity"]]
    bounds: ClassVar[tuple[float, float]]
    reads_concept: ClassVar[bool] = False
    after_attack: ClassVar[bool] = True

    @abstractmethod
    def identity(self) -> str:
        """The exact variant, with the weights it uses; two identities are never averaged."""


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

    @abstractmethod
    def distance(self, f: Tensor, g: Tensor, *, rng: Generator) -> Mapping[str, float]:
        """`value`, `ci_low`, `ci_high` (NaN where unknown) for features `(N, D)` and `(M, D)`."""
