"""MMA-Diffusion, text modality: greedy coordinate gradient on the sentence feature (Yang et al., CVPR 2024).

    loss = 1 - cos(f(w_1 ... w_K), f(prompt)),   f the hidden state at the end of a text
    each step, for `batch` candidates: one word is exchanged for a random one of the `top` with the most negative
    gradient at that place; the best candidate is the next prompt

Words that would trip a filter cannot be chosen. The best prompt so far is what is found.

Paper     https://arxiv.org/abs/2311.17516
Code      cure-lab/MMA-Diffusion @ d5701a5, src/textual_attack.py (read, not copied)
Differs   the masked words are those of the concept's phrase, where the paper masks a list for sexual content; the
          release takes for each word the gradient of its left neighbour (its one-hot rows begin with the mark, the
          words do not) and refuses to stay at the same prompt: here word and gradient are of one place, and a
          candidate may equal the prompt; it starts from random words and searches only words that survive being typed,
          so no candidate is lost to re-encoding; no early stop; fp32. The image modality is out of scope.
Symbols   K words w; f the pooled feature, which Stable Diffusion's encoder has without a projection.
Access    text encoder: the base's, once; the prompts are replayed on every defense.
Budget    steps of `batch` + 1 passes through the text encoder for each prompt; none through the U-Net.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from attacks.held_out import Candidates, selected
from attacks.prompt_search import PromptSearch
from attacks.search import Vocabulary, frame, meaning, room, sentence, slopes, vocabulary
from benchmark.diffusion import Model
from benchmark.types import Concept, Examples, Report, Snapshot


@dataclass(frozen=True, kw_only=True)
class MMAText(PromptSearch):
    """Search prompts that mean the same without the words. Defaults: the release's."""

    tokens: int = 20  # K
    batch: int = 512
    top: int = 256

    version = 2
    access = "text encoder"

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
            ValueError: the card has no prompts to attack, or the loss is not finite.
        """
        words = vocabulary(model, without=concept.phrase)
        found = self.walk(model, words, meaning(model, self.texts(concept)), rng)
        yield from selected(found, words.spell, budgets=budgets, report=report, remedy="check the model")

    def walk(self, model: Model, words: Vocabulary, target: Tensor, rng: Generator) -> Iterator[Candidates]:
        """The steps of the search, without end: the best candidate of each."""
        slots = room(model, self.tokens)
        frames = frame(model, words, slots, [""])
        rows = words.draw((len(target), slots), rng)
        while True:
            candidates = self.candidates(rows, gradient(model, words, frames, rows, target), rng)
            with torch.no_grad():
                losses = torch.stack(
                    [distance(model, words, frames, c, f) for c, f in zip(candidates, target, strict=True)]
                )
            loss, chosen = losses.min(1)
            rows = candidates[torch.arange(len(rows)), chosen]
            yield Candidates(rows, loss)

    def candidates(self, rows: Tensor, slope: Tensor, rng: Generator) -> Tensor:
        """Prompts `(n, batch, K)` that differ from rows `(n, K)` in one place, by the gradient `(n, K, V)`."""
        n, slots = rows.shape
        top = (-slope).topk(min(self.top, slope.shape[-1]), dim=-1).indices
        place = (torch.arange(self.batch) * slots // self.batch).to(rows.device)  # every place equally often
        pick = torch.randint(top.shape[-1], (n, self.batch, 1), generator=rng).to(rows.device)
        word = top[:, place].gather(2, pick)
        return rows[:, None].repeat(1, self.batch, 1).scatter(2, place[None, :, None].expand(n, -1, 1), word)


def distance(model: Model, words: Vocabulary, frames: Tensor, rows: Tensor, target: Tensor) -> Tensor:
    """1 - cos(f(rows), target) of rows `(B, K)`, target `(D,)`: `(B,)`."""
    return 1 - F.cosine_similarity(sentence(model, frames, words.vectors[rows]), target)


def gradient(model: Model, words: Vocabulary, frames: Tensor, rows: Tensor, target: Tensor) -> Tensor:
    """How the loss of rows `(n, K)` changes with each one-hot: `(n, K, V)`."""

    def loss_of(part: slice, vectors: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(sentence(model, frames, vectors), target[part])

    return slopes(loss_of, words.vectors[rows])[1] @ words.vectors.T
