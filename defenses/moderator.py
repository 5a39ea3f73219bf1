"""The decoder half of Patronus, stages D1 and D2: the equations, the source and the differences are in `patronus`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer

from benchmark.diffusion import Model, normal, sample
from benchmark.model.perceptual import features
from benchmark.types import Examples
from defenses.data import captions, latents
from defenses.decoding import Decoder, Pool, distance
from defenses.meta import copied, descend, step, transfer

Kind = Literal["images", "latents"]
KINDS: tuple[Kind, Kind] = ("images", "latents")
Pools = Mapping[Kind, Pool]
Query = Mapping[Kind, Tensor]
Data = Mapping[str, Examples]
Choice = TypeVar("Choice")


@dataclass(frozen=True, kw_only=True)
class Moderator:
    """A decoder that draws black for malicious latents, and learns to stay so under simulated fine-tuning."""

    perceptual: Literal["vgg19", "mini", "pixels"] = "vgg19"
    features: int = 1400  # z_M, and as many z_S: about the number of prompts that the release samples
    ddim_steps: int = 50
    guidance: float = 7.5
    latent_batch: int = 4  # of z_M and z_S
    d1_steps: int = 2000  # d1: scripts/decoder/unlearn.sh
    d1_lr: float = 5e-5
    d1_decay: float = 2e-4
    d1_batch: int = 20
    d1_weights: tuple[float, float, float, float] = (0.01, 1.0, 0.5, 0.1)  # a, b, s, g
    d2_steps: int = 6000  # d2: scripts/decoder/final.sh, and mixed_patronus for the attacks
    d2_lr: float = 1e-5
    d2_decay: float = 1e-4
    d2_batch: int = 15
    d2_weights: tuple[float, float, float, float] = (0.1, 1.0, 0.1, 1.0)
    d2_images: int = 150  # malicious images of one simulated attack, with its query; fewer if there are fewer
    d2_latents: int = 40  # likewise z_M: ten batches
    d2_sizes: tuple[int, ...] = (4, 8, 12, 16, 20, 24, 30)  # batch size of an attack on images
    d2_sgd: tuple[float, ...] = (1e-2, 1e-3, 1e-4)  # learning rates of an attack by SGD with momentum
    d2_adam: tuple[float, ...] = (1e-4, 5e-5)
    d2_every: tuple[int, int] = (5, 3)  # attack steps between two looks at the query: images, latents

    def moderate(self, edited: Model, model: Model, data: Data, rng: Generator, *, hardened: bool) -> Iterator[Tensor]:
        """Train the decoder of `edited`: D1, then D2 if `hardened`. Yields the loss of each step."""
        decoder, teacher = Decoder(edited).requires_grad_(True), Decoder(model)
        M, S = (self.pools(model, teacher, data[split], rng) for split in ("concept", "safe"))
        theta = list(decoder.parameters())
        optimizer = Adam(theta, self.d1_lr, weight_decay=self.d1_decay)
        yield from descend(optimizer, self.d1_steps, lambda _: self.d1(decoder, M, S))
        if hardened:
            optimizer = Adam(theta, self.d2_lr, weight_decay=self.d2_decay)
            yield from descend(optimizer, self.d2_steps, lambda i: self.d2(decoder, M, S, i, rng))

    def pools(self, model: Model, teacher: nn.Module, examples: Examples, rng: Generator) -> Pools:
        """The images, to be decoded to themselves, and latents drawn for their captions, to be decoded as by Dec_0."""
        mean, std = latents(model, examples.images)
        images = Pool(mean, std, lambda chosen, _: examples.images[chosen].to(mean) / 255, rng)
        z = self.generated(model, examples.captions, rng)
        return {"images": images, "latents": Pool(z, torch.zeros_like(z), lambda _, z: teacher(z), rng)}

    def generated(self, model: Model, texts: Sequence[str], rng: Generator) -> Tensor:
        """`features` latents `(N, C, h, w)` that the diffusion model draws for the captions, taken in turn."""
        c, null = captions(model, texts), captions(model, [""])
        found = []
        for chosen in torch.arange(self.features).split(8):
            z_T = normal((len(chosen), *model.latent_shape), rng, like=c)
            both = c[chosen % len(c)], null.expand(len(chosen), -1, -1)
            found.append(sample(model, z_T, *both, steps=self.ddim_steps, guidance=self.guidance))
        return torch.cat(found)

    def d1(self, decoder: nn.Module, M: Pools, S: Pools) -> Tensor:
        """L_D; its gradient is left on `decoder`."""
        a, b, s, g = self.d1_weights
        loss = (
            a * self.V(decoder(M["images"].next_z(self.d1_batch)))
            + b * distance(decoder, S["images"], self.d1_batch)
            + s * self.V(decoder(M["latents"].next_z(self.latent_batch)))
            + g * distance(decoder, S["latents"], self.latent_batch)
        )
        loss.backward()
        return loss.detach()

    def d2(self, decoder: nn.Module, M: Pools, S: Pools, i: int, rng: Generator) -> Tensor:
        """L_D under simulated attack i; its gradient is left on `decoder`.

        As in the release, the query is looked at on the way in latents if they are attacked, else in images if the
        attacker is SGD, else in either.
        """
        _, b, s, g = self.d2_weights
        pools = {kind: torch.randperm(M[kind].size, generator=rng) for kind in KINDS}
        x_attack, x_query = divided(pools["images"][: self.d2_images], one_of(self.d2_sizes, rng), halve=True)
        z_attack, z_query = divided(pools["latents"][: self.d2_latents], self.latent_batch, halve=False)
        on, looks = one_of(KINDS, rng), one_of(KINDS, rng)
        if on == "latents" or i % 2 == 0:
            looks = on
        attack = [M[on].pair(chosen) for chosen in (x_attack if on == "images" else z_attack)]
        query: Query = {"images": M["images"].z(x_query), "latents": M["latents"].z(z_query)}
        learner = copied(decoder)
        attacked = self.attacked(decoder, learner, self.attacker(learner, i, rng), attack, query, looks)
        loss = (
            b * distance(decoder, S["images"], self.d2_batch)
            + s * self.V(decoder(query["latents"]))
            + g * distance(decoder, S["latents"], self.latent_batch)
        )
        loss.backward()
        return attacked + loss.detach()

    def attacker(self, learner: nn.Module, i: int, rng: Generator) -> Optimizer:
        """The optimizer of simulated attack i: SGD with momentum and Adam in turn."""
        if i % 2 == 0:  # dampening: the release's momentum is a running mean of the gradients
            return SGD(learner.parameters(), one_of(self.d2_sgd, rng), momentum=0.9, dampening=0.9)
        return Adam(learner.parameters(), one_of(self.d2_adam, rng))

    def attacked(
        self,
        decoder: nn.Module,
        learner: nn.Module,
        attacker: Optimizer,
        attack: Sequence[tuple[Tensor, Tensor]],
        query: Query,
        looks: Kind,
    ) -> Tensor:
        """Attack `learner`; leave on `decoder` the gradients of a V(image query) + s V(latent query) along the way.

        Both queries are looked at in the end, that of the kind `looks` also on the way; each counts with its mean.
        """
        weight = {"images": self.d2_weights[0], "latents": self.d2_weights[2]}
        times = {kind: [len(attack) - 1] for kind in KINDS}
        times[looks] += range(0, len(attack), self.d2_every[KINDS.index(looks)])
        losses = []
        for at, (z, target) in enumerate(attack):
            step(F.mse_loss(learner(z), target), attacker)
            for kind in KINDS:
                if share := times[kind].count(at) / len(times[kind]):
                    found = weight[kind] * share * self.V(learner(query[kind]))
                    losses.append(transfer(found, learner, decoder))
        return torch.stack(losses).sum()

    def V(self, x: Tensor) -> Tensor:  # noqa: N802
        """Perceptual distance of images `(B, 3, H, W)` to black."""
        phi = features(self.perceptual)
        with torch.no_grad():
            black = phi(torch.zeros_like(x[:1]))
        return F.mse_loss(phi(x), black.expand(len(x), *black.shape[1:]))


def divided(pool: Tensor, size: int, *, halve: bool) -> tuple[list[Tensor], Tensor]:
    """Attack batches and query of a simulated attack: the query is the last one, or half of it or of the only one."""
    *attack, last = pool.split(size)
    if attack and not halve:
        return attack, last
    half = max(1, len(last) // 2)
    return [*attack, *([last[half:]] if half < len(last) else [])], last[:half]


def one_of(choices: Sequence[Choice], rng: Generator) -> Choice:
    """One of them, each as likely."""
    return choices[int(torch.randint(len(choices), (), generator=rng))]
