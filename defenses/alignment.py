"""The U-Net half of Patronus, stages U1 and U2: the equations, the source and the differences are in `patronus`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Generator, Tensor
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR

from benchmark.diffusion import Model, denoising_loss, normal
from benchmark.types import Examples
from defenses.data import draw
from defenses.meta import descend, fork, step, trainable, transfer

Data = Mapping[str, Examples]
Pairs = Iterator[tuple[Tensor, Tensor]]  # endless z_0 (B, C, h, w) and text (B, L, D)


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Adapters that say zero for malicious pairs, and learn to stay so under simulated fine-tuning."""

    rank: int = 8  # of the adapters, as alpha and targets: both diffusion scripts
    alpha: int = 8
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    u1_steps: int = 5000  # u1: scripts/diffusion/unlearn.sh, config/ldm_unlearn.yaml
    u1_lr: float = 1e-4
    u1_decay: float = 1e-4
    u1_batch: int = 64
    u1_weights: tuple[float, float] = (1.0, 0.01)  # u, v
    u2_steps: int = 5000  # u2: scripts/diffusion/anti_finetune.sh, config/ldm_antifinetune.yaml
    u2_lr: float = 1e-4
    u2_decay: float = 1e-4
    u2_batch: int = 16
    u2_batches: int = 5  # steps of a simulated attack
    u2_adapt: int = 12  # of each malicious batch; the rest is the query
    u2_attack_lr: float = 1e-2
    u2_weights: tuple[float, float] = (1.0, 0.5)

    def align(self, edited: Model, data: Data, rng: Generator, *, hardened: bool) -> Iterator[Tensor]:
        """Train the adapters of `edited`: U1, then U2 if `hardened`. Yields the loss of each step."""
        theta = trainable(edited.denoiser)
        u1 = (self.u1, self.u1_steps, self.u1_lr, self.u1_decay, self.u1_batch)
        u2 = (self.u2, self.u2_steps, self.u2_lr, self.u2_decay, self.u2_batch)
        for stage, steps, lr, decay, batch in (u1, u2) if hardened else (u1,):
            M, S = (draw(edited, data[split], batch, rng=rng) for split in ("concept", "safe"))
            optimizer = Adam(theta, lr, weight_decay=decay)
            schedule = StepLR(optimizer, max(1, steps // 3), 0.1)
            yield from descend(optimizer, steps, partial(stage, edited, M, S, rng), schedule)

    def u1(self, edited: Model, M: Pairs, S: Pairs, rng: Generator, _: int) -> Tensor:
        """L_U; its gradient is left on `edited`."""
        u, v = self.u1_weights
        loss = u * denoising_loss(edited, *next(S), rng=rng) + v * black_loss(edited, *next(M), rng=rng)
        loss.backward()
        return loss.detach()

    def u2(self, edited: Model, M: Pairs, S: Pairs, rng: Generator, _: int) -> Tensor:
        """L_U under a simulated attack; its gradient is left on `edited`.

        The attack trains the whole U-Net, adapters and all; of what is found at the copy the adapters alone get a
        gradient. Each attack step is followed by a look at the rest of its batch; safe pairs are judged when the attack
        is over.
        """
        u, v = (weight / self.u2_batches for weight in self.u2_weights)
        learner = fork(edited, every=True)
        attacker = SGD(learner.denoiser.parameters(), self.u2_attack_lr, momentum=0.9, dampening=0.9)
        losses, cut = [], self.u2_adapt
        for z_0, c in islice(M, self.u2_batches):
            step(denoising_loss(learner, z_0[:cut], c[:cut], rng=rng), attacker)
            found = v * black_loss(learner, z_0[cut:], c[cut:], rng=rng)
            losses.append(transfer(found, learner.denoiser, edited.denoiser))
        for z_0, c in islice(S, self.u2_batches):
            found = u * denoising_loss(learner, z_0, c, rng=rng)
            losses.append(transfer(found, learner.denoiser, edited.denoiser))
        return torch.stack(losses).sum()


def black_loss(model: Model, z_0: Tensor, text: Tensor, *, rng: Generator) -> Tensor:
    """L_black on latents `(B, C, h, w)` and text `(B, L, D)`, with t and z_t drawn as for L_DM. Reconstructed."""
    t = model.times(len(z_0), rng=rng)
    z_t = model.noised(z_0, normal(z_0.shape, rng, like=z_0), t)
    return model.predict(z_t, t.to(z_0.device), text).square().mean()
