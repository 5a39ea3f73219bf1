"""UnlearnDiffAtk: a white-box prefix that makes the defended model denoise the concept (Zhang et al., ECCV 2024).

Fine-tuning nothing, it searches k tokens in front of a prompt, without a second model or a classifier:

    c_adv = text encoder(begin, u_1 V, ..., u_k V, words of the prompt),   u_i in the simplex over the vocabulary
    min over u of  E_eps || eps - eps_theta(z_t, t, c_adv) ||^2
    forward: one word drawn from each u_i;  backward: u.grad = hardtanh(gradient at the drawn one-hot)
    u <- projection to the simplex of Adam(u);  the prefix is argmax u_i

Paper     https://arxiv.org/abs/2310.11868
Code      OPTML-Group/Diffusion-MU-Attack @ 5a3e5d3, src/attackers/text_grad_.py, src/tasks/classifier_.py
Differs   `count` prompts, each with its image, are attacked side by side; t is drawn from the same 50 timesteps at
          every step, where the code takes 40 steps at each in turn, so that short budgets see all noise levels; only
          words that survive being typed; no image is drawn and judged on the way: prefixes are scored in front of
          the evaluation prompts, on fresh seeds; the projection is bisected to the rounding error, not to 1e-5; fp32.
Symbols   V token table; u relaxed one-hots `(count, k, vocabulary)`; z_t noisy mean latents of the base's images.
Access    gradients: of the defended model; the images come from the base.
Budget    steps of `count` forward and `count` backward passes. `random_prefix` is its control.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from attacks.base import PromptAttack
from attacks.search import denoising, encode, finite, frame, room, scenes, vocabulary
from benchmark.diffusion import Model, normal
from benchmark.types import PROMPT, Concept, Examples, Report, Requirement, Snapshot


@dataclass(frozen=True, kw_only=True)
class UnlearnDiffAtk(PromptAttack):
    """Search a prefix by gradients through relaxed one-hots. Defaults: the release's, for styles and objects."""

    tokens: int = 3  # k
    count: int = 4  # prompts at once; the release attacks each prompt of its set on its own
    lr: float = 0.01
    weight_decay: float = 0.1
    timesteps: int = 50

    version = 1
    access = "gradients"
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
        u = torch.full((len(texts), slots, len(words.words)), 1 / len(words.words), device=model.device)
        optimizer = torch.optim.Adam([u], lr=self.lr, weight_decay=self.weight_decay)
        for step in range(1, max(budgets) + 1):
            t = model.middles(self.timesteps, len(texts), rng=rng)
            eps = normal(z_0.shape, rng, like=z_0)
            vectors = words.vectors[drawn(u, rng)].requires_grad_()
            loss = denoising(model, z_0, eps, t, encode(model, frames, vectors))
            value = finite(loss, step, f"lower lr ({self.lr})")
            (gradient,) = torch.autograd.grad(loss.sum(), vectors)
            u.grad = F.hardtanh(gradient @ words.vectors.T)  # the gradient at a one-hot, through its product with V
            optimizer.step()
            u.copy_(simplex(u))
            report(step=step, total=max(budgets), loss=value)
            if step in budgets:
                found = words.spell(u.argmax(-1))
                yield Snapshot(steps=step, prompts=tuple(f"{prefix} {PROMPT}" for prefix in found))

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """Words, since they are searched for."""
        return ("words",)

    def passes(self, steps: int) -> int:
        """One forward and one backward pass, counted as three, for each prompt."""
        return 3 * steps * self.count


def drawn(u: Tensor, rng: Generator) -> Tensor:
    """One row for each distribution: `(B, K)` of `(B, K, V)`."""
    rows = torch.multinomial(u.flatten(0, 1).cpu(), 1, generator=rng)
    return rows.reshape(u.shape[:2]).to(u.device)


def simplex(u: Tensor) -> Tensor:
    """The nearest point of the probability simplex: max(u - mu, 0) with mu such that it sums to 1, by bisection."""
    low, high = u.amin(-1, keepdim=True) - 1, u.amax(-1, keepdim=True)
    for _ in range(40):  # halves an interval of a few units to below float32's precision
        mu = (low + high) / 2
        above = (u - mu).clamp(min=0).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, mu, low), torch.where(above, high, mu)
    return (u - (low + high) / 2).clamp(min=0)
