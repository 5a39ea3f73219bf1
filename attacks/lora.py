"""LoRA: low-rank fine-tuning of the attention projections (Hu et al., ICLR 2022), as the ecosystem uses it.

    W x -> W x + (alpha / r) B A x,   A ~ N(0, 1/r^2), B = 0
    loss = L_DM on the attacker's captioned images

Paper     https://arxiv.org/abs/2106.09685
Code      huggingface/diffusers examples/text_to_image/train_text_to_image_lora.py @ 58eb52c;
          amberyzheng/IMMA scripts/run_lora.sh @ 2f55041; Mustard-lord/Patronus diffusion_FT.py @ 5491b24 (`patronus`);
          examples/dreambooth/train_dreambooth_lora_sd3.py, _flux.py and _flux2.py @ 58eb52c (`flow`)
Differs   no warm-up (the script's 500 steps would waste a short attack); fp32; no crops or flips. Patronus: gradients
          are clipped as in the script, and its rate does not decay, because that would depend on the last budget.
Access    weights
Budget    optimizer steps; U-Net passes are counted by the runner.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Generator

from attacks.base import WeightAttack
from attacks.trainer import Optimizer, train
from benchmark.diffusion import Model
from benchmark.model.adapters import add_adapters, low_rank
from benchmark.types import Concept, Examples, Report, Snapshot


@dataclass(frozen=True, kw_only=True)
class LoRA(WeightAttack):
    """Rank-r adapters on the U-Net's attention, trained on images of the concept. Defaults: IMMA's re-learning."""

    rank: int = 4
    alpha: int = 4
    lr: float = 1e-4
    batch: int = 1
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    optimizer: Optimizer = "adamw"  # the others: Patronus' attacker

    version = 1
    needs = frozenset({"concept"})
    presets = {
        "patronus": {"rank": 8, "alpha": 8, "batch": 30, "optimizer": "sgd"},
        "flow": {
            "batch": 4
        },  # of the READMEs for SD 3 and FLUX: 1, accumulated 4 times; on both sides of the attention
    }

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
        """Yield the adapters after each budget.

        Raises:
            ValueError: `targets` name no layer of this model, or the loss is not finite.
        """
        attacked = model.clone(only=())
        layers = add_adapters(attacked, rank=self.rank, alpha=self.alpha, targets=self.targets, rng=rng)
        pauses = train(
            attacked,
            [p for p in attacked.denoiser.parameters() if p.requires_grad],
            data["concept"],
            lr=self.lr,
            batch=self.batch,
            budgets=budgets,
            rng=rng,
            report=report,
            optimizer=self.optimizer,
        )
        for step in pauses:
            yield Snapshot(steps=step, delta=low_rank(layers, attacked.part))

    def passes(self, steps: int) -> int:
        """One forward and one backward pass, counted as three, for each sample."""
        return 3 * steps * self.batch
