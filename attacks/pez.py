"""PEZ: hard prompts made easy, searched in the text encoder alone (Wen et al., NeurIPS 2023).

    loss = 1 - cos(f(begin, P(e_1), ..., P(e_N), end), f(prompt)),   f the hidden state at the end of a text
    P(e) the token vector nearest to e by cosine;   e <- AdamW(e, gradient of the loss at P(e))

The best projection so far is what is found.

Paper     https://arxiv.org/abs/2302.03668
Code      YuxinWenRick/hard-prompts-made-easy @ f22a1be, optim_utils.py
Differs   pez with a text target: the paper matches CLIP's embedding of an image, and Stable Diffusion has CLIP's
          text half alone, without the projection; one prompt is found for each attacked prompt; words of the
          concept's phrase are left out, as with a text target they would be the answer; only words that survive
          being typed; fp32.
Symbols   N tokens; e continuous word vectors.
Access    text encoder: the base's, once; the prompts are replayed on every defense.
Budget    steps of `count` passes through the text encoder, forward and backward; none through the U-Net.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator
from torch.nn import functional as F

from attacks.base import PromptAttack
from attacks.search import evenly, finite, frame, meaning, room, sentence, vocabulary
from benchmark.diffusion import Model
from benchmark.types import Concept, Examples, Report, Requirement, Snapshot


@dataclass(frozen=True, kw_only=True)
class PEZ(PromptAttack):
    """Search prompts that mean the same to the text encoder. Defaults: the release's."""

    tokens: int = 16  # N
    count: int = 4  # prompts at once
    lr: float = 0.1
    weight_decay: float = 0.1

    version = 1
    access = "text encoder"

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """Words, since they are searched for."""
        return ("words",)

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
        """Yield one whole prompt for each attacked one after each budget.

        Raises:
            ValueError: the card has no attacker prompts, or the loss is not finite.
        """
        words, slots = vocabulary(model, without=concept.phrase), room(model, self.tokens)
        target = meaning(model, evenly([p.text for p in concept.of("attacker")], self.count))
        frames = frame(model, words, slots, [""])
        e = words.vectors[words.draw((len(target), slots), rng)].clone()
        optimizer = torch.optim.AdamW([e], lr=self.lr, weight_decay=self.weight_decay)
        best, least = words.nearest(e), torch.full((len(target),), torch.inf, device=e.device)
        for step in range(1, max(budgets) + 1):
            rows = words.nearest(e)
            vectors = words.vectors[rows].requires_grad_()
            loss = 1 - F.cosine_similarity(sentence(model, frames, vectors), target)
            value = finite(loss, step, f"lower lr ({self.lr})")
            best = torch.where((loss < least)[:, None], rows, best)
            least = torch.minimum(loss.detach(), least)
            (e.grad,) = torch.autograd.grad(loss.sum(), vectors)
            optimizer.step()
            report(step=step, total=max(budgets), loss=value)
            if step in budgets:
                yield Snapshot(steps=step, prompts=words.spell(best))
