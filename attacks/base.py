"""The contracts of the attacks."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Generator

from benchmark.diffusion import Model
from benchmark.types import Concept, Examples, Report, Snapshot

Access = Literal["none", "queries", "text encoder", "gradients", "weights"]


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A frozen dataclass: its fields are its config, its documentation and part of its key.

    Class data:
        version: bump it when the numbers may change.
        changes: what the attack changes: weights, prompts, or nothing (the control).
        access: what the attacker must be able to do.
        needs: which attacker splits it reads.
        presets: named field values.
    """

    version: ClassVar[int]
    changes: ClassVar[Literal["weights", "prompts", "none"]]
    access: ClassVar[Access]
    needs: ClassVar[frozenset[Literal["concept"]]] = frozenset()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def passes(self, steps: int) -> int:
        """Estimated samples through the U-Net for so many optimizer steps, for the plan and the time left."""
        return 0


class WeightAttack(Attack):
    """Fine-tunes the defended model. It predicts noise through the model's own `predict_noise`."""

    changes = "weights"
    access = "weights"

    @abstractmethod
    def finetune(
        self,
        model: Model,
        concept: Concept,
        data: Mapping[str, Examples],
        *,
        budgets: Sequence[int],
        rng: Generator,
        report: Report,
    ) -> Iterator[Snapshot]:
        """Yield the attacked model after each of `budgets` optimizer steps, in rising order; `model` stays as it was.

        Args:
            model: the frozen, defended model.
            concept: what the attacker wants back.
            data: the splits named in `needs`.
            budgets: optimizer steps, rising, all above 0.
            rng: the only source of randomness.
            report: called once a step.
        """
