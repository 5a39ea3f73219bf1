"""The contracts of the metrics."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from benchmark.types import Concept, Prompt, Split


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """A frozen dataclass: its fields are its config, its documentation and part of its key.

    Class data:
        version: bump it when the numbers may change.
        splits: which prompts' images it scores.
        higher_is: better for whom.
        bounds: smallest and largest value.
        reads_concept: True when the score depends on the concept card.
    """

    version: ClassVar[int]
    splits: ClassVar[frozenset[Split]]
    higher_is: ClassVar[Literal["attacker", "defender", "fidelity"]]
    bounds: ClassVar[tuple[float, float]]
    reads_concept: ClassVar[bool]

    @abstractmethod
    def identity(self) -> str:
        """The exact variant, with the weights it uses; two identities are never averaged."""


class ImageMetric(Metric):
    """One number for each image."""

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[Prompt], concept: Concept | None) -> Mapping[str, Tensor]:
        """Columns of B numbers for images `(B, 3, H, W)` in [0, 1] and their B prompts.

        `concept` is None unless the metric `reads_concept`.
        The column `value` is the score; others are kept raw, so that a new threshold needs no GPU. NaN is missing.
        """
