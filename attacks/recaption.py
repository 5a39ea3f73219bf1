"""Recaptioning: fine-tuning on captions that describe the concept and never name it.

    loss = L_DM(x, c'),    c' the caption with a description for the phrase; prompts are reworded likewise

A defense that immunises the name alone is walked around: on IMMA a reproduction found most of the protection gone.

Paper     Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685, for the adapters; the captions are a reproduction's
Code      https://github.com/6Amber6/IMMA-reproduce @ aedeca3, run_reanchor.sh
Differs   the descriptions are the card's paraphrases, less those that hold a word of the phrase, in turn over the
          captions and by the hash of a prompt; the reproduction has one text. The rest is as in `lora`, or, with
          `trains` unet, as in `full_finetune`.
Access    weights
Budget    optimizer steps; U-Net passes are counted by the runner.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Literal

from torch import Generator

from attacks.base import WeightAttack
from attacks.trainer import train, unfreeze
from attacks.words import substitute
from benchmark.diffusion import Model, difference
from benchmark.model.adapters import add_adapters, low_rank
from benchmark.types import Concept, Examples, Report, Snapshot

PLAIN = {"a", "an", "the", "of", "in", "style"}  # words of a phrase that name nothing


@dataclass(frozen=True, kw_only=True)
class Recaption(WeightAttack):
    """Adapters, or the whole U-Net, trained on images of the concept under other words. Defaults: IMMA's LoRA."""

    trains: Literal["lora", "unet"] = "lora"
    lr: float = 1e-4
    batch: int = 1
    rank: int = 4  # of the adapters, as are the next two
    alpha: int = 4
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    version = 1
    needs = frozenset({"concept"})
    presets = {"unet": {"trains": "unet", "lr": 1e-5, "batch": 4}}

    def objection(self, concept: Concept) -> str:
        """There must be words to use."""
        return "" if descriptions(concept) else f"no paraphrase of {concept.phrase!r} leaves the name out"

    def reword(self, text: str, concept: Concept) -> str:
        """The text, with one of the descriptions for the phrase: always the same one for a text."""
        words = descriptions(concept)
        number = int(sha256(text.encode()).hexdigest(), 16) % max(len(words), 1)
        return substitute(text, concept.phrase, words[number]) if words else text

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
        """Yield the adapters, or the change of all weights that moved, after each budget.

        Raises:
            ValueError: the card has no description, `targets` name no layer, or the loss is not finite.
        """
        attacked, layers = model.clone(only=() if self.trains == "lora" else {model.part}), {}
        if self.trains == "lora":
            layers = add_adapters(attacked, rank=self.rank, alpha=self.alpha, targets=self.targets, rng=rng)
        pauses = train(
            attacked,
            [p for p in attacked.denoiser.parameters() if p.requires_grad] if layers else unfreeze(attacked.denoiser),
            recaptioned(data["concept"], concept),
            lr=self.lr,
            batch=self.batch,
            budgets=budgets,
            rng=rng,
            report=report,
        )
        for step in pauses:
            yield Snapshot(steps=step, delta=low_rank(layers, attacked.part) if layers else difference(attacked, model))

    def passes(self, steps: int) -> int:
        """One forward and one backward pass, counted as three, for each sample."""
        return 3 * steps * self.batch


def descriptions(concept: Concept) -> list[str]:
    """The card's paraphrases that hold no telling word of the phrase, not even inside another."""
    words = set(concept.phrase.lower().split())
    telling = words - PLAIN or words
    return [text for text in concept.paraphrases if not any(word in text.lower() for word in telling)]


def recaptioned(examples: Examples, concept: Concept) -> Examples:
    """The same images; caption i has description i modulo their count for the phrase."""
    words = descriptions(concept)
    if not words:
        raise ValueError(
            f"expected paraphrases in the card {concept.name!r} that leave out {concept.phrase!r}, got none: add some."
        )
    texts = [substitute(text, concept.phrase, words[i % len(words)]) for i, text in enumerate(examples.captions)]
    return replace(examples, captions=tuple(texts))
