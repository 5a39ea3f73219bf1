"""Concept inversion: finds a word under which an erased concept is still there (Pham et al., ICLR 2024).

    v* = argmin_v L_DM(x, c(v); theta'),    theta' the defended weights, x images that the undefended base draws

Textual inversion of a concept that the base knows, at the authors' much larger rate: it asks whether the concept has
gone or only its name.

Paper     https://arxiv.org/abs/2308.01508
Code      https://github.com/NYU-DICE-Lab/circumventing-concept-erasure @ bb7034b, esd/train.sh
Differs   the attacker's captions, reworded, instead of the ImageNet templates; the first vector is the mean of the
          words given, or of the whole table where there are none; as many images as the run draws (the authors: 25);
          the other rows of the table are never trained, rather than restored; fp32; no flips. A defense that guides
          the sampling is met through the model's own noise prediction; the authors' training through composed
          predictions (their np/ and sld/) is left out.
Access    gradients
Budget    optimizer steps; U-Net passes are counted by the runner.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Generator

from attacks.base import WeightAttack
from attacks.words import learn_word, substitute
from benchmark.diffusion import Model
from benchmark.types import Concept, Examples, Report, Requirement, Snapshot


@dataclass(frozen=True, kw_only=True)
class ConceptInversion(WeightAttack):
    """One word vector, trained on the base's images of the concept. Defaults: the authors' against ESD."""

    token: str = "<concept>"
    init: str = ""  # words whose mean vector comes first (the authors' styles: "art"); empty: the card's subject
    lr: float = 8e-2  # effective: 5e-3, scaled by the batch of 16; 2e-2 for 4, where long runs at 8e-2 diverge
    batch: int = 16  # the authors' 4, accumulated 4 times

    version = 1
    access = "gradients"  # type: ignore[assignment]  # weight attacks' default is inferred as a literal
    needs = frozenset({"concept"})

    def objection(self, concept: Concept) -> str:
        """There is nothing to find where the base never knew the concept."""
        return "the base never knew the concept" if concept.scenario == "personalize" else ""

    def reword(self, text: str, concept: Concept) -> str:
        """The text, with the word found for the phrase."""
        return substitute(text, concept.phrase, self.token)

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
        """Yield the word after each budget.

        Raises:
            ValueError: the tokenizer knows the word, no caption has room for it, or the loss is not finite.
        """
        yield from learn_word(
            model,
            concept,
            data["concept"],
            token=self.token,
            init=self.init,
            lr=self.lr,
            batch=self.batch,
            budgets=budgets,
            rng=rng,
            report=report,
        )

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """Words, since one is learned."""
        return ("words",)

    def passes(self, steps: int) -> int:
        """One forward and one backward pass, counted as three, for each sample."""
        return 3 * steps * self.batch
