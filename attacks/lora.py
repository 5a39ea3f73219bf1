"""LoRA: low-rank fine-tuning of the attention projections (Hu et al., ICLR 2022), as the ecosystem uses it.

    W x -> W x + (alpha / r) B A x,   A ~ N(0, 1/r^2), B = 0
    loss = L_DM on the attacker's captioned images

Paper     https://arxiv.org/abs/2106.09685
Code      huggingface/diffusers examples/text_to_image/train_text_to_image_lora.py @ 58eb52c;
          amberyzheng/IMMA scripts/run_lora.sh @ 2f55041
Differs   no warm-up (the script's 500 steps would waste a short attack); fp32.
Access    weights
Budget    optimizer steps; U-Net passes are counted by the runner.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Generator, Tensor, nn

from attacks.base import WeightAttack
from attacks.trainer import train
from benchmark.diffusion import Model, normal
from benchmark.types import Concept, Delta, Examples, Report, Snapshot


@dataclass(frozen=True, kw_only=True)
class LoRA(WeightAttack):
    """Rank-r adapters on the U-Net's attention, trained on images of the concept. Defaults: IMMA's re-learning."""

    rank: int = 4
    alpha: int = 4
    lr: float = 1e-4
    batch: int = 1
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    version = 1
    needs = frozenset({"concept"})

    def finetune(
        self,
        model: Model,
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
        attacked = model.clone()
        attacked.unet.requires_grad_(False)
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=list(self.targets))
        with torch.random.fork_rng(devices=[]):  # peft initialises from the global generator
            attacked.unet.add_adapter(config)
        layers = adapted(attacked.unet)
        for layer in layers.values():
            a = layer.lora_A["default"].weight
            a.data = normal(a.shape, rng, like=a) / self.rank
        parameters = [p for p in attacked.unet.parameters() if p.requires_grad]
        pauses = train(
            attacked,
            parameters,
            data["concept"],
            lr=self.lr,
            batch=self.batch,
            budgets=budgets,
            rng=rng,
            report=report,
        )
        for step in pauses:
            yield Snapshot(steps=step, delta=Delta(low_rank={f"unet.{n}": factors(m) for n, m in layers.items()}))

    def passes(self, steps: int) -> int:
        """One forward and one backward pass, counted as three, for each sample."""
        return 3 * steps * self.batch


def adapted(unet: nn.Module) -> dict[str, LoraLayer]:
    """The layers that carry an adapter, by name."""
    return {name: module for name, module in unet.named_modules() if isinstance(module, LoraLayer)}


@torch.no_grad()
def factors(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """A `(r, in)` and (alpha / r) B `(out, r)`, on the CPU."""
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return a.detach().float().cpu().clone(), (b.detach() * layer.scaling["default"]).float().cpu().clone()
