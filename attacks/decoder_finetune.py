"""Decoder fine-tuning: teach a denying decoder to draw again, by reconstruction (Patronus' decoder attack).

    loss = || Dec(z) - x ||^2,   x in [-1, 1],   z ~ Enc(x)

The U-Net stays. It is the attack that Patronus' moderator is trained to withstand; on other defenses, whose decoder
is the base's own, it has nothing to restore. The release's whole attack has 500 steps: 20 epochs over 500 images.

Paper     https://arxiv.org/abs/2510.16581
Code      Mustard-lord/Patronus normal_train.py @ 5491b24, as scripts/decoder/overall_performance.sh calls it: SGD with
          momentum 0.9, weight decay 1e-4 and a rate of 1e-4, 20 images a step, the loss in the decoder's own units.
          `adam` is the release's `--optimizer adam`, which no script of it chooses: far stronger at the same rate.
Differs   x is the image in [-1, 1], as the autoencoder was trained (the release feeds it and compares in [0, 1]).
Symbols   Enc, Dec the autoencoder's halves, with the convolutions after and before; x images of the concept.
Access    weights
Budget    optimizer steps; no pass through the U-Net.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from attacks.base import WeightAttack
from attacks.trainer import Optimizer, build
from benchmark.diffusion import Model, batches, difference, normal
from benchmark.types import Concept, Delta, Examples, Report, Snapshot

PARTS = ("decoder.", "post_quant_conv.")


@dataclass(frozen=True, kw_only=True)
class DecoderFinetune(WeightAttack):
    """Train the decoder to reconstruct images of the concept. Defaults: the release's attack."""

    lr: float = 1e-4
    batch: int = 20
    optimizer: Optimizer = "sgd"

    version = 2
    needs = frozenset({"concept"})
    presets = {"adam": {"optimizer": "adam"}}

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
        attacked, images = model.clone(only={"vae"}), data["concept"].images
        names = {name for name, _ in attacked.vae.named_parameters() if name.startswith(PARTS)}
        for name, parameter in attacked.vae.named_parameters():
            parameter.requires_grad_(name in names)
        trained = [p for p in attacked.vae.parameters() if p.requires_grad]
        optimizer = build(self.optimizer, trained, self.lr)
        order = batches(len(images), self.batch, rng=rng)
        for step in range(1, max(budgets) + 1):
            x = images[next(order)].to(model.device, attacked.vae.dtype) / 127.5 - 1
            loss = reconstruction(attacked, x, rng)
            if not torch.isfinite(loss):
                raise ValueError(f"expected a finite loss, got {loss.item()} at step {step}: lower lr ({self.lr}).")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            report(step=step, total=max(budgets), loss=loss.item())
            if step in budgets:
                dense = difference(attacked, model, part="vae", names=names).dense
                yield Snapshot(steps=step, delta=Delta(dense=dense))


def reconstruction(model: Model, x: Tensor, rng: Generator) -> Tensor:
    """The loss, for images `(B, 3, H, W)` in [-1, 1]; its gradient reaches the decoder."""
    with torch.no_grad():
        found = model.vae.encode(x).latent_dist
        z = found.mean + found.std * normal(found.mean.shape, rng, like=found.mean)
    return F.mse_loss(model.vae.decode(z).sample, x)
