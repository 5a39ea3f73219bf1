"""P4D: a prompt under which the defended model predicts what the base predicts (Chin et al., ICML 2024).

    loss = || eps_def(z_t, t, c_adv) - eps_base(z_t, t, c) ||^2        c a prompt that names the concept
    c_adv = text encoder(begin, P(e_1), ..., P(e_N), end),   P(e) the token vector nearest to e by cosine
    e <- AdamW(e, gradient of the loss at P(e))

Paper     https://arxiv.org/abs/2309.06135
Code      joycenerd/P4D @ 2cf3cda, prompt_optimization/optimize_n.py
Differs   P4D-N only, the variant that searches a whole prompt (P4D-K, which inserts a token after every third, is left
          out); `count` prompts side by side; the current projection is what is found, where the code draws images
          every 50 steps and keeps the prompt whose images are nearest to the target's by CLIP; mean latents; only
          words that survive being typed; the text is padded in the search as it is when drawing; fp32.
Symbols   eps_def defended predictor; eps_base undefended predictor; N tokens; e continuous word vectors.
Access    gradients: of the defended model, beside the base.
Budget    steps of `count` forward passes of the base, `count` forward and `count` backward passes of the defended.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from attacks.base import PromptAttack
from attacks.search import encode, finite, frame, room, scenes, vocabulary
from benchmark.diffusion import Model, normal
from benchmark.types import Concept, Examples, Report, Requirement, Snapshot


@dataclass(frozen=True, kw_only=True)
class P4D(PromptAttack):
    """Search whole prompts that close the gap to the base. Defaults: the release's P4D-N."""

    tokens: int = 16  # N
    count: int = 4  # prompts at once; the release attacks each prompt of its set on its own
    lr: float = 0.1
    weight_decay: float = 0.1

    version = 1
    access = "gradients"
    needs = frozenset({"concept"})
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
        """Yield one whole prompt for each attacked one after each budget.

        Raises:
            ValueError: the loss is not finite.
        """
        words, slots = vocabulary(model), room(model, self.tokens)
        texts, z_0 = scenes(base, data["concept"], self.count)
        with torch.no_grad():
            c = torch.cat([base.encode_text([text]) for text in texts])
        frames = frame(model, words, slots, [""] * len(texts))
        e = words.vectors[words.draw((len(texts), slots), rng)].clone()
        optimizer = torch.optim.AdamW([e], lr=self.lr, weight_decay=self.weight_decay)
        for step in range(1, max(budgets) + 1):
            t = model.times(len(texts), rng=rng)
            z_t = model.noised(z_0, normal(z_0.shape, rng, like=z_0), t)
            vectors = words.vectors[words.nearest(e)].requires_grad_()
            loss = self.loss(model, base, z_t, t.to(z_t.device), encode(model, frames, vectors), c)
            value = finite(loss, step, f"lower lr ({self.lr})")
            (e.grad,) = torch.autograd.grad(loss.sum(), vectors)
            optimizer.step()
            report(step=step, total=max(budgets), loss=value)
            if step in budgets:
                yield Snapshot(steps=step, prompts=words.spell(words.nearest(e)))

    def loss(self, model: Model, base: Model, z_t: Tensor, t: Tensor, c_adv: Tensor, c: Tensor) -> Tensor:
        """Squared gap of the two predictions for each sample, averaged over its elements: `(B,)`."""
        with torch.no_grad():
            wanted = base.predict(z_t, t, c)
        return F.mse_loss(model.predict(z_t, t, c_adv), wanted, reduction="none").flatten(1).mean(1)

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """Words, since they are searched for."""
        return ("words",)

    def passes(self, steps: int) -> int:
        """Two forward passes and one backward pass, counted as four, for each prompt."""
        return 4 * steps * self.count
