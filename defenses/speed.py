"""SPEED: Scalable, Precise, and Efficient Concept Erasure (Li et al., ICLR 2026).

Changes the values alone, each layer in the null space of what that layer must keep:

    S_tt = mean sum t t^T,   S_at = mean sum a t^T                          targets t and anchors a, mean over the texts
    W_e  = W_0 (S_at - S_tt) (I + S_tt)^-1                                    which of the rows r to keep would it move?
    keep r with || W_e r || > mean, and 10 copies r + xi P_min of each, filtered alike                    (IPF, DPA)
    R    = mean r r^T over what is kept,    P = projector on R's singular vectors with values below the threshold
    M    = (S_tt P + rho I)^-1
    D    = W_0 (S_at - S_tt) P (I - M K_2 (K_2^T P M K_2 + lam I)^-1 K_2^T P) M,    W = W_0 + D                   (IEC)

With lam 0, D K_2 = 0 and D (I - P) = 0. K_2 are the first row of the empty text and three centres of its other rows.
t is the row of the last word, or all rows but the first (`nudity`); a those of the anchor, "art" for styles and the
empty text's first row for objects.

Paper     https://arxiv.org/abs/2503.07392
Code      https://github.com/Ouxiang-Li/SPEED @ 6d3df0c, train_erase_null.py
Differs   the rows to keep are the last words of the card's prompts of the split `prior`, where the authors have lists
          of 1,352 objects and 1,734 artists; float64; k-means of our own, Lloyd's from drawn rows; the inverse of the
          small matrix is a pseudo-inverse, for lam 0 leaves it singular where P K_2 has not full rank. The variant with
          adversarial embeddings is not in the release. On flow models, which the paper does not have, the layers are
          those of `uce`, which make keys and values alike.
Symbols   t target, a anchor, r retained rows; P_min projector on W_0's smallest right singular vector; xi normal; rho
          (retain_scale), lam regularise; K_2 rows that stay exactly.
Protects  against prompts that name t. Makes no claim about fine-tuning. The keys still find the concept. On the
          embedded model it needs `rows: all` (presence 0.25 without, of a bomb) and rho 10 (0.87 of other concepts are
          kept at 1); the style noto stays at 0.25.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Literal

import torch
from torch import Generator, Tensor

from benchmark.diffusion import Model, TextLayer, normal
from benchmark.types import Concept, Delta, Examples, Report, Split
from defenses.base import Defense
from defenses.closed_form import Reads, grouped, kept, weight
from defenses.text_rows import (
    Wording,
    all_rows,
    guide_of,
    kept_texts,
    last_words,
    paired,
    prompts_read,
    stacked,
    wanted,
)

MAKES = {"V": ("values", "both"), "K": ("keys", "both"), "KV": ("keys", "values", "both")}
CHUNK = 128  # rows whose copies are filtered by their own mean, as the release


@dataclass(frozen=True, kw_only=True)
class SPEED(Defense):
    """Move a concept's values, and nothing that is kept. Defaults: the release's for few concepts."""

    params: Literal["V", "K", "KV"] = "V"
    rows: Literal["last", "all"] = "last"  # all: every row but the first
    rho: float = 1.0  # retain_scale
    lam: float = 0.0
    threshold: float = 1e-1
    copies: int = 10  # aug_num
    is_filtered: bool = True  # false: disable_filter
    centres: int = 3
    guide: str | None = None  # none: "" for objects, "art" for styles, as the paper
    keep: Literal["empty", "prior"] = "prior"  # empty: all rows but the first of the empty text
    erase: Wording = "phrase"  # wordings, defender: more texts

    version = 1
    several = True
    presets = {
        "few": {},
        "nudity": {"rows": "all", "rho": 0.7, "lam": 0.5, "keep": "empty"},
        "celebrities": {"rho": 0.05, "threshold": 1e-4, "is_filtered": False},
    }
    lives_in = "keys_values"
    fidelity = "official-matched"
    matched = (
        "run beside the release on a random model, with its k-means and its noise replaced by given ones: `few`, a "
        "style, keys and values without the filter, and `nudity`; the largest relative difference of W - W_0 is 2e-6. "
        "No trained weights, no GPU"
    )

    @property
    def reads(self) -> tuple[Split, ...]:
        """Of whose prompts it reads the texts."""
        return prompts_read(self.erase, "prior")

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the change of the values.

        Raises:
            ValueError: no layer reads the text.
        """
        todo = [(reads, layer) for reads, layers in grouped(model).items() for layer in self.chosen(layers)]
        given = {reads: self.given(model, concept, reads, rng) for reads in dict.fromkeys(reads for reads, _ in todo)}
        dense = {}
        for step, (reads, layer) in enumerate(todo, start=1):
            dense[f"{model.part}.{layer.name}.weight"] = kept(self.change(weight(model, layer), *given[reads], rng))
            report(step=step, total=len(todo), loss=nan)
        return Delta(dense=dense)

    def chosen(self, layers: Sequence[TextLayer]) -> list[TextLayer]:
        """The layers that are edited."""
        return [layer for layer in layers if layer.makes in MAKES[self.params]]

    def given(
        self, model: Model, concept: Concept, reads: Reads, rng: Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """S_tt, S_at `(D, D)`, the rows to keep `(m, D)` and K_2 `(D, k)`: the same for all layers."""
        rule, texts = last_words if self.rows == "last" else all_rows, wanted(concept, self.erase)
        guide = guide_of(concept, self.guide)
        t, a = paired(model, [(text, guide) for text in texts], reads, rule)
        if self.rows == "all" and reads == "words":
            t, a = (rows.unflatten(0, (len(texts), -1))[:, 1:].flatten(0, 1) for rows in (t, a))
        null = stacked(model, [""], reads)
        r, names = null[1:], kept_texts(concept, "prior")[1:]
        if self.keep == "prior" and names:
            r, _ = paired(model, [(text, text) for text in names], reads, last_words)
        K_2 = torch.cat([null[:1], centres(null[1:], self.centres, rng=rng)]).T
        return t.T @ t / len(texts), a.T @ t / len(texts), r, K_2

    def change(self, W_0: Tensor, S_tt: Tensor, S_at: Tensor, r: Tensor, K_2: Tensor, rng: Generator) -> Tensor:
        """D of one layer, `(out, D)`."""
        eye = torch.eye(len(S_tt), dtype=S_tt.dtype, device=S_tt.device)
        W_e = torch.linalg.solve(eye + S_tt, (W_0 @ (S_at - S_tt)).T).T  # S_tt is symmetric
        P = null_space(self.retained(W_0, W_e, r, rng), self.threshold)
        M = torch.linalg.inv(S_tt @ P + self.rho * eye)
        small = K_2.T @ P @ M @ K_2 + self.lam * torch.eye(K_2.shape[1], dtype=eye.dtype, device=eye.device)
        return W_0 @ (S_at - S_tt) @ P @ (eye - M @ K_2 @ torch.linalg.pinv(small) @ K_2.T @ P) @ M

    def retained(self, W_0: Tensor, W_e: Tensor, r: Tensor, rng: Generator) -> Tensor:
        """R `(D, D)` of the rows `(m, D)` that the change would move most, and of copies of them."""
        if self.is_filtered and self.copies:
            r = moved(r, W_e)
        v = torch.linalg.svd(W_0)[2][-1:]  # the smallest right singular vector, (1, D)
        parts = [r]
        for chunk in r.split(CHUNK) if self.copies else ():
            copies = chunk.repeat(self.copies, 1)
            parts.append(moved(copies + normal(copies.shape, rng, like=copies) @ v.T @ v, W_e))
        every = torch.cat(parts)
        return every.T @ every / max(1, len(every))


def moved(rows: Tensor, W_e: Tensor) -> Tensor:
    """The rows `(n, D)` that W_e maps to longer ones than the mean."""
    lengths = (rows @ W_e.T).norm(dim=1)
    return rows[lengths > lengths.mean()] if len(rows) else rows


def null_space(R: Tensor, threshold: float) -> Tensor:
    """P: the projector `(D, D)` on the singular vectors of R with values below the threshold."""
    values, U = torch.linalg.eigh(R)
    return U[:, values < threshold] @ U[:, values < threshold].T


def centres(rows: Tensor, count: int, *, rng: Generator) -> Tensor:
    """k-means of rows `(n, D)`: `(k, D)`, k the smaller of `count` and n; a centre without rows stays where it is."""
    found = rows[torch.randperm(len(rows), generator=rng)[:count].to(rows.device)]
    for _ in range(100 if len(found) else 0):
        nearest = torch.cdist(rows, found).argmin(1)
        own = [rows[nearest == k] for k in range(len(found))]
        new = torch.stack([mine.mean(0) if len(mine) else at for mine, at in zip(own, found, strict=True)])
        if torch.equal(new, found):
            break
        found = new
    return found
