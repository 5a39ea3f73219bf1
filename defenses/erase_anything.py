"""EraseAnything: concept erasure for rectified-flow transformers (Gao et al., ICML 2025).

Trains adapters on the text's queries and keys of joint attention. Steps take turns:

    even   v_tgt = v_0(z_s | null) - eta [v_0(z_s | c) - v_0(z_s | null)]
           L     = || v_th(z_s | c) - v_tgt ||^2 + lambda sum_l || a_l(c) ||                          (erase)
    odd    L     = mu L_FM(safe) + nu log [ e_s / (e_s + sum_i e_i) ],  e_w = exp(<a(c), a(w)> / tau)  (keep)

a_l(w) is how much each image token attends to the words of w in block l (`defenses.joint`); a(w) is all of them in a
row, with norm 1. The contrast is reversed: the concept's map leaves that of its synonym s, and joins those of
irrelevant words i. L_FM is the loss of flow matching. z_s is sampled with the prompt c.

Paper     https://arxiv.org/abs/2412.20413
Code      https://github.com/tomguluson92/EraseAnything @ 67d8c0b, by notes on it
Differs   v_0 is the frozen base (the release asks the transformer in training, adapters on); z_s is stopped at its own
          time s (the release samples to the end, then draws a time); a map is a share of the softmax over all tokens,
          the mean of heads, its norm Euclidean; irrelevant words are a field (the release asks a language model), the
          synonym is the card's first wording, or "a kind of" the phrase; what is kept is drawn from the card's safe
          prompts; the rest is its script's. The release is for FLUX.1-dev alone.
Symbols   v_0 frozen velocity; v_th trained velocity; c concept; s, i words; eta, lambda, mu, nu, tau as above.
Protects  against prompts that name c. Makes no claim about fine-tuning.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from benchmark.diffusion import Model, denoising_loss
from benchmark.model.adapters import add_adapters, low_rank
from benchmark.types import Concept, Delta, Examples, Report, Requirement
from defenses.base import Defense
from defenses.data import draw
from defenses.erasing import away, descend
from defenses.joint import Maps
from defenses.sampling import mean_passes, partial_sample

TARGETS = ("add_q_proj", "add_k_proj")
Drawn = tuple[Tensor, Tensor]  # z_s (B, C, h, w) and s ()


@dataclass(frozen=True, kw_only=True)
class EraseAnything(Defense):
    """Erase a phrase by negative guidance and by attention; defaults are the release's."""

    steps: int = 200
    lr: float = 1e-3
    weight_decay: float = 1e-5
    rank: int = 8
    batch: int = 1
    eta: float = 1.0
    attention: float = 1e-3  # lambda
    keep: float = 0.1  # mu
    contrast: float = 0.1  # nu
    tau: float = 0.07
    irrelevant: tuple[str, ...] = ("a river", "a letter", "a chair")  # reconstructed: three, from a language model
    start_guidance: float = 3.0
    ddim_steps: int = 28  # reconstructed: what FLUX.1-dev is usually drawn in

    version = 1
    needs = frozenset({"safe"})
    fidelity = "reconstructed"
    matched = (
        "turns, losses, weights, trained layers, optimizer and constants as in notes on the release; ours are the norm "
        "of a map, the words of the contrast and what is kept. Nothing was run beside it"
    )

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the adapters that erase `concept.phrase`.

        Raises:
            ValueError: this model has no projections of the text's own, or the loss is not finite.
        """
        edited = model.clone(only=())
        layers = add_adapters(edited, rank=self.rank, alpha=self.rank, targets=TARGETS, rng=rng)
        theta = [p for p in edited.denoiser.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(theta, lr=self.lr, weight_decay=self.weight_decay)
        words = (concept.phrase, next(iter(concept.wordings), f"a kind of {concept.phrase}"), *self.irrelevant)
        rows = [model.rows_of(word) for word in words]
        with torch.no_grad():
            texts, null = model.encode_text(words), model.encode_text([""])
        safe = draw(model, data["safe"], self.batch, rng=rng)
        blocks = sum(name.endswith("add_k_proj") for name in layers)

        def losses() -> Iterator[Tensor]:
            for i in range(self.steps):
                drawn = self.draw(edited, texts[:1], null, rng)
                if i % 2 == 0:
                    yield self.erase(edited, model, drawn, texts[:1], null, rows[0], blocks)
                else:
                    kept = self.keep * denoising_loss(edited, *next(safe), rng=rng)
                    yield kept + self.contrast * self.reverse(edited, drawn, texts, rows, blocks)

        descend(optimizer, losses(), report, total=self.steps)
        return low_rank(layers, edited.part)

    def draw(self, model: Model, c: Tensor, null: Tensor, rng: Generator) -> Drawn:
        """z_s and s: from noise with prompt c, stopped at a random step."""
        how = {"ddim_steps": self.ddim_steps, "guidance": self.start_guidance, "rng": rng}
        return partial_sample(model, c, null, batch=self.batch, sampler="ddim", **how)  # type: ignore[arg-type]

    def erase(
        self, edited: Model, model: Model, drawn: Drawn, c: Tensor, null: Tensor, rows: Sequence[int], blocks: int
    ) -> Tensor:
        """The loss of an even step, for c and null `(1, L, D)`."""
        z, s = drawn
        c, null = c.expand(len(z), -1, -1), null.expand(len(z), -1, -1)
        target = away(model, z, s, c, null, self.eta)
        with Maps(edited, [rows] * len(z), blocks) as maps:
            v = edited.predict(z, s, c)
        attention = torch.stack([a.norm(dim=-1).mean() for a in maps.found]).sum()
        return F.mse_loss(v, target) + self.attention * attention

    def reverse(self, edited: Model, drawn: Drawn, texts: Tensor, rows: Sequence[Sequence[int]], blocks: int) -> Tensor:
        """The reversed contrast, for the texts of concept, synonym and irrelevant words `(W, L, D)`; first sample."""
        z, s = drawn
        with Maps(edited, rows, blocks) as maps:
            edited.predict(z[:1].expand(len(texts), -1, -1, -1), s, texts)
        a = F.normalize(torch.cat(maps.found, dim=-1), dim=-1)  # (W, blocks N)
        return (a[1:] @ a[0] / self.tau).log_softmax(0)[0]

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """Joint attention."""
        return ("joint",)

    def passes(self) -> int:
        """All steps draw; an even one has three predictions and a backward pass, an odd one trains on each word."""
        drawn = mean_passes("ddim", self.ddim_steps, self.start_guidance)
        even, odd = -(-self.steps // 2), self.steps // 2
        words = 2 + len(self.irrelevant)
        return round(self.steps * self.batch * drawn + even * 5 * self.batch + odd * 3 * (self.batch + words))
