"""The contracts of the attacks."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, ClassVar, Literal

from torch import Generator, Tensor

from benchmark.diffusion import Model
from benchmark.types import Concept, Delta, Examples, Report, Requirement, Snapshot, Split

Access = Literal["none", "queries", "text encoder", "gradients", "weights"]
Need = Literal["concept", "benign"]
Standing = Literal["attack", "edit", "beside"]


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A frozen dataclass: its fields are its config, its documentation and part of its key.

    Class data:
        version: bump it when the numbers may change.
        changes: what the attack changes: weights, prompts, the sampling, or nothing (the control).
        access: what the attacker must be able to do.
        needs: which attacker splits it reads: images of the concept, or of unrelated things.
        uses_base: True when it cannot do without the undefended model.
        presets: named field values.
        unit: what its budget counts, as the axis of a figure says it.
        standing: how its cells count. `attack`: toward the worst case, and, if it trains weights, toward the titer.
            `edit`: toward the worst case alone, since its budget is no optimizer steps. `beside`: it has its column
            and its curve, and enters no rank: a control, or an attacker whose hands are bound.
        replayed: it looks at the base alone: it is run once, and what it found is tried on every defense.
        later: fields that came after results had been kept: at its default such a field is in no key.
    """

    version: ClassVar[int]
    changes: ClassVar[Literal["weights", "prompts", "sampling", "none"]]
    access: ClassVar[Access]
    needs: ClassVar[frozenset[Need]] = frozenset()
    uses_base: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    unit: ClassVar[str] = "steps"
    standing: ClassVar[Standing] = "attack"
    replayed: ClassVar[bool] = False
    later: ClassVar[frozenset[str]] = frozenset()

    @property
    def stands(self) -> Standing:
        """`standing` with these fields: an attack may have some that bind the attacker's hands."""
        return self.standing

    def budgets(self, asked: Sequence[int]) -> tuple[int, ...]:
        """The budgets at which this attack is scored, given the run's grid of optimizer steps."""
        return tuple(asked)

    def objection(self, concept: Concept) -> str:
        """Why this attack makes no sense for a concept; empty if it does. The plan skips the cell and says so."""
        return ""

    def reword(self, text: str, concept: Concept) -> str:
        """What this attacker asks for in place of an evaluation prompt."""
        return text

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """What the model must have for these fields and this concept; a family that lacks it is refused with a plan."""
        return ()

    @property
    def reads(self) -> tuple[Split, ...]:
        """The splits of which it may read the prompts; beside the attacker's, `concept`, for a search that attacks
        each evaluation prompt: these are then part of its key, and its images show them.
        """
        return ("attacker",)

    def passes(self, steps: int) -> int:
        """Samples through the U-Net for so many steps, a backward pass counted as two: what the plan expects.

        Of a search that attacks the evaluation prompts, for each of them.
        """
        return 0


class WeightAttack(Attack):
    """Fine-tunes the defended model, or words of it. It predicts through the model's own `predict`."""

    changes = "weights"
    access = "weights"
    unit = "optimizer steps"

    @abstractmethod
    def finetune(
        self,
        model: Model,
        base: Model,
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
            base: the frozen, undefended model; only an attack that `uses_base` may read it.
            concept: what the attacker wants back; of its prompts, only those of `reads` may be read.
            data: the splits named in `needs`; `concept` shows the attacked prompts.
            budgets: optimizer steps, rising, all above 0.
            rng: the only source of randomness.
            report: called once a step.
        """


class WeightEdit(WeightAttack):
    """Changes the weights without training: each budget is an arm of its own, made of the model alone or of the base.

    A step stands for one unit of the budget, so that the arms are a curve.
    """

    standing: ClassVar[Standing] = "edit"

    @abstractmethod
    def edited(self, model: Model, other: Model, budget: int) -> Delta:
        """The change at a budget.

        Args:
            model: the frozen, defended model.
            other: what `partner` answered.
            budget: one of `budgets`.
        """

    def partner(self, base: Model, data: Mapping[str, Examples], *, rng: Generator) -> Model:
        """The other model that the edit looks at: by default the base."""
        return base

    def finetune(
        self,
        model: Model,
        base: Model,
        concept: Concept,
        data: Mapping[str, Examples],
        *,
        budgets: Sequence[int],
        rng: Generator,
        report: Report,
    ) -> Iterator[Snapshot]:
        """Yield the change at each budget."""
        other = self.partner(base, data, rng=rng)
        for step in range(1, max(budgets) + 1):
            report(step=step, total=max(budgets), loss=nan)
            if step in budgets:
                yield Snapshot(steps=step, delta=self.edited(model, other, step))


class PromptAttack(Attack):
    """Searches words that make the defended model draw the concept; the weights stay."""

    changes = "prompts"
    unit = "search steps"

    @abstractmethod
    def search(
        self,
        model: Model,
        base: Model,
        concept: Concept,
        data: Mapping[str, Examples],
        *,
        budgets: Sequence[int],
        rng: Generator,
        report: Report,
    ) -> Iterator[Snapshot]:
        """Yield the prompts found after each of `budgets` steps, in rising order. Arguments as in `finetune`.

        A search that reads the evaluation prompts, which are then all that the split `concept` holds, finds one text
        for each of them, in their order.
        """


class SamplingAttack(Attack):
    """Samples in another way, without training: starts elsewhere, or lets the model read something else than the text.

    One trajectory an image. The budget is the help that the start gives.
    """

    changes = "sampling"
    unit = "sampling steps"

    def trajectory(self, budget: int, steps: int) -> int:
        """DDIM steps that an image takes in all, on either model, where a whole trajectory has `steps`."""
        return steps

    def images(self, asked: int, budget: int) -> int:
        """Images that it draws of each prompt, where the run asks for so many; with more, the best counts, too."""
        return asked

    def misfit(self, budget: int, steps: int) -> str:
        """Why a budget cannot be spent on a trajectory of so many steps; empty if it can. The plan skips it."""
        return ""

    def ask(self, model: Model, base: Model, text: Tensor) -> Tensor:
        """What the defended model reads in place of encoded texts `(B, L, D)`, the empty one among them."""
        return text

    @abstractmethod
    def begin(
        self,
        model: Model,
        base: Model,
        z_T: Tensor,
        text: Tensor,
        null: Tensor,
        *,
        budget: int,
        steps: int,
        scale: float,
    ) -> tuple[Tensor, int]:
        """Latents `(B, C, h, w)` and the number of DDIM steps, of `steps`, that they have already been through.

        None, only if the attack lies in what it asks, in how much it draws, or in the noise itself.

        Args:
            model: the frozen, defended model.
            base: the frozen, undefended model.
            z_T: noise `(B, C, h, w)`.
            text: the prompts, `(B, L, D)`.
            null: the empty prompt, `(B, L, D)`.
            budget: one of `budgets`.
            steps: DDIM steps of a whole trajectory.
            scale: classifier-free guidance.
        """
