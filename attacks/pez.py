"""PEZ: hard prompts made easy, searched in the text encoder alone (Wen et al., NeurIPS 2023).

    loss = 1 - cos(f(begin, P(e_1), ..., P(e_N), end), f(prompt)),   f the hidden state at the end of a text
    P(e) the token vector nearest to e by cosine;   e <- AdamW(e, gradient of the loss at P(e))

The best projection so far is what is found.

Paper     https://arxiv.org/abs/2302.03668
Code      YuxinWenRick/hard-prompts-made-easy @ f22a1be, optim_utils.py
Differs   pez with a text target: the paper matches CLIP's embedding of an image, and Stable Diffusion has CLIP's
          text half alone, without the projection; one prompt is found for each evaluation prompt; words of the
          concept's phrase are left out, as with a text target they would be the answer; only words that survive
          being typed; fp32.
Symbols   N tokens; e continuous word vectors.
Access    text encoder: the base's, once; the prompts are replayed on every defense.
Budget    steps of a pass through the text encoder for each prompt, forward and backward; none through the U-Net.
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
class PEZ(PromptSearch):
    """Search prompts that mean the same to the text encoder. Defaults: the release's."""

    tokens: int = 16  # N
    lr: float = 0.1
    weight_decay: float = 0.1

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
        """Yield the best whole prompt for each attacked one after each budget.

        Raises:
            ValueError: the card has no prompts to attack, or the loss is not finite.
        """
        words = vocabulary(model, without=concept.phrase)
        found = self.walk(model, words, meaning(model, self.texts(concept)), rng)
        remedy = f"lower lr ({self.lr})"
        yield from selected(found, words.spell, budgets=budgets, report=report, remedy=remedy)

    def walk(self, model: Model, words: Vocabulary, target: Tensor, rng: Generator) -> Iterator[Candidates]:
        """The steps of the search, without end: the projection before each."""
        slots = room(model, self.tokens)
        frames = frame(model, words, slots, [""])
        e = words.vectors[words.draw((len(target), slots), rng)].clone()
        optimizer = torch.optim.AdamW([e], lr=self.lr, weight_decay=self.weight_decay)
        while True:
            rows = words.nearest(e)

            def loss_of(part: slice, vectors: Tensor) -> Tensor:
                return 1 - F.cosine_similarity(sentence(model, frames, vectors), target[part])

            loss, e.grad = slopes(loss_of, words.vectors[rows])
            yield Candidates(rows, loss)
            optimizer.step()
