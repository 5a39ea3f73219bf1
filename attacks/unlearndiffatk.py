"""UnlearnDiffAtk: a white-box prefix that makes the defended model denoise the concept (Zhang et al., ECCV 2024).

Fine-tuning nothing, it searches k tokens in front of a prompt, without a second model or a classifier:

    c_adv = text encoder(begin, u_1 V, ..., u_k V, words of the prompt),   u_i in the simplex over the vocabulary
    min over u of  E_eps || eps - eps_theta(z_t, t, c_adv) ||^2
    forward: one word drawn from each u_i;  backward: u.grad = hardtanh(gradient at the drawn one-hot)
    u <- projection to the simplex of Adam(u);  the prefix is argmax u_i

Paper     https://arxiv.org/abs/2310.11868
Code      OPTML-Group/Diffusion-MU-Attack @ 5a3e5d3, src/attackers/text_grad_.py, src/tasks/classifier_.py
Differs   no image is drawn and judged on the way, where the release draws one every 40 steps at the row's own seed and
          stops at the first hit: the argmax every tenth step is a candidate, the least held-out loss among them and
          the bare prompt is handed over, and its images have fresh seeds; the image to denoise is the base's, by the
          run's sampler on a seed of its own (theirs: LMS, 25 steps, the row's); prompts of any length are attacked
          (theirs: up to 60 tokens); t is drawn from the same 50 timesteps at every step, where the code takes 40
          steps at each in turn, so that short budgets see all noise levels; only words that survive being typed, of
          CLIP's 49,408 tokens 34,254; the projection is bisected to the rounding error, not to 1e-5; fp32.
Symbols   V token table; u relaxed one-hots `(K, k, vocabulary)` of K prompts; z_t noisy mean latents of base images.
Access    gradients: of the defended model; the images come from the base.
Budget    steps of a forward and a backward pass for each prompt. `random_prefix` is its control. The weights of u tell
          whether it has chosen: on small models none comes near 1, and argmax u is then a guess.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from attacks.held_out import Best, Candidates, selected
from attacks.prompt_search import DenoisingSearch, each_encoded
from attacks.search import Vocabulary, denoising, encode, frame, room, slopes, vocabulary
from benchmark.diffusion import Model, normal
from benchmark.types import PROMPT, Concept, Examples, Report, Snapshot


@dataclass(frozen=True, kw_only=True)
class UnlearnDiffAtk(DenoisingSearch):
    """Search a prefix by gradients through relaxed one-hots. Defaults: the release's, for styles and objects."""

    tokens: int = 3  # k
    lr: float = 0.01
    weight_decay: float = 0.1
    timesteps: int = 50

    version = 2
    access = "gradients"
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
            remedy=f"lower lr ({self.lr})",
        )

    def walk(
        self, model: Model, words: Vocabulary, frames: Tensor, z_0: Tensor, rng: Generator
    ) -> Iterator[Candidates]:
        """The steps of the search, without end: argmax u after each, and how far u is from a choice."""
        u = torch.full((len(z_0), room(model, self.tokens), len(words.words)), 1 / len(words.words)).to(model.device)
        optimizer = torch.optim.Adam([u], lr=self.lr, weight_decay=self.weight_decay)
        while True:
            t = model.middles(self.timesteps, len(z_0), rng=rng)
            eps = normal(z_0.shape, rng, like=z_0)

            def loss_of(part: slice, vectors: Tensor, t: Tensor = t, eps: Tensor = eps) -> Tensor:
                return denoising(model, z_0[part], eps[part], t[part], encode(model, frames[part], vectors))

            loss, gradient = slopes(loss_of, words.vectors[drawn(u, rng)])
            u.grad = F.hardtanh(gradient @ words.vectors.T)  # the gradient at a one-hot, through its product with V
            optimizer.step()
            u.copy_(simplex(u))
            yield Candidates(u.argmax(-1), loss, {"largest_weight": u.amax(-1).mean(-1)})

    def each(self, steps: int) -> int:
        """One forward and one backward pass, counted as three, a step; and the choice."""
        return 3 * steps + self.checked(steps)


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
