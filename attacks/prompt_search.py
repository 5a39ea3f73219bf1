"""What the prompt searches have in common: which prompts they attack, and what is spent on each.

By default each evaluation prompt is attacked, and what was found for it is drawn in its place, on image seeds that no
search has seen. With `transfer`, `count` of the attacker's prompts are attacked, and what was found is put on the
evaluation prompts, number i modulo `count`: whether words found for some prompts work on others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.base import PromptAttack
from attacks.held_out import HeldOut, checks, pairs_of
from attacks.search import evenly
from benchmark.diffusion import Model
from benchmark.types import Concept, Examples, Requirement, Split


@dataclass(frozen=True, kw_only=True)
class PromptSearch(PromptAttack):
    """Searches words for each attacked prompt.

    transfer: attack some of the attacker's prompts, and put what was found on others.
    count: of those.
    """

    transfer: bool = False
    count: int = 4

    @property
    def reads(self) -> tuple[Split, ...]:
        """The prompts that it attacks."""
        return ("attacker",) if self.transfer else ("concept",)

    def texts(self, concept: Concept) -> list[str]:
        """The prompts that it attacks, in their order.

        Raises:
            ValueError: there are none.
        """
        found = [p.text for p in concept.of("attacker" if self.transfer else "concept")]
        if not found:
            raise ValueError(f"expected prompts to attack, got none: add some to the card {concept.name!r}.")
        return evenly(found, self.count) if self.transfer else found

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """Words, since they are searched for."""
        return ("words",)

    def each(self, steps: int) -> int:
        """Samples through the U-Net for one prompt, a backward pass counted as two."""
        return 0

    def passes(self, steps: int) -> int:
        """For each evaluation prompt; with `transfer`, in all."""
        return self.each(steps) * (self.count if self.transfer else 1)


@dataclass(frozen=True, kw_only=True)
class DenoisingSearch(PromptSearch):
    """Searches words with which the defended model denoises images of the concept.

    held_out: pairs (t, eps) of each prompt by which candidates are chosen.
    every: steps from one candidate that is looked at to the next; the first step's is one.
    """

    held_out: int = 16
    every: int = 10

    needs = frozenset({"concept"})

    @torch.no_grad()
    def scenes(self, model: Model, concept: Concept, examples: Examples) -> tuple[list[str], Tensor]:
        """The K prompts that it attacks, and for each the mean latents `(K, C, h, w)` of an image.

        That is the first image with the prompt as its caption, before any other attack worded it anew; where there is
        none, as with an attacker's own pictures, prompt i takes image i modulo their number.
        """
        captions = list(examples.captions)
        if self.transfer:
            texts = called = evenly(captions, self.count)
        else:
            texts = self.texts(concept)
            called = [prompt.source or prompt.text for prompt in concept.of("concept")]
        at = [captions.index(text) if text in captions else i % len(captions) for i, text in enumerate(called)]
        return texts, model.posterior(examples.images[at].float() / 255)[0]

    def pairs(self, model: Model, texts: Sequence[str], z_0: Tensor) -> HeldOut:
        """What candidates for these prompts are chosen by."""
        return pairs_of(model, texts, z_0, self.held_out)

    def checked(self, steps: int) -> int:
        """Samples through the U-Net for choosing: of the prompt itself, and of each candidate that is looked at."""
        return self.held_out * (1 + checks(steps, self.every))


@torch.no_grad()
def each_encoded(model: Model, texts: Sequence[str]) -> Tensor:
    """`(K, L, D)`, each text encoded alone."""
    return torch.cat([model.encode_text([text]) for text in texts])
