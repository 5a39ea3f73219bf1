"""random_prefix: random words in front of the prompt, the control of the white-box prefix searches.

    each step: p' ~ uniform words;  p <- p' if L(p') < L(p),  L(p) = || eps - eps_theta(z_t, t, c_p) ||^2

A search attack means something by how far it exceeds this: as many steps, the same objective, scenes, words and
timesteps as `unlearndiffatk`, but no gradient.

Paper     https://arxiv.org/abs/2310.11868 (its random attacker)
Code      OPTML-Group/Diffusion-MU-Attack @ 5a3e5d3, src/attackers/random_.py
Differs   the release draws an image with each prefix and stops at the first that its classifier accepts; here
          the loss chooses, as it does in `unlearndiffatk`, and images of fresh seeds are judged.
Access    queries: of the noise prediction, without gradients.
Budget    steps of 2 `count` forward passes, the old and the new prefix on the same t and eps; a step of
          `unlearndiffatk` is `count` forward and `count` backward passes, which cost about half as much again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator

from attacks.base import PromptAttack
from attacks.search import denoising, encode, finite, frame, room, scenes, vocabulary
from benchmark.diffusion import Model, normal
from benchmark.types import PROMPT, Concept, Examples, Report, Requirement, Snapshot


@dataclass(frozen=True, kw_only=True)
class RandomPrefix(PromptAttack):
    """Keep the better of two random prefixes, over and over. Defaults as in `unlearndiffatk`."""

    tokens: int = 3
    count: int = 4
    timesteps: int = 50

    version = 1
    access = "queries"
    needs = frozenset({"concept"})
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
        """Yield one prefix for each attacked prompt after each budget.

        Raises:
            ValueError: the loss is not finite.
        """
        words, slots = vocabulary(model), room(model, self.tokens)
        texts, z_0 = scenes(model, data["concept"], self.count)
        frames = frame(model, words, slots, texts)
        kept = words.draw((len(texts), slots), rng)
        for step in range(1, max(budgets) + 1):
            tried = words.draw(kept.shape, rng)
            t = model.middles(self.timesteps, len(texts), rng=rng)
            eps = normal(z_0.shape, rng, like=z_0)
            with torch.no_grad():
                text = encode(model, frames.repeat(2, 1), words.vectors[torch.cat([kept, tried])])
                loss = denoising(model, z_0.repeat(2, 1, 1, 1), eps.repeat(2, 1, 1, 1), t.repeat(2), text)
            old, new = loss.chunk(2)
            kept = torch.where((new < old)[:, None], tried, kept)
            report(step=step, total=max(budgets), loss=finite(torch.minimum(old, new), step, "check the model"))
            if step in budgets:
                found = words.spell(kept)
                yield Snapshot(steps=step, prompts=tuple(f"{prefix} {PROMPT}" for prefix in found))

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """Words: its prefixes are judged as the searches judge theirs."""
        return ("words",)

    def passes(self, steps: int) -> int:
        """Two forward passes for each prompt."""
        return 2 * steps * self.count
