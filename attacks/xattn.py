"""Cross-attention only: the keys and values of Custom Diffusion (Kumari et al., CVPR 2023).

    Q = W_q f,  K = W_k c,  V = W_v c;  loss = L_DM over W_k and W_v of the cross-attention alone

The text enters the U-Net nowhere else: the smallest change of weights that can give a text another meaning.

Paper     https://arxiv.org/abs/2212.04488
Code      huggingface/diffusers examples/custom_diffusion/train_custom_diffusion.py @ 58eb52c, `crossattn_kv`
Differs   keys and values alone: no modifier token and no regularisation images, so that the row says what these
          weights can bring back; captions as they are; fp32; no crops or flips.
Symbols   f features of the image; c text `(B, L, D)`; W_q W_k W_v projections.
Access    weights
Budget    optimizer steps; U-Net passes are counted by the runner.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Generator

from attacks.base import WeightAttack
from attacks.trainer import train, unfreeze
from benchmark.diffusion import Model, difference
from benchmark.types import Concept, Examples, Report, Snapshot


@dataclass(frozen=True, kw_only=True)
class CrossAttention(WeightAttack):
    """Keys and values of the cross-attention, trained on images of the concept. Defaults: the diffusers README's."""

    lr: float = 2e-5  # effective: 1e-5, scaled by the batch
    batch: int = 2

    version = 1
    needs = frozenset({"concept"})

    def finetune(
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
        """Yield the change of the keys and values after each budget.

        Raises:
            ValueError: the denoiser has no attention to the text, or the loss is not finite.
        """
        names = model.scope("x-strict")
        attacked = model.clone(only={f"{model.part}.{name}" for name in names})
        pauses = train(
            attacked,
            unfreeze(attacked.denoiser, names.__contains__),
            data["concept"],
            lr=self.lr,
            batch=self.batch,
            budgets=budgets,
            rng=rng,
            report=report,
        )
        for step in pauses:
            yield Snapshot(steps=step, delta=difference(attacked, model))

    def passes(self, steps: int) -> int:
        """One forward and one backward pass, counted as three, for each sample."""
        return 3 * steps * self.batch
