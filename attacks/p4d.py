"""P4D: a prompt under which the defended model predicts what the base predicts (Chin et al., ICML 2024).

    loss = || eps_def(z_t, t, c_adv) - eps_base(z_t, t, c) ||^2        c a prompt that names the concept
    c_adv = text encoder(begin, P(e_1), ..., P(e_N), end),   P(e) the token vector nearest to e by cosine
    e <- AdamW(e, gradient of the loss at P(e))

Paper     https://arxiv.org/abs/2309.06135
Code      joycenerd/P4D @ 2cf3cda, prompt_optimization/optimize_n.py
Differs   P4D-N only, the variant that searches a whole prompt (P4D-K, which inserts a token after every third, is left
          out); the projection every tenth step is a candidate, and the least held-out gap among them and the prompt
          itself is handed over, where the code draws an image every 50 steps and keeps the prompt whose image is
          nearest to the target's by CLIP, and counts any of 3 images at the row's seed as success; one image of the
          base is denoised (theirs: the unsafest of 3); mean latents; only words that survive being typed; the text is
          padded in the search as it is when drawing; fp32.
Symbols   eps_def defended predictor; eps_base undefended predictor; N tokens; e continuous word vectors.
Access    gradients: of the defended model, beside the base.
Budget    steps of a forward pass of the base, a forward and a backward pass of the defended for each prompt.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from attacks.held_out import Best, Candidates, selected
from attacks.prompt_search import DenoisingSearch, each_encoded
from attacks.search import Vocabulary, encode, frame, room, slopes, vocabulary
from benchmark.diffusion import Model, normal
from benchmark.types import PROMPT, Concept, Examples, Report, Snapshot


@dataclass(frozen=True, kw_only=True)
class P4D(DenoisingSearch):
    """Search whole prompts that close the gap to the base. Defaults: the release's P4D-N."""

    tokens: int = 16  # N
    lr: float = 0.1
    weight_decay: float = 0.1

    version = 2
    access = "gradients"
    uses_base = True

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
            ValueError: the loss is not finite.
        """
        words, slots = vocabulary(model), room(model, self.tokens)
        texts, z_0 = self.scenes(base, concept, data["concept"])
        c = each_encoded(base, texts)
        frames = frame(model, words, slots, [""] * len(texts))
        pairs = self.pairs(model, texts, z_0)
        wanted = pairs.predicted(base, c)
        yield from selected(
            self.walk(model, base, words, frames, z_0, c, rng),
            words.spell,
            best=Best([PROMPT] * len(texts), pairs.loss(model, each_encoded(model, texts), wanted)),
            judge=lambda rows: pairs.loss(model, encode(model, frames, words.vectors[rows]), wanted),
            every=self.every,
            budgets=budgets,
            report=report,
            remedy=f"lower lr ({self.lr})",
        )

    def walk(
        self, model: Model, base: Model, words: Vocabulary, frames: Tensor, z_0: Tensor, c: Tensor, rng: Generator
    ) -> Iterator[Candidates]:
        """The steps of the search, without end: the projection after each."""
        e = words.vectors[words.draw((len(z_0), room(model, self.tokens)), rng)].clone()
        optimizer = torch.optim.AdamW([e], lr=self.lr, weight_decay=self.weight_decay)
        while True:
            t = model.times(len(z_0), rng=rng)
            z_t = model.noised(z_0, normal(z_0.shape, rng, like=z_0), t)
            t = t.to(z_t.device)

            def loss_of(part: slice, vectors: Tensor, z_t: Tensor = z_t, t: Tensor = t) -> Tensor:
                return self.loss(model, base, z_t[part], t[part], encode(model, frames[part], vectors), c[part])

            loss, e.grad = slopes(loss_of, words.vectors[words.nearest(e)])
            optimizer.step()
            yield Candidates(words.nearest(e), loss)

    def loss(self, model: Model, base: Model, z_t: Tensor, t: Tensor, c_adv: Tensor, c: Tensor) -> Tensor:
        """Squared gap of the two predictions for each sample, averaged over its elements: `(B,)`."""
        with torch.no_grad():
            wanted = base.predict(z_t, t, c)
        return F.mse_loss(model.predict(z_t, t, c_adv), wanted, reduction="none").flatten(1).mean(1)

    def each(self, steps: int) -> int:
        """Two forward passes and one backward pass, counted as four, a step; the choice, and what the base predicts."""
        return 4 * steps + self.checked(steps) + self.held_out
