"""TRCE: Towards Reliable Malicious Concept Erasure in Text-to-Image Diffusion Models (Chen et al., ICCV 2025).

Stage 1 maps the first end token of texts with the concept onto that of the same texts with its anchor, in the keys and
values; stage 2 trains the self-attention and the queries to turn early steps toward the anchor:

    W'   = (1/n sum W e_a e_c^T + s_p W P)(1/n sum e_c e_c^T + s_p P + lam I)^-1,   s_p = s^2
    L    = 1/2 sum_{x in {c, null}} max(0, d(x, prefer) - d(x, reject) + margin)
           + preserve (0.01 + sum_k || eps_th(z_k|null) - eps_1(z_k|null) ||^2) / K
    d(x, y) = || eps_th(z_t|x) - y ||^2,   prefer, reject = eps_0(a) + w (eps_0(a) - eps_0(null)), the same of c

The base draws z_t with prompt c and guidance `start_guidance`, stopped early; and z_k without a prompt.

Paper     https://arxiv.org/abs/2503.07389
Code      https://github.com/ddgoodgood/TRCE @ 0da9b71
Differs   one concept and its anchor in thirty captions of ours, where the release has lists of 20 and more in 15. P is
          of the card's prompts of the split `prior`, a caption's sum in the mean, where it has 30,000 captions of COCO:
          they fill the space, and need no lam, which is ours. An end token stands where it stands; the release counts
          words, and misses it behind a word of several tokens. Trajectories are drawn as they are needed, not stored
          and read again. Its t is that of the step which led to z_t, one too noisy (`times: release`), or that of z_t
          (`own`). Gradients are never zeroed there, and so add up over all steps (`accumulate`).
Symbols   e_c, e_a rows of first end tokens; P second moment of rows that stay; eps_0 the base, eps_1 after stage 1,
          eps_th trained; c concept, a anchor; w `prefer_guidance`.
Protects  against prompts that mean c without naming it. Makes no claim about fine-tuning: keys, values, queries and the
          self-attention can be put back from the base.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import nan
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from benchmark.diffusion import Model, difference, normal, sample
from benchmark.types import Concept, Delta, Examples, Report, Requirement, Split
from defenses.base import Defense, Part
from defenses.closed_form import Change, Reads, edited, grouped, solve
from defenses.erasing import anchor_of, descend, student
from defenses.templates import filled, templates
from defenses.text_rows import Pair, Span, kept_texts, paired, prompts_read, stacked


@dataclass(frozen=True, kw_only=True)
class TRCE(Defense):
    """Map the end of a text with the concept, then turn early steps. Defaults: the release's for nudity."""

    anchor: str | None = None  # none: the card's subject; styles: "art" in the release
    texts: Literal["templates", "defender"] = "templates"  # defender: the card's prompts of that split
    s: float = 0.01
    lam: float = 0.01
    steps: int = 300  # 3 epochs of 100 trajectories; 0: stage 1 alone
    lr: float = 1e-6
    weight_decay: float = 1e-2
    margin: float = 0.01
    preserve: float = 100.0
    reg_batch: int = 4  # K
    prefer_guidance: float = 15.0
    start_guidance: float = 3.0
    ddim_steps: int = 50
    early: float = 0.5  # the share of the trajectory that z_t is taken from
    times: Literal["release", "own"] = "release"
    accumulate: bool = True

    version = 1
    presets = {"release": {}, "mended": {"times": "own", "accumulate": False}, "stage-1": {"steps": 0}}
    fidelity = "reimplemented"
    matched = "equations and settings read in the release; nothing was run beside it. The prior is the card's"

    @property
    def removable(self) -> Part | None:
        """Stage 1 lives in the keys and values."""
        return None if self.steps else "keys_values"

    @property
    def reads(self) -> tuple[Split, ...]:
        """Of whose prompts it reads the texts."""
        return prompts_read("defender" if self.texts == "defender" else "phrase", "prior" if self.s else "none")

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the change of both stages.

        Raises:
            ValueError: no layer reads the text, M is singular, or the loss is not finite.
        """
        to = anchor_of(concept, self.anchor)
        first = edited(model, {reads: self.mapped(model, concept, to, reads) for reads in grouped(model)})
        if not self.steps:
            report(step=1, total=1, loss=nan)
            return first
        mapped = model.with_delta(first)
        learner, theta = student(mapped, trained(model))
        optimizer = torch.optim.AdamW(theta, lr=self.lr, weight_decay=self.weight_decay)
        sums = [torch.zeros_like(p) for p in theta]

        def add_up() -> None:
            for p, total in zip(theta, sums, strict=True):
                if p.grad is not None:
                    p.grad = total.add_(p.grad).clone()

        losses = self.losses(learner, mapped, model, (concept.phrase, to), rng)
        descend(optimizer, losses, report, total=self.steps, before=add_up if self.accumulate else None)
        return difference(learner, model)

    def mapped(self, model: Model, concept: Concept, to: str, reads: Reads) -> Change:
        """T - I of stage 1."""
        pairs, prior = filled(concept, templates(concept, self.texts), to), kept_texts(concept, "prior")[1:]
        e_c, e_a = paired(model, pairs, reads, first_ends)
        p = stacked(model, prior if self.s else (), reads)
        return solve(e_c, e_a, p, lam=self.lam, s_e=1 / len(e_c), s_p=self.s**2 / max(1, len(prior)))

    def losses(
        self, learner: Model, mapped: Model, model: Model, words: tuple[str, str], rng: Generator
    ) -> Iterator[Tensor]:
        """The losses of all steps; `words` are c and a."""
        with torch.no_grad():
            c, a = (model.encode_text([f"a photo of {word}".removesuffix(" of ")]) for word in words)
            null = model.encode_text([""])
        for _ in range(self.steps):
            z_t, t = self.drawn(model, c, null, rng)
            loss = self.turn(learner, model, z_t, t, c, a, null)
            yield loss + self.preserve * self.kept(learner, mapped, model, null, rng)

    def drawn(self, model: Model, c: Tensor, null: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        """z_t `(1, C, h, w)` of the base after an early step, and t `()`."""
        s = int(torch.randint(round(self.early * self.ddim_steps) + 1, (), generator=rng))
        z_t = self.stopped(model, c, null, min(s, self.ddim_steps - 1), self.start_guidance, rng)
        times = model.trajectory(self.ddim_steps)
        return z_t, times[s if self.times == "release" else min(s + 1, self.ddim_steps - 1)].to(z_t.device)

    def stopped(self, model: Model, c: Tensor, null: Tensor, s: int, guidance: float, rng: Generator) -> Tensor:
        """From noise, after step s of the trajectory, counted from 0."""
        z_T = normal((1, *model.latent_shape), rng, like=c)
        return sample(model, z_T, c, null, steps=self.ddim_steps, guidance=guidance, stop=s + 1)

    def turn(self, learner: Model, model: Model, z_t: Tensor, t: Tensor, c: Tensor, a: Tensor, null: Tensor) -> Tensor:
        """The first term, for z_t `(1, C, h, w)`, t `()`, c, a and null `(1, L, D)`."""
        with torch.no_grad():
            eps_c, eps_a, eps_null = (model.predict(z_t, t, x) for x in (c, a, null))
        prefer, reject = (eps + self.prefer_guidance * (eps - eps_null) for eps in (eps_a, eps_c))
        terms = []
        for x in (c, null):
            eps = learner.predict(z_t, t, x)
            terms.append(F.relu(F.mse_loss(eps, prefer) - F.mse_loss(eps, reject) + self.margin))
        return sum(terms, torch.zeros_like(terms[0])) / 2

    def kept(self, learner: Model, mapped: Model, model: Model, null: Tensor, rng: Generator) -> Tensor:
        """The second term without its weight: predictions without a prompt stay as stage 1 left them."""
        total = torch.tensor(0.01, device=null.device)
        for _ in range(self.reg_batch):
            s = int(torch.randint(self.ddim_steps, (), generator=rng))
            z_k = self.stopped(model, null, null, s, 1.0, rng)
            t = mapped.between(self.ddim_steps - 1 - s, self.ddim_steps, rng=rng).to(z_k.device)
            with torch.no_grad():
                eps_1 = mapped.predict(z_k, t, null)
            total = total + F.mse_loss(learner.predict(z_k, t, null), eps_1)
        return total / self.reg_batch

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """For stage 2 queries of an attention to the text alone."""
        return ("apart",) if self.steps else ()

    def passes(self) -> int:
        """A step draws z_t and K of z_k, asks 3 + K times, and trains 2 + K predictions."""
        drawn = (1 if self.start_guidance == 1 else 2) * (round(self.early * self.ddim_steps) / 2 + 1)
        kept = self.reg_batch * (self.ddim_steps + 1) / 2
        return round(self.steps * (drawn + kept + 3 + self.reg_batch + 3 * (2 + self.reg_batch)))


def first_ends(c: Tensor, g: Tensor, of_c: list[Span], of_g: list[Span]) -> Pair:
    """The row of the first end token of each, for each stretch: two of `(k, D)` of two `(N, D)`."""
    return torch.stack([c[one.start + one.end] for one in of_c]), torch.stack([g[one.start + one.end] for one in of_g])


def trained(model: Model) -> set[str]:
    """The self-attention, and the queries of the attention to the text."""
    return model.scope("selfattn") | {name for name in model.scope("x") if ".to_q." in name}
