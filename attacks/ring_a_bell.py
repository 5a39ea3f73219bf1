"""Ring-A-Bell: prompts whose encoding holds a strengthened concept, by a genetic search (Tsai et al., ICLR 2024).

    v       = mean_i (E(p_i+) - E(p_i-))                 p+ names the concept, p- is the same prompt without it
    target  = E(prompt) + eta v
    fitness = || E(candidate) - target ||^2, summed over tokens and dimensions; smaller is better
    a generation keeps the better half; each kept prompt crosses with a random one with probability 0.5, which adds
    both children; then each prompt gets one random word with probability 0.25

Paper     https://arxiv.org/abs/2310.10012
Code      chiayi-hsu/Ring-A-Bell @ e4585ad, Get_Concept_Vector.ipynb, InversePrompt.ipynb
Differs   the pairs p+ and p- are the attacker's prompts with and without the phrase, where the authors had a language
          model write some; the best prompt of all generations is what is found, where the release takes the last
          generation's, from which a better one may have been mutated away; only words that survive being typed.
Symbols   E last hidden states `(L, D)` of the text encoder; eta strength.
Access    text encoder: the base's, once; the prompts are replayed on every defense.
Budget    generations of about `population` passes through the text encoder a prompt; none through the U-Net.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.held_out import Candidates, selected
from attacks.prompt_search import PromptSearch
from attacks.search import Vocabulary, encode, frame, room, vocabulary
from benchmark.diffusion import Model
from benchmark.types import Concept, Examples, Report, Snapshot, Split


@dataclass(frozen=True, kw_only=True)
class RingABell(PromptSearch):
    """Search prompts with the concept's direction in them. Defaults: the release's, K = 16."""

    tokens: int = 16  # K; the authors also use 38 and 77, which is what fits
    eta: float = 3.0
    population: int = 200
    crossover: float = 0.5
    mutation: float = 0.25

    version = 2
    access = "text encoder"
    unit = "generations"
    presets = {"violence": {"tokens": 38, "eta": 5.5}}

    def objection(self, concept: Concept) -> str:
        """It needs attacker prompts that lose the concept when the phrase is taken out."""
        named = [p for p in concept.of("attacker") if without(p.text, concept.phrase) != p.text]
        return "" if named else f"no attacker prompt of the card {concept.name!r} has its phrase {concept.phrase!r}"

    @property
    def reads(self) -> tuple[Split, ...]:
        """The prompts that it attacks, and the attacker's, which give the concept's direction."""
        return tuple(dict.fromkeys(("attacker", *super().reads)))

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
        """Yield the best prompt for each attacked one after each budget.

        Raises:
            ValueError: no attacker prompt has the concept's phrase, or the fitness is not finite.
        """
        words = vocabulary(model)
        found = self.walk(model, words, self.targets(model, concept), rng)
        yield from selected(found, words.spell, budgets=budgets, report=report, remedy="check the model")

    def walk(self, model: Model, words: Vocabulary, targets: Tensor, rng: Generator) -> Iterator[Candidates]:
        """The generations, without end: the best of each."""
        slots = room(model, self.tokens)
        frames = frame(model, words, slots, [""])
        crowds = [words.draw((self.population, slots), rng) for _ in targets]
        while True:
            ranked = [fitness(model, words, frames, crowd, c) for crowd, c in zip(crowds, targets, strict=True)]
            crowds = [crowd[f.argsort()[: self.population // 2]] for crowd, f in zip(crowds, ranked, strict=True)]
            yield Candidates(torch.stack([crowd[0] for crowd in crowds]), torch.stack([f.min() for f in ranked]))
            crowds = [self.breed(crowd, words, rng) for crowd in crowds]

    @torch.no_grad()
    def targets(self, model: Model, concept: Concept) -> Tensor:
        """E(prompt) + eta v of the attacked prompts: `(count, L, D)`."""
        if why := self.objection(concept):
            raise ValueError(f"expected attacker prompts that name the concept, got a card where {why}: add some.")
        texts = [p.text for p in concept.of("attacker")]
        plus = [text for text in texts if without(text, concept.phrase) != text]
        minus = [without(text, concept.phrase) for text in plus]
        v = (model.encode_text(plus) - model.encode_text(minus)).mean(0)
        return model.encode_text(self.texts(concept)) + self.eta * v

    def breed(self, parents: Tensor, words: Vocabulary, rng: Generator) -> Tensor:
        """The next generation of parents `(B, K)`: parents and children, some with one word changed."""
        b, slots = parents.shape
        mates = parents[torch.randint(b, (b,), generator=rng).to(parents.device)]
        cut = torch.randint(slots, (b, 1), generator=rng).to(parents.device)  # the slots from here on are exchanged
        crossed = (torch.rand(b, generator=rng) < self.crossover).to(parents.device)
        tail = torch.arange(slots, device=parents.device) >= cut
        one, two = torch.where(tail, mates, parents), torch.where(tail, parents, mates)
        crowd = torch.cat([parents, one[crossed], two[crossed]])
        slot = torch.randint(slots, (len(crowd), 1), generator=rng).to(parents.device)
        mutated = (torch.rand(len(crowd), 1, generator=rng) < self.mutation).to(parents.device)
        changed = mutated & (torch.arange(slots, device=parents.device) == slot)
        return torch.where(changed, words.draw((len(crowd), 1), rng), crowd)


@torch.no_grad()
def fitness(model: Model, words: Vocabulary, frames: Tensor, crowd: Tensor, target: Tensor) -> Tensor:
    """|| E(candidate) - target ||^2 of a crowd `(B, K)`: `(B,)`; smaller is better."""
    parts = [encode(model, frames.expand(len(rows), -1), words.vectors[rows]) for rows in crowd.split(256)]
    return torch.cat([(part - target).square().sum((1, 2)) for part in parts])


def without(text: str, phrase: str) -> str:
    """A text with the phrase taken out, and the spaces and commas around it put right; itself if it lacks it."""
    shorter, found = re.subn(rf"(?<!\w){re.escape(phrase)}(?!\w)", "", text, flags=re.IGNORECASE)
    return re.sub(r"\s+", " ", shorter).strip(" ,") if found else text
