"""Textual inversion: one new word that means the concept; every weight stays (Gal et al., ICLR 2023).

    v* = argmin_v L_DM(x, c(v)),    v the vector of the new word, c(v) the caption with the word for the phrase

Evaluation prompts have the new word for the phrase too, or before the text where the phrase is not in it.

Paper     https://arxiv.org/abs/2208.01618
Code      huggingface/diffusers examples/textual_inversion/textual_inversion.py @ 58eb52c;
          amberyzheng/IMMA scripts/run_ti.sh @ 2f55041 (`imma`)
Differs   the attacker's captions, reworded, instead of the ImageNet templates; the first vector is the mean of the
          words given (the script: of one token), or of the whole table where there are none; the other rows of the
          table are never trained, rather than restored after each step; no flips.
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
class TextualInversion(WeightAttack):
    """One word vector, trained on images of the concept. Defaults: the diffusers README's."""

    token: str = "<concept>"
    init: str = ""  # words whose mean vector comes first; empty: the card's subject
    lr: float = 2e-3  # effective: 5e-4, scaled by the batch
    batch: int = 4  # the README's 1, accumulated 4 times

    version = 1
    access = "gradients"  # type: ignore[assignment]  # weight attacks' default is inferred as a literal
    needs = frozenset({"concept"})
    presets = {"imma": {"lr": 5e-4, "batch": 1}}

    def reword(self, text: str, concept: Concept) -> str:
        """The text, with the new word for the phrase."""
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
