"""UCE: Unified Concept Editing in Diffusion Models (Gandikota et al., WACV 2024).

Gives every layer that reads the text a new meaning for the concept's rows c, in closed form: that of a guide's rows g.

    W = (lam W_0 + s_e sum v* c^T + s_p sum W_0 p p^T) (lam I + s_e sum c c^T + s_p sum p p^T)^-1,  v* = W_0 g  (Eq. 7)

Two algorithms have this name. `old`, the paper's, with which the published numbers were made: c are the rows from the
concept's last word to the end of the padding, g as many of the guide's from its last word, and all rows of the empty
text (and of a list) are kept. `new`, the authors' release for diffusers: one row each, that of the last word, and
nothing is kept. The guide of an object is the empty text, whose last word is the begin token; that of a style is "art".

Paper     https://arxiv.org/abs/2308.14761
Code      https://github.com/rohitgandikota/unified-concept-editing @ 28c81ed, uce_sd_erase.py (`new`),
          uce_flux_edit.py; the paper's train_erase.py, as CharlesGong12/RECE @ 403a67f keeps it (`old`)
Differs   solved in float64 by one map for all layers, where the releases invert a matrix in float32 for each; the rows
          to keep are the card's prompts of the split `prior` (`art`), where the authors have a list of 1,734 artists.
          The empty guide is encoded as a blank: the same tokens, but no zeros on SDXL. `technique tensor` of the
          paper's code is left out: no published command uses it. On SDXL the pooled text keeps the concept, as in the
          release. On FLUX and SD 3 the context embedder and the first layer of the pooled text are edited, as in the
          release, but v* is W_0 g without the bias, which is added anyway: the release counts it twice. Of T5's empty
          text the end token is the row, where the release takes the last of the padding.
Symbols   c erased rows; g rows of the guide; p kept rows; lam weight of the old weights; s_e, s_p scales.
Protects  against prompts that name c. Makes no claim about fine-tuning; the same map can be undone in front of the
          layers, see the attack `closed_form_inversion`. On the embedded model `old` with `keep: prior, erase:
          defender` erases objects and keeps all others; the style noto stays at 0.38 of 8 images; `new` changes nothing
          of a bomb, and with `erase: defender` costs a quarter of the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Literal

from torch import Generator

from benchmark.diffusion import Model
from benchmark.types import Concept, Delta, Examples, Report, Split
from defenses.base import Defense
from defenses.closed_form import Change, Reads, edited, grouped, solve
from defenses.text_rows import (
    Keep,
    Wording,
    from_last_words,
    guide_of,
    kept_texts,
    last_words,
    paired,
    prompts_read,
    scale_of,
    stacked,
    wanted,
)


@dataclass(frozen=True, kw_only=True)
class UCE(Defense):
    """Give a concept's rows the meaning of a guide's. Defaults are the paper's (`old`)."""

    rows: Literal["last", "from_last"] = "from_last"  # from_last: the paper's code; last: the release
    lam: float = 0.5  # both
    s_e: float = 1.0  # both
    s_p: float = 0.0  # 0: max(0.1, 1 / number of kept texts), as the paper's code
    guide: str | None = None  # none: "" for objects, "art" for styles, as both
    keep: Keep = "empty"  # prior: the empty text and the card's prompts of that split
    erase: Wording = "phrase"  # wordings, defender: more texts, as the release's expand_prompts

    version = 1
    several = True
    presets = {
        "old": {},
        "art": {"keep": "prior"},
        "new": {"rows": "last", "s_p": 1.0, "keep": "none"},
    }
    lives_in = "keys_values"
    fidelity = "official-matched"
    matched = (
        "run beside both releases on a random model of 8 layers, for an object and a style, with and without texts to "
        "keep: the largest relative difference of W - W_0 is 8e-6 (`new`) and 3e-5 (`old`), in float32. No trained "
        "weights, no GPU; not the script for FLUX"
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
        changes = {reads: self.change(model, concept, reads) for reads in grouped(model)}
        report(step=1, total=1, loss=nan)
        return edited(model, changes)

    def change(self, model: Model, concept: Concept, reads: Reads) -> Change:
        """T - I for the layers that read so."""
        guide, rule = guide_of(concept, self.guide), last_words if self.rows == "last" else from_last_words
        c, g = paired(model, [(text, guide) for text in wanted(concept, self.erase)], reads, rule)
        texts = kept_texts(concept, self.keep)
        p = stacked(model, texts, reads)
        if self.rows == "last" and texts:
            p, _ = paired(model, [(text, text) for text in texts], reads, last_words)
        return solve(c, g, p, lam=self.lam, s_e=self.s_e, s_p=self.s_p or scale_of(texts))
