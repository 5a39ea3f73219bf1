"""MACE: Mass Concept Erasure in Diffusion Models (Lu et al., CVPR 2024).

Three stages, the first and the last in closed form over the layers that read the text:

    1  W' (lam I + sum e_f e_f^T + s P) = lam W_0 + sum (W_0 e_g) e_f^T + s W_0 P                           (Eq. 1, 2)
    2  L_attn = sum_l || A_l[heads, pixels of the mask, S] ||_F,   over adapters dW of rank 1 on W'         (Eq. 3)
    3  W* (lam I + sum e e^T + s P) = lam W' + sum (W' + dW) e e^T + s W_0 P                                (Eq. 6, 7)

Stage 1 takes from the other words what they know of the concept: e_f are the rows of templates with the concept, but
not the concept's own, e_g those of the same words, end and padding in templates with the mapping concept. Stage 2 takes
the attention of the image's pixels from the concept's own rows and from the end. e are all rows of the templates. P is
the second moment of rows that stay.

Paper     https://arxiv.org/abs/2403.06135
Code      https://github.com/Shilin-LU/MACE @ 057e7a6; its licence is non-commercial: nothing is copied, the templates
          are ours
Differs   the mask is not Grounded-SAM's: pixels that attend to the concept's rows more than the mean does, in the model
          as it was, at the same step and in each layer (`attention`), or all pixels (`none`, the authors' for styles).
          P is of the card's prompts of the split `prior`, scaled to as many rows as the authors' captions of COCO have,
          without their domain's; where s is 0, as for objects, there is none. Stage 1 multiplies by s twice
          (`is_squared`), as the release does for up to 1,000 concepts; the paper does not. One concept a model, so that
          nothing is fused but one adapter. The images are the run's and their latents are not normalised by ImageNet's
          mean, nor cropped. float64 in stages 1 and 3. Stage 2 needs an attention to the text alone: on flow models,
          which the paper does not have, set `lora_steps: 0`.
Symbols   e rows of a text; f with the concept, g with its mapping; A_l attention of layer l; S rows of the concept and
          the end tokens; P prior; lam, s weights; dW adapters.
Protects  against prompts that name the concept. Makes no claim about fine-tuning. On the embedded model stage 1 alone,
          with `texts: defender`, "an emoji" as the mapping and a prior (s 0.01, lam 0.1), erases a bomb and keeps all
          of 23 others; at lam 1e3 without the prior it keeps 0.83, and all stages at lam 1e4 and lora_lr 1e-3 keep
          0.91.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from benchmark.diffusion import Model
from benchmark.types import Concept, Delta, Examples, Report, Split
from defenses.attention import Unattended
from defenses.base import Defense
from defenses.closed_form import Change, Reads, edited, grouped, kept, solve, weight
from defenses.templates import around, filled, templates
from defenses.text_rows import kept_texts, prompts_read, stacked

ROWS = 617_000 * 77  # of the authors' captions: about so many texts


@dataclass(frozen=True, kw_only=True)
class MACE(Unattended, Defense):
    """Remove a concept from the words around it, and attention from its own. Defaults: the release's for `ship`."""

    mapping: str | None = None  # none: "ground" for objects, "art" for styles; the release's for both
    lam: float = 1e3
    s: float = 0.0  # 0: no prior
    is_squared: bool = True  # s twice in stage 1, as the release
    texts: Literal["templates", "defender"] = (
        "templates"  # defender: the card's prompts of that split are the templates
    )

    version = 1
    needs = frozenset({"concept"})
    presets = {
        "object": {},
        "bird": {"lam": 10.0, "mapping": "street"},
        "style": {"lam": 0.0, "s": 1e-4, "lora_lr": 1e-4, "mask": "none"},
        "celebrity": {"lam": 0.0, "s": 1e-4, "lora_lr": 1e-4, "mapping": "a person"},
        "explicit": {
            "lam": 0.0,
            "s": 7e-7,
            "lora_steps": 120,
            "times": "uniform",
            "mapping": "a person wearing clothes",
        },
        "cfr": {"lora_steps": 0},
    }
    lives_in = "keys_values"
    fidelity = "reconstructed"
    matched = "written from the paper; the masks and the prior are ours"

    @property
    def takes_several(self) -> bool:
        """Without stage 2, whose adapters are one concept's."""
        return self.lora_steps == 0

    @property
    def reads(self) -> tuple[Split, ...]:
        """Of whose prompts it reads the texts."""
        return prompts_read("defender" if self.texts == "defender" else "phrase", "prior" if self.s else "none")

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the change of the layers that read the text; the loss reported is L_attn.

        Raises:
            ValueError: no layer reads the text, or, with steps of stage 2, the text shares its attention.
        """
        pairs = [pair for one in concept.each for pair in filled(one, templates(one, self.texts), self.to(one))]
        priors = {reads: self.prior(model, concept, reads) for reads in grouped(model)}
        residual = {reads: self.residual(model, pairs, reads, priors[reads]) for reads in priors}
        first = edited(model, residual)
        adapters = self.unattend(model, model.with_delta(first), pairs, data["concept"], rng=rng, report=report)
        return self.fused(model, adapters, residual, priors, [text for text, _ in pairs]) if adapters else first

    def to(self, concept: Concept) -> str:
        """The mapping concept."""
        return ("art" if concept.kind == "style" else "ground") if self.mapping is None else self.mapping

    def prior(self, model: Model, concept: Concept, reads: Reads) -> Tensor:
        """Rows `(m, D)` whose second moment is P; none if s is 0."""
        rows = stacked(model, kept_texts(concept, "prior")[1:] if self.s else (), reads)
        return rows * (ROWS / max(1, len(rows))) ** 0.5

    def residual(self, model: Model, pairs: list[tuple[str, str]], reads: Reads, prior: Tensor) -> Change:
        """T' - I of stage 1."""
        e_f, e_g = (torch.cat(rows) for rows in zip(*(around(model, pair, reads) for pair in pairs), strict=True))
        return solve(e_f, e_g, prior, lam=self.lam, s_e=1.0, s_p=self.s * (self.s if self.is_squared else 1.0))

    def fused(
        self,
        model: Model,
        adapters: Mapping[str, tuple[Tensor, Tensor]],
        residual: Mapping[Reads, Change],
        priors: Mapping[Reads, Tensor],
        texts: list[str],
    ) -> Delta:
        """W* - W_0 = (W' - W_0) (I - s P M^-1) + dW E^T E M^-1, with M = lam I + E^T E + s P."""
        dense = {}
        for reads, layers in grouped(model).items():
            E, P = stacked(model, texts, reads), priors[reads].T @ priors[reads]
            eye = torch.eye(E.shape[1], dtype=E.dtype, device=E.device)
            M = self.lam * eye + E.T @ E + self.s * P
            Q, lost = (torch.linalg.solve(M, A).T for A in (E.T @ E, self.s * P))  # all three are symmetric
            for layer in layers:
                down, up = adapters[layer.name]
                moved = weight(model, layer) @ residual[reads].dense @ (eye - lost)
                dense[f"{model.part}.{layer.name}.weight"] = kept(moved + (up @ down).to(Q) @ Q)
        return Delta(dense=dense)
