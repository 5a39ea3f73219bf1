"""Decoder fine-tuning: teach a denying decoder to draw again, by reconstruction (Patronus' decoder attack).

    loss = || Dec(Enc(x)) - x ||^2,   x in [0, 1]

The U-Net stays. It is the attack that Patronus' moderator is trained to withstand; on other defenses, whose decoder
is the base's own, it has nothing to restore.

Paper     https://arxiv.org/abs/2510.16581
Code      Mustard-lord/Patronus scripts for the decoder @ 5491b24: Adam, rate 1e-4, 20 images a step
Differs   budgets are counted in steps, not in epochs over 500 images; latents are posterior means; fp32.
Symbols   Enc, Dec the autoencoder's halves, with the convolutions after and before; x images of the concept.
Access    weights
Budget    optimizer steps; no pass through the U-Net.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator
from torch.nn import functional as F

from attacks.base import WeightAttack
from benchmark.diffusion import Model, batches, difference
from benchmark.types import Concept, Delta, Examples, Report, Snapshot

PARTS = ("decoder.", "post_quant_conv.")


@dataclass(frozen=True, kw_only=True)
class DecoderFinetune(WeightAttack):
    """Train the decoder to reconstruct images of the concept. Defaults: the release's attack."""

    lr: float = 1e-4
    batch: int = 20

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
        """Yield the decoder after each budget.

        Raises:
            ValueError: the loss is not finite.
        """
        attacked, images = model.clone(), data["concept"].images
        names = {name for name, _ in attacked.vae.named_parameters() if name.startswith(PARTS)}
        for name, parameter in attacked.vae.named_parameters():
            parameter.requires_grad_(name in names)
        trained = [p for p in attacked.vae.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=self.lr)
        order = batches(len(images), self.batch, rng=rng)
        for step in range(1, max(budgets) + 1):
            x = images[next(order)].to(model.device).float() / 255
            with torch.no_grad():
                z = attacked.vae.encode(x * 2 - 1).latent_dist.mean
            loss = F.mse_loss(attacked.vae.decode(z).sample / 2 + 0.5, x)
            if not torch.isfinite(loss):
                raise ValueError(f"expected a finite loss, got {loss.item()} at step {step}: lower lr ({self.lr}).")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            report(step=step, total=max(budgets), loss=loss.item())
            if step in budgets:
                dense = difference(attacked, model, part="vae", names=names).dense
                yield Snapshot(steps=step, delta=Delta(dense=dense))
