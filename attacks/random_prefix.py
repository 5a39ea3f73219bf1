"""random_prefix: random words in front of the prompt, the control of the white-box prefix searches.

    each step: p' ~ uniform words;  p <- p' if L(p') < L(p),  L(p) = || eps - eps_theta(z_t, t, c_p) ||^2

A search attack means something by how far it exceeds this: as many steps and candidates, the same objective, scenes,
words, timesteps and choice by the same held-out loss as `unlearndiffatk`, but no gradient.

Paper     https://arxiv.org/abs/2310.11868 (its random attacker)
Code      OPTML-Group/Diffusion-MU-Attack @ 5a3e5d3, src/attackers/random_.py
Differs   the release draws an image with each prefix and stops at the first that its classifier accepts; here the
          held-out loss chooses, as it does in `unlearndiffatk`, and images of fresh seeds are judged.
Access    queries: of the noise prediction, without gradients.
Budget    steps of two forward passes for each prompt, the old and the new prefix on the same t and eps; a step of
          `unlearndiffatk` is a forward and a backward pass, which cost about half as much again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.held_out import Best, Candidates, selected
from attacks.prompt_search import DenoisingSearch, each_encoded
from attacks.search import Vocabulary, denoising, encode, frame, parts, room, vocabulary
from benchmark.diffusion import Model, normal
from benchmark.types import PROMPT, Concept, Examples, Report, Snapshot


@dataclass(frozen=True, kw_only=True)
class RandomPrefix(DenoisingSearch):
    """Keep the better of two random prefixes, over and over. Defaults as in `unlearndiffatk`."""

    tokens: int = 3
    timesteps: int = 50

    version = 2
    access = "queries"
    presets = {"nudity": {"tokens": 5}}

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
        """Yield the best prefix for each attacked prompt after each budget.

        Raises:
            ValueError: the loss is not finite.
        """
        words, slots = vocabulary(model), room(model, self.tokens)
        texts, z_0 = self.scenes(model, concept, data["concept"])
        frames, pairs = frame(model, words, slots, texts), self.pairs(model, texts, z_0)
        wanted = pairs.targets(model)
        yield from selected(
            self.walk(model, words, frames, z_0, rng),
            lambda rows: [f"{prefix} {PROMPT}" for prefix in words.spell(rows)],
            best=Best([PROMPT] * len(texts), pairs.loss(model, each_encoded(model, texts), wanted)),
            judge=lambda rows: pairs.loss(model, encode(model, frames, words.vectors[rows]), wanted),
            every=self.every,
            budgets=budgets,
            report=report,
            remedy="check the model",
        )

    @torch.no_grad()
    def walk(
        self, model: Model, words: Vocabulary, frames: Tensor, z_0: Tensor, rng: Generator
    ) -> Iterator[Candidates]:
        """The steps of the search, without end: the better of the last one and a new one."""
        kept = words.draw((len(z_0), room(model, self.tokens)), rng)
        while True:
            tried = words.draw(kept.shape, rng)
            t = model.middles(self.timesteps, len(z_0), rng=rng)
            eps = normal(z_0.shape, rng, like=z_0)
            losses = []
            for part in parts(len(z_0)):
                text = encode(model, frames[part].repeat(2, 1), words.vectors[torch.cat([kept[part], tried[part]])])
                scene, noise = z_0[part].repeat(2, 1, 1, 1), eps[part].repeat(2, 1, 1, 1)
                losses.append(denoising(model, scene, noise, t[part].repeat(2), text).reshape(2, -1))
            old, new = torch.cat(losses, 1)
            kept = torch.where((new < old)[:, None], tried, kept)
            yield Candidates(kept, torch.minimum(old, new))

    def each(self, steps: int) -> int:
        """Two forward passes a step, and the choice."""
        return 2 * steps + self.checked(steps)
