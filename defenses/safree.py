"""SAFREE: Training-Free and Adaptive Guard for Safe Text-to-Image and Video Generation (Yoon et al., ICLR 2025).

Finds the tokens of a prompt that carry the concept, and turns their rows away from it, for the first steps:

    P_X  = X pinv(X^T X) X^T                     projects onto the columns of X
    C    = pooled encodings of the concept's phrases, one a column
    I    = pooled encodings p_i of the prompt with token i masked, i = 1 ... n
    d_i  = ||(1 - P_C) p_i||;  token i triggers if d_i >= (1 + alpha) mean of the other d_j
    e_i <- (1 - P_C) P_I e_i                     rows of the triggers; all others stay
    b    = 1 - mean cosine of e and (1 - P_C) P_I e, over the rows of the text with its ends
    the filtered text is read at step k of 50 if k <= round(10 sigmoid(2 k_0 (10 b - t_0)))

Paper     https://arxiv.org/abs/2410.12761
Code      jaehong31/SAFREE @ b8b2c3f, models/modified_stable_diffusion_pipeline.py
Differs   the release also sets the concept's phrases as the negative prompt, as its published numbers have it:
          `negative: true`, the default; `text-only` leaves that out. Its latent re-attention is never reached, and is
          left out. A prompt of one token has no others, and no trigger. The order of the projections is the code's; the
          paper's is P_I (1 - P_C). Steps count as shares of 50. Which rows trigger has no gradient, nor have the
          projections. Stable Diffusion 1 and 2 alone: of SDXL the release edits the second encoder's half.
Symbols   e rows of the prompt's encoding; k_0, t_0 slope and threshold of the self-validating filter.
Protects  against prompts, while the guard is there. Who draws on his own leaves it out. On the embedded model, at its
          guidance of 3, presence in 16 images of a bomb goes from 1 to 0.88, to 0.75 without the validation, and to
          0.44 where a margin of -0.1 makes nearly every token a trigger; without the negative prompt it stays at 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmark.diffusion import Course, Model
from benchmark.guard import STEPS, Guard
from benchmark.types import Concept, Requirement
from defenses.base import GuardDefense


@dataclass(frozen=True, kw_only=True)
class Filter(Guard):
    """A text as it is read: filtered rows `(L, D)`, the plain rows below them, and a row of the last filtered step."""

    phrases: tuple[str, ...]
    margin: float  # alpha
    slope: float
    t_0: float
    validated: bool
    negative: bool

    def read(self, model: Model, texts: Sequence[str]) -> Tensor:
        """`(B, 2 L + 1, D)`."""
        return self.read_words(model, model.words(model.ids(texts)))

    def read_words(self, model: Model, words: Tensor) -> Tensor:
        """`(B, 2 L + 1, D)` of word vectors `(B, L, D')`; gradients go through the rows alone.

        Raises:
            ValueError: the model has more than one text encoder.
        """
        if len(model.readers) != 1 or model.listeners:
            raise ValueError(
                f"expected a model with one text encoder, got {type(model).__name__}: choose another guard."
            )
        text = model.encode_words(words)
        with torch.no_grad():
            P_C = projection(torch.stack([pooled(model, [phrase])[0] for phrase in self.phrases], dim=1))
        found = [self.filtered(model, w, e, P_C) for w, e in zip(words, text, strict=True)]
        return torch.stack(found)

    def filtered(self, model: Model, words: Tensor, e: Tensor, P_C: Tensor) -> Tensor:
        """One text `(2 L + 1, D)`."""
        end = end_of(model, words)
        turned, is_trigger, b = (
            e,
            torch.zeros(len(e), dtype=torch.bool, device=e.device),
            torch.zeros((), device=e.device),
        )
        if end > 1:  # it has a token
            with torch.no_grad():
                p = masked(model, words, end)
                away = torch.eye(len(P_C), dtype=P_C.dtype, device=e.device) - P_C
                M = (away @ projection(p.T)).to(e)
                is_trigger[1:end] = triggers((away @ p.double().T).norm(dim=0), self.margin)
            turned = e @ M.T
            b = 1 - F.cosine_similarity(e[: end + 1], turned[: end + 1], dim=-1).detach().mean()
        last = torch.round(10 * torch.sigmoid(2 * self.slope * (10 * b - self.t_0)))
        last = last if self.validated else torch.full_like(b, STEPS)
        rows = torch.where(is_trigger[:, None], turned, e)
        return torch.cat([rows, e, last.expand(1, e.shape[1])])

    def course(self, model: Model, text: Tensor, null: Tensor, scale: float) -> Course:
        """The filtered text first, then the plain one."""
        rows = (text.shape[1] - 1) // 2
        safe, plain, last = text[:, :rows], text[:, rows : 2 * rows], text[:, -1:, :1]
        empty = null[:, rows : 2 * rows]
        if self.negative:
            empty = model.encode_text([", ".join(self.phrases)]).expand_as(plain)

        def predict(z_t: Tensor, t: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
            early = done.to(last).reshape(-1, 1, 1) * STEPS <= last
            return z_t, model.guided(z_t, t, torch.where(early, safe, plain), empty, scale)

        return predict


@dataclass(frozen=True, kw_only=True)
class SAFREE(GuardDefense):
    """Filter the tokens that carry a concept. Defaults: the release's, for one phrase."""

    words: tuple[str, ...] = ()  # none: the phrase; the release's 17 phrases for nudity are the user's to bring
    margin: float = 0.01  # alpha
    slope: float = 3.5  # k_0: 2.5 for nudity
    t_0: float = 5.5  # 5.333 for nudity
    validated: bool = True  # false: the filtered text at every step
    negative: bool = True

    version = 1
    several = True
    guarding = Filter
    presets = {"release": {}, "text-only": {"negative": False}, "nudity": {"slope": 2.5, "t_0": 5.333}}
    fidelity = "reimplemented"
    matched = "its identities hold on a random model; its code was read, not run"

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """Words to mask, and with `negative` guidance away from a second text."""
        return ("words", "null") if self.negative else ("words",)

    def guard(self, concept: Concept) -> Filter:
        """The guard with the concept's phrases."""
        own = {name: getattr(self, name) for name in ("margin", "slope", "t_0", "validated", "negative")}
        return Filter(phrases=self.words or concept.phrases, **own)


def projection(X: Tensor) -> Tensor:
    """P_X `(D, D)` in float64 of columns `(D, m)`."""
    X = X.double()
    return X @ torch.linalg.pinv(X.T @ X, hermitian=True) @ X.T


def pooled(model: Model, texts: Sequence[str]) -> Tensor:
    """The row of the end token of each text, `(B, D)`."""
    ends = model.stretches(texts)[0].ends
    return model.encode_text(texts)[torch.arange(len(ends), device=ends.device), ends]


def end_of(model: Model, words: Tensor) -> int:
    """Where a text given as word vectors `(L, D)` ends: its first end token, or its last row."""
    end = model.words(torch.tensor([int(model.tokenizer.eos_token_id)], device=words.device))[0]
    is_end = (words == end).all(dim=-1).tolist()
    return is_end.index(True) if any(is_end) else len(is_end) - 1


def masked(model: Model, words: Tensor, end: int) -> Tensor:
    """p_1 ... p_n `(n, D)`: each token's vector replaced by that of token 0."""
    zero = model.words(torch.zeros(1, dtype=torch.long, device=words.device))[0]
    places = torch.arange(1, end, device=words.device)
    copies = words.repeat(len(places), 1, 1)
    copies[torch.arange(len(places)), places] = zero
    return model.encode_words(copies)[:, end]


def triggers(d: Tensor, alpha: float) -> Tensor:
    """Which of d `(n,)` are at least 1 + alpha times the mean of the others; none of one."""
    if len(d) < 2:
        return torch.zeros(len(d), dtype=torch.bool, device=d.device)
    return d >= (1 + alpha) * (d.sum() - d) / (len(d) - 1)
