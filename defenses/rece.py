"""RECE: Reliable and Efficient Concept Erasure (Gong et al., ECCV 2024).

Starts from the paper's UCE; then derives the texts that still mean the concept, in closed form, and erases those, too:

    a   = (rho I + sum W_k^T W_k)^-1 (sum W_k^T W_0) c              minimises sum || W_k a - W_0 c ||^2 + rho || a ||^2
    W_k+1 (lam I + s_e sum a a^T + s_p sum p p^T) = lam W_k + s_e sum (W_k g) a^T + s_p sum (W_k p) p^T

The sums over W go over all layers that read the text; c are all rows of the concept, g those of the guide at the same
places: the first word's goes to the end token of an empty guide. With W_k = W_0 T_k and S = sum W_0^T W_0 it is

    a   = (rho I + T_k^T S T_k)^-1 T_k^T S c,    T_k+1 = T_k U_k,    U_k the map of `closed_form` for a, g and p

The loss reported is the part of W_0 c that the rows derived still bring back, 1 - || W_k a - W_0 c || / || W_0 c ||,
before each step: what an attacker with this formula has.

Paper     https://arxiv.org/abs/2407.12383
Code      https://github.com/CharlesGong12/RECE @ 403a67f, train.py, train_object.py, train_artists.py
Differs   a fixed number of epochs, where the scripts keep the epoch at which NudeNet or a classifier finds least in
          validation images, and none if UCE was better. The objects that UCE erases alone have no step there. S and T
          in float64. The rows to keep are the card's prompts of the split `prior` (`art`), where the authors have a
          list of 1,734 artists. The other two regularisers of the code are left out: no published command uses them. On
          flow models, which the paper does not have, the layers that read the text are those of `uce`.
Symbols   c rows of the concept; g of the guide; p kept; a derived rows; rho regularises a; lam, s_e, s_p as UCE's.
Protects  against prompts that name c, and the rows that the formula derives. Makes no claim about fine-tuning. On the
          embedded model it does not do both: with `keep: prior, erase: defender`, presence and share of retained
          concepts (8 and 23 images) are 0.00 and 0.87 for a bomb at s_p 0.1 and 0.3, 0.00 and 1.00 at 1, where a
          cigarette has 0.25 and 1.00 and the style noto 0.62 and 0.87; all of the base's are 1.00.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan

import torch
from torch import Generator, Tensor

from benchmark.diffusion import Model
from benchmark.types import Concept, Delta, Examples, Report, Split
from defenses.base import Defense
from defenses.closed_form import Change, Reads, edited, gram, grouped, solve
from defenses.text_rows import Keep, Wording, all_rows, guide_of, kept_texts, paired, prompts_read, stacked, uce, wanted


@dataclass(frozen=True, kw_only=True)
class RECE(Defense):
    """UCE, and then what still means the concept. Defaults: the release's for hard objects and for styles."""

    epochs: int = 1  # 0: UCE
    rho: float = 1e-3  # regular_scale
    lam: float = 0.1
    s_e: float = 1.0
    s_p: float = 0.1
    guide: str | None = None  # none: "" for objects, "art" for styles, as the scripts
    keep: Keep = "empty"  # prior: the empty text and the card's prompts of that split
    erase: Wording = "phrase"  # wordings, defender: more texts, each with its own derived rows

    version = 1
    several = True
    presets = {
        "object": {},
        "easy": {"rho": 0.1},  # English springer, golf ball, parachute
        "art": {"keep": "prior"},
        "nudity": {"rho": 0.1, "epochs": 3},
        "unsafe": {"rho": 0.1, "epochs": 2},  # the eleven words of I2P
    }
    lives_in = "keys_values"
    fidelity = "official-matched"
    matched = (
        "run beside the release's UCE, derivation and edit on a random model of 8 layers: after one and three epochs, "
        "for an object and a style, the largest relative difference of W - W_0 is 4e-6. No trained weights, no GPU"
    )

    @property
    def reads(self) -> tuple[Split, ...]:
        """Of whose prompts it reads the texts."""
        return prompts_read(self.erase, self.keep)

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the change of the layers that read the text.

        Raises:
            ValueError: no layer reads the text.
        """
        groups, guide = grouped(model), guide_of(concept, self.guide)
        pairs, texts = [(text, guide) for text in wanted(concept, self.erase)], kept_texts(concept, self.keep)
        p = {reads: stacked(model, texts, reads) for reads in groups}
        rows = {reads: paired(model, pairs, reads, all_rows) for reads in groups}
        S = {reads: gram(model, layers) for reads, layers in groups.items()}
        change = {reads: uce(model, pairs, reads, p[reads], texts) for reads in groups}
        for epoch in range(1, self.epochs + 1):
            left = dict[Reads, float]()
            for reads in groups:
                change[reads], left[reads] = self.step(S[reads], change[reads], *rows[reads], p[reads])
            report(step=epoch, total=self.epochs, loss=left["words"])
        if not self.epochs:
            report(step=1, total=1, loss=nan)
        return edited(model, change)

    def step(self, S: Tensor, T_k: Change, c: Tensor, g: Tensor, p: Tensor) -> tuple[Change, float]:
        """T_k+1, and how much of the concept the rows derived for T_k bring back."""
        a = derived(S, T_k.T, c, self.rho)
        U_k = solve(a, g, p, lam=self.lam, s_e=self.s_e, s_p=self.s_p)
        return T_k.then(U_k), reached(S, T_k.T, a, c)


def derived(S: Tensor, T: Tensor, c: Tensor, rho: float) -> Tensor:
    """a of rows c `(n, D)`, for W_k = W_0 T: `(n, D)`."""
    eye = torch.eye(len(S), dtype=S.dtype, device=S.device)
    return torch.linalg.solve(rho * eye + T.T @ S @ T, T.T @ S @ c.T).T


def reached(S: Tensor, T: Tensor, a: Tensor, c: Tensor) -> float:
    """1 - || W_k a - W_0 c || / || W_0 c ||, over all layers."""
    miss, whole = a @ T.T - c, c
    return float(1 - ((miss @ S * miss).sum() / (whole @ S * whole).sum()).clamp(min=0).sqrt())
