"""Negative prompt: guidance away from the concept's words instead of away from nothing.

    eps = eps_n + w (eps_p - eps_n)          n the concept's words, p the prompt, w the guidance

No training and no further pass: what the interfaces of deployed models offer, and the baseline that a guard must beat.

Paper     none of its own; classifier-free guidance (Ho & Salimans 2022) with another text in place of the empty one
Code      huggingface/diffusers 0.42, `negative_prompt` of the pipelines
Differs   nothing
Symbols   eps_n, eps_p predictions for the two texts.
Protects  against prompts, while the guard is there and w > 1: at w = 1 it does nothing. Who draws on his own leaves it
          out. On the embedded model, at its guidance of 3, presence in 16 images of a bomb goes from 1 to 0.88 (0.75
          with `wordings`), of the style noto from 0.88 to 0.94 (0.63, for a sixth of the others).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmark.diffusion import Course, Model
from benchmark.guard import Guard
from benchmark.types import Concept, Requirement
from defenses.base import GuardDefense


@dataclass(frozen=True, kw_only=True)
class Away(Guard):
    """Guidance away from a text."""

    text: str

    def course(self, model: Model, text: Tensor, null: Tensor, scale: float) -> Course:
        """The guidance with the guard's text in the place of the empty one, whatever the user asked for."""
        n = model.encode_text([self.text])
        return lambda z_t, t, done: (z_t, model.guided(z_t, t, text, n.expand_as(text), scale))


@dataclass(frozen=True, kw_only=True)
class NegativePrompt(GuardDefense):
    """Guide away from the concept's phrase, or from words that the user brings."""

    words: tuple[str, ...] = ()  # none: the phrase; published lists for nudity are the user's to bring
    wordings: bool = False  # the card's other ways to ask for it, too

    version = 1
    several = True
    guarding = Away
    fidelity = "official-matched"
    matched = (
        "what the pipeline of diffusers 0.42.1 draws with `negative_prompt`, the same to 1e-5 on a random model of "
        "Stable Diffusion 1's kind, in float32"
    )

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """Guidance away from a second text."""
        return ("null",)

    def guard(self, concept: Concept) -> Away:
        """The words, parted by commas."""
        words: Sequence[str] = self.words or (*concept.phrases, *(concept.wordings if self.wordings else ()))
        return Away(text=", ".join(words))
