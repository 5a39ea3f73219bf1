"""Closed-form inversion: the text whose keys and values on the defended model are those of the concept on the base.

    x = argmin sum || W x - W_0 c ||^2,   W the layers that read the text, W_0 the base's

without any training, by one solve for all rows of all texts, the empty one among them. A defense in closed form gives
all layers one map, W = W_0 T; then x = T^-1 c, and the denoiser answers as the base does, to rounding: the concept has
only moved to another place. Of other changes of these layers x undoes what a text can undo, of none if they stayed.

    kappa = condition number of T as the layers see it: from the eigenvalues of sum W^T W against sum W_0^T W_0

A singular T has no such text. Then kappa is infinite or as large as rounding lets it be, and the attack is refused;
with a ridge it finds the best text that is near, in the measure of the base's layers:

    x = argmin sum || W x - W_0 c ||^2 + ridge sum || W_0 (x - c) ||^2

Paper     none: it follows from the equations of UCE, RECE, MACE's first stage and CURE. With a ridge it is the text
          that RECE derives and erases (Gong et al., ECCV 2024)
Code      none
Symbols   c a row of a text, x what is given in its place; T the defense's map.
Access    weights, and the base's, to find T: a recipe and a text encoder that are public give the same T. After that
          the embedding is all that is given to the model.
Budget    one solve, whatever the grid; nothing is trained, one trajectory an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.base import SamplingAttack
from benchmark.diffusion import Model, TextLayer

SEEN = 1e-12  # share of the largest eigenvalue under which float32 weights see nothing


@dataclass(frozen=True, kw_only=True)
class ClosedFormInversion(SamplingAttack):
    """Give the defended model the text that means on it what the prompt means on the base."""

    max_condition: float = 1e6  # ours: beyond it float32 weights leave rounding alone
    ridge: float = 0.0  # above 0 nothing is refused

    version = 1
    access = "weights"
    uses_base = True
    unit = "solve"
    presets = {"ridge": {"ridge": 1e-4}}

    def budgets(self, asked: Sequence[int]) -> tuple[int, ...]:
        """One solve, whatever is asked."""
        return (1,)

    def begin(
        self,
        model: Model,
        base: Model,
        z_T: Tensor,
        text: Tensor,
        null: Tensor,
        *,
        budget: int,
        steps: int,
        scale: float,
    ) -> tuple[Tensor, int]:
        """The noise itself: what is attacked is the text."""
        return z_T, 0

    @torch.no_grad()
    def ask(self, model: Model, base: Model, text: Tensor) -> Tensor:
        """x of texts `(B, L, D)`.

        Raises:
            ValueError: no text brings the concept back, T is singular; the message has its condition number.
        """
        layers = base.text_layers()
        for reads in dict.fromkeys(layer.reads for layer in layers):
            c = base.text_rows(text, reads)
            x = self.inverted(model, base, [layer for layer in layers if layer.reads == reads], c.double())
            text = base.with_text_rows(text, x.to(text.dtype), reads)
        return text

    def inverted(self, model: Model, base: Model, layers: Sequence[TextLayer], c: Tensor) -> Tensor:
        """x of rows c `(B, N, D)`, for layers that read the same; differs from c only where the base's layers see."""
        S, G, H = (torch.zeros(c.shape[-1], c.shape[-1]).to(c) for _ in range(3))
        for layer in layers:
            W_0, W = (m.denoiser.get_parameter(f"{layer.name}.weight").double() for m in (base, model))
            S += W_0.T @ W_0
            G += W.T @ W
            H += W.T @ (W_0 - W)
        values, vectors = torch.linalg.eigh(S)
        B = vectors[:, values > SEEN * values[-1]] / values[values > SEEN * values[-1]].sqrt()  # B^T S B = I
        A = B.T @ G @ B
        mu = torch.linalg.eigvalsh(A)
        kappa = float((mu[-1] / mu[0].clamp(min=0)).sqrt())
        if not self.ridge and not kappa <= self.max_condition:
            raise ValueError(
                f"expected an invertible map of the text, got a condition number of {kappa:.3g}, above "
                f"{self.max_condition:g}: what is projected out no text brings back; set ridge, or use component_swap."
            )
        return c + c @ H.T @ B @ torch.linalg.solve(A + self.ridge * torch.eye(len(A)).to(A), B.T)
