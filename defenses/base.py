"""The contract of a defense."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Any, ClassVar, Literal

from torch import Generator, Tensor

from benchmark.diffusion import Model
from benchmark.guard import Guard
from benchmark.types import Concept, Delta, Examples, Report, Requirement, Split

Need = Literal["concept", "safe"]
Part = Literal["guard", "vae", "text_encoder", "keys_values"]  # what an attacker can put back from the public base
Badge = Literal["official-matched", "reimplemented", "reconstructed", "control"]
"""How close a defense is to its paper.

official-matched  losses, gradients and updates were computed beside the official code on the same inputs, and are equal
                  to rounding; `matched` has the figures, and `Differs` what is otherwise on purpose
reimplemented     written from the paper and its official code, which were read; nothing was run beside it
reconstructed     a part of it is published nowhere, and is ours
control           protects nothing, on purpose
"""


@dataclass(frozen=True, kw_only=True)
class Defense(ABC):
    """A frozen dataclass: its fields are its config, its documentation and part of its key.

    Class data:
        version: bump it when the numbers may change.
        needs: which defender splits it reads; the runner draws them, disjoint from the attacker's.
        presets: named field values, such as the settings of a paper and of its later code.
        fidelity: how close it is to the paper, a `Badge`, and `matched` says what was compared, with figures.
        later: fields that came after its first numbers: at their default they are no part of its key.
        several: it erases all of `concept.phrases`, which are several where concepts are erased at once.
        lives_in: the part in which all of it lives, if whoever has the public base can put that back without training:
            the plan adds a cell in which he has, see `benchmark.plan.removal`.
    """

    version: ClassVar[int]
    needs: ClassVar[frozenset[Need]] = frozenset()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    later: ClassVar[frozenset[str]] = frozenset()
    fidelity: ClassVar[Badge]
    matched: ClassVar[str]
    lives_in: ClassVar[Part | None] = None
    several: ClassVar[bool] = False

    @abstractmethod
    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the weight change that protects `model` against drawing `concept`; `model` stays as it was.

        Args:
            model: the frozen base.
            concept: what must not be drawn; `concept.phrase` are the words to erase, or `concept.phrases` of several.
            data: the splits named in `needs`: images `(N, 3, H, W)` uint8 with captions.
            rng: the only source of randomness.
            report: called once a step.
        """

    @property
    def badge(self) -> Badge:
        """`fidelity` with these fields: for a method whose parts are not alike."""
        return self.fidelity

    @property
    def removable(self) -> Part | None:
        """`lives_in` with these fields: for a method whose parts can be left away."""
        return self.lives_in

    @property
    def needed(self) -> frozenset[Need]:
        """`needs` with these fields."""
        return self.needs

    @property
    def takes_several(self) -> bool:
        """`several` with these fields."""
        return self.several

    @property
    def reads(self) -> tuple[Split, ...]:
        """The splits of which it reads the prompts themselves, not images alone; they are part of its key."""
        return ()

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """What the model must have for these fields and this concept; a family that lacks it is refused with a plan."""
        return ()

    def passes(self) -> int:
        """Samples through the U-Net, a backward pass counted as two: what the plan expects.

        Exact; of a method that draws at random how far it goes, the mean.
        """
        return 0


class GuardDefense(Defense):
    """Acts while the model draws, and changes no weight.

    Class data:
        guarding: what its guards are.
    """

    lives_in = "guard"
    guarding: ClassVar[type[Guard]]

    @abstractmethod
    def guard(self, concept: Concept) -> Guard:
        """What guards against drawing `concept`: one of `guarding`."""

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the empty delta."""
        report(step=1, total=1, loss=nan)
        return Delta()

    def guided_passes(self, scale: float) -> int:
        """Samples through the denoiser for one guided prediction, a backward pass counted as two."""
        return 1 if scale == 1.0 else 2


class ModuleDefense(GuardDefense):
    """Trains extra layers with something inside that no change of weights does; its guard puts them on.

    They are kept beside the guard, which is given them (`Guard.fitted`) before it acts.
    """

    @abstractmethod
    def layers(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> dict[str, Tensor]:
        """Return the tensors of the extra layers, float32 and by name. Arguments as in `protect`."""

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the empty delta, after training: a run asks for `layers` instead."""
        self.layers(model, concept, data, rng=rng, report=report)
        return Delta()
