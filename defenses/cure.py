"""CURE: Concept Unlearning via Orthogonal Representation Editing (Biswas et al., NeurIPS 2025).

Projects the concept out of the text, less what the texts to keep share with it:

    E = U S V^T,   r_i = s_i^2 / sum s^2,   f_i = alpha r_i / ((alpha - 1) r_i + 1),   P = V diag(f) V^T    (Eq. 2 to 6)
    W = W_0 (I - P_f + P_f P_r)                                                                                  (Eq. 7)

for E_f, the rows of what is forgotten, and E_r, of what is kept. One row to forget gives f = 1, whatever alpha: a plain
projection, and a map that nothing can undo in front of the layer.

Paper     https://arxiv.org/abs/2505.12677
Code      none: the authors' repository (2aef62b) holds weights and a script that draws
Differs the paper does not say which rows make E. Here a text gives one row, the mean of those from its first word to
          its last, as a re-implementation that quotes the paper has it (it counts the end token, too); E_f are the
          phrase and the card's wordings, E_r its prompts of the split `prior`. float64. On flow models, which the paper
          does not have, the layers that read the text are those of `uce`.
Symbols   E rows of texts, U S V^T its singular value decomposition; f how much of a direction goes; alpha strength.
Protects  against prompts that name the concept. Makes no claim about fine-tuning. On the embedded model it does not
          erase: with `erase: defender`, 0.75 of 8 images of a bomb still show it at alpha 2, 0.88 at alpha 20, 0.62
          with `rows: words` at alpha 10 or with `keep: none`; what is kept shares the directions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Literal

import torch
from torch import Generator, Tensor

from benchmark.diffusion import Model
from benchmark.types import Concept, Delta, Examples, Report, Split
from defenses.base import Defense
from defenses.closed_form import Change, Reads, edited, grouped
from defenses.text_rows import Wording, encoded, kept_texts, prompts_read, said, wanted


@dataclass(frozen=True, kw_only=True)
class CURE(Defense):
    """Project a concept's directions out of the text. Defaults are the paper's."""

    alpha: float = 2.0
    rows: Literal["mean", "words"] = "mean"  # ours; words: each row for itself
    keep: Literal["none", "prior"] = "prior"  # ours; none: what is shared goes, too
    erase: Wording = "wordings"  # ours

    version = 1
    several = True
    presets = {"paper": {}, "nsfw": {"alpha": 5.0}}
    lives_in = "keys_values"
    fidelity = "reconstructed"
    matched = "the equations are quoted from the paper; which rows they read is ours"

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
        changes = {reads: self.change(model, concept, reads) for reads in grouped(model)}
        report(step=1, total=1, loss=nan)
        return edited(model, changes)

    def change(self, model: Model, concept: Concept, reads: Reads) -> Change:
        """-(P_f - P_f P_r) for the layers that read so."""
        V_f, f = spectrum(self.read(model, wanted(concept, self.erase), reads), self.alpha)
        down = -V_f.T
        if names := kept_texts(concept, self.keep)[1:]:
            V_r, f_r = spectrum(self.read(model, names, reads), self.alpha)
            down = down - down @ V_r * f_r @ V_r.T
        return Change(V_f * f, down)

    def read(self, model: Model, texts: Sequence[str], reads: Reads) -> Tensor:
        """E `(n, D)` of texts."""
        rows = encoded(model, texts, reads)
        if reads == "pooled":
            return rows[:, 0]
        found = []
        for one in model.stretches([said(text) for text in texts]):
            for row, end in zip(rows[:, one.start : one.start + one.ids.shape[1]], one.ends.tolist(), strict=True):
                said_rows = row[: end + 1]
                found.append(said_rows.mean(0, keepdim=True) if self.rows == "mean" else said_rows)
        return torch.cat(found)


def spectrum(E: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """V `(D, k)` and f `(k,)` of rows `(n, D)`."""
    _, s, Vh = torch.linalg.svd(E, full_matrices=False)
    r = s.square() / s.square().sum()
    return Vh.T, alpha * r / ((alpha - 1) * r + 1)
