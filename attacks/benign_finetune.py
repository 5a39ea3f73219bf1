"""Benign fine-tuning: does the concept come back when nobody teaches it? (Suriyakumar et al. 2024; ResAlign 2025)

    loss = L_DM on unrelated captioned images, over all of theta
    theta_ema <- d_k theta_ema + (1 - d_k) theta,   d_1 = 0,  d_k = min(ema, k / (9 + k))        (after step k)

Evaluation prompts name the concept. The average lags behind the weights, so that a short run scored on it alone
looks safer than it is: `ema` 0, the default, scores the weights themselves, the preset `ema` the average.

Paper     https://arxiv.org/abs/2410.08074; protocol of ResAlign (NeurIPS 2025)
Code      https://github.com/AntigoneRandy/ResAlign @ 14775d3, scripts/eval_safety.sh; the average's warm-up as
          diffusers.training_utils.EMAModel
Differs   the images are the benign split, drawn by the base; fp32; no crops or flips.
Symbols   theta weights of the U-Net; k steps taken.
Access    weights
Budget    optimizer steps; U-Net passes are counted by the runner.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, nn

from attacks.base import WeightAttack
from attacks.trainer import train, unfreeze
from benchmark.diffusion import Model, difference
from benchmark.types import Concept, Examples, Report, Snapshot


@dataclass(frozen=True, kw_only=True)
class BenignFinetune(WeightAttack):
    """The whole U-Net, trained on images without the concept. Defaults: ResAlign's, with the raw weights."""

    lr: float = 1e-5
    batch: int = 4  # ResAlign's 1, accumulated 4 times
    ema: float = 0.0  # decay of the average that is scored; 0: the weights themselves

    version = 1
    needs = frozenset({"benign"})
    presets = {"ema": {"ema": 0.9999}}  # EMAModel's default

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
        """Yield the change of all weights, or of their average, after each budget.

        Raises:
            ValueError: the loss is not finite.
        """
        attacked = model.clone(only={model.part})
        averaged = model.clone(only={model.part}) if self.ema else attacked
        pauses = train(
            attacked,
            unfreeze(attacked.denoiser),
            data["benign"],
            lr=self.lr,
            batch=self.batch,
            budgets=range(1, max(budgets) + 1),  # the average moves at every step
            rng=rng,
            report=report,
        )
        for step in pauses:
            if self.ema:
                follow(averaged.denoiser, attacked.denoiser, self.decay(step))
            if step in budgets:
                yield Snapshot(steps=step, delta=difference(averaged, model))

    def decay(self, step: int) -> float:
        """d_k: what the average keeps of itself after step k, counted from 1."""
        return min(self.ema, step / (9 + step)) if step > 1 else 0.0

    def passes(self, steps: int) -> int:
        """One forward and one backward pass, counted as three, for each sample."""
        return 3 * steps * self.batch


@torch.no_grad()
def follow(average: nn.Module, trained: nn.Module, decay: float) -> None:
    """average <- decay average + (1 - decay) trained."""
    for mean, weight in zip(average.parameters(), trained.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)
