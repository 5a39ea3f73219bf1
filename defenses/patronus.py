"""Patronus: an internal moderator and non-fine-tunable alignment (Li et al., 2025).

Two trainings. The decoder learns to draw black for malicious latents, the noise predictor to say zero for malicious
pairs; then both learn to stay so under simulated fine-tuning (first-order MAML: the gradient found at the attacked copy
is applied to the original).

    V(x)    = MSE(phi(x), phi(black))
    L_D     = a V(Dec(Enc(x_M))) + b MSE(Dec(Enc(x_S)), x_S) + s V(Dec(z_M)) + g MSE(Dec(z_S), Dec_0(z_S))        (D1)
    attack: Dec' <- Dec' - lr grad MSE(Dec'(Enc(x_M)), x_M),  or MSE(Dec'(z_M), Dec_0(z_M))
    L_D     with the first term averaged over Dec' on the way, and that of the third added to it                 (D2)
    L_U     = u L_DM(D_S) + v L_black(D_M),  L_black = E || eps_th(z_t, t, c) ||^2                               (U1)
    attack: th' <- th' - lr grad L_DM(D_M)
    L_U     with th' in place of th in both terms                                                                (U2)

Paper     https://arxiv.org/abs/2510.16581
Code      https://github.com/Mustard-lord/Patronus @ 5491b24: final.py, patronus_losses.py (decoder),
          diffusion_unlearn.py, diffusion_antifinetune_dataparallel.py, src/sophon_losses.py (U-Net), scripts/
Differs   L_black is reconstructed: the release calls a `black_loss` that it does not contain; zero noise is the target
          in SOPHON, by the same authors, and its runs are named "black noise". The decoder reads and writes [0, 1]
          everywhere (the release feeds the encoder [0, 1] images but decodes latents to [-1, 1]) and is not clamped in
          training: a clamp has no gradient outside. The query is half of the last batch, as meant (the release cuts it
          by the number of colours). z_M and z_S are sampled from the captions given, at the native size. No flips. The
          last step is released (the release picks the best by its own attack), and D2 and U2 start from the last.
Symbols   M malicious, S safe; x images; z_M, z_S latents drawn by the diffusion model; phi perceptual network; Dec
          trained decoder with post_quant_conv, Dec_0 frozen, Dec' attacked copy; th LoRA weights, th' attacked copy.
Protects  against fine-tuning of the decoder and of the U-Net on malicious images. A public decoder can be put back.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import StepLR

from benchmark.diffusion import Model, denoising_loss, difference, normal, sample
from benchmark.model.adapters import add_adapters, low_rank
from benchmark.model.perceptual import features
from benchmark.types import Concept, Delta, Examples, Report
from defenses.base import Defense
from defenses.data import captions, draw, latents
from defenses.decoding import Decoder, Pool, distance
from defenses.meta import copied, descend, trainable, transfer

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

Kind = Literal["images", "latents"]
KINDS: tuple[Kind, Kind] = ("images", "latents")
Pools = Mapping[Kind, Pool]
Query = Mapping[Kind, Tensor]
Data = Mapping[str, Examples]
Pairs = Iterator[tuple[Tensor, Tensor]]  # endless z_0 (B, C, h, w) and text (B, L, D)
Choice = TypeVar("Choice")


@dataclass(frozen=True, kw_only=True)
class Patronus(Defense):
    """Moderate the decoder, align the U-Net. Defaults are the release's (its scripts and config files)."""

    parts: Literal["both", "decoder", "unet"] = "both"
    stages: Literal["both", "unlearn"] = "both"  # unlearn: D1 and U1 alone, which resist no fine-tuning
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

    version = 1
    needs = frozenset({"concept", "safe"})
    presets = {
        "release": {},
        # Reconstructed: a smaller budget.
        "fast": {"features": 200, "d1_steps": 500, "d2_steps": 1000, "u1_steps": 500, "u2_steps": 500},
    }
    fidelity = "reconstructed"
    matched = (
        "objectives, weights, optimisers and simulated attacks read in the release, which was not run; its black_loss "
        "is missing there and is reconstructed as the mean square of the predicted noise"
    )

    def protect(self, model: Model, concept: Concept, data: Data, *, rng: Generator, report: Report) -> Delta:
        """Return the change of the VAE's decoder and post_quant_conv, and the adapters of the U-Net's attention.

        Raises:
            ValueError: nothing is left for a query, `targets` name no layer of this model, or the loss is not finite.
            FileNotFoundError: the perceptual network's weights are not at hand.
        """
        count, cut = min(len(data["concept"].images), self.features), self.u2_adapt
        if self.hardened and count < 2:
            raise ValueError(f"expected 2 or more malicious images and features, got {count}: D2 attacks and queries.")
        if self.hardened and not 0 < cut < self.u2_batch:
            raise ValueError(f"expected u2_adapt between 0 and u2_batch ({self.u2_batch}), got {cut}: change it.")
        edited = model.clone().frozen()
        losses: list[Iterator[Tensor]] = []
        layers: dict[str, LoraLayer] = {}
        names: set[str] = set()
        if self.parts != "unet":
            features(self.perceptual)  # its weights may be missing: known before the latents are sampled
            losses.append(self.moderate(edited, model, data, rng))
            names = {n for n, _ in edited.vae.named_parameters() if n.startswith(("decoder.", "post_quant_conv."))}
        if self.parts != "decoder":
            layers = add_adapters(edited.unet, rank=self.rank, alpha=self.alpha, targets=self.targets, rng=rng)
            losses.append(self.align(edited, data, rng))
        for step, loss in enumerate(chain.from_iterable(losses), 1):
            if not torch.isfinite(loss):
                raise ValueError(f"expected a finite loss, got {loss.item()} at step {step}: lower the learning rates.")
            report(step=step, total=self.total, loss=loss.item())
        dense = difference(edited, model, part="vae", names=names).dense
        return replace(low_rank(layers), dense=dense)

    @property
    def hardened(self) -> bool:
        """Do D2 and U2 follow?"""
        return self.stages == "both"

    @property
    def total(self) -> int:
        """Optimizer steps of all selected stages."""
        decoder, unet = self.d1_steps + self.hardened * self.d2_steps, self.u1_steps + self.hardened * self.u2_steps
        return (self.parts != "unet") * decoder + (self.parts != "decoder") * unet

    def moderate(self, edited: Model, model: Model, data: Data, rng: Generator) -> Iterator[Tensor]:
        """Train the decoder of `edited`: D1, then D2. Yields the loss of each step."""
        decoder, teacher = Decoder(edited.vae).requires_grad_(True), Decoder(model.vae)
        M, S = (self.pools(model, teacher, data[split], rng) for split in ("concept", "safe"))
        theta = list(decoder.parameters())
        optimizer = Adam(theta, self.d1_lr, weight_decay=self.d1_decay)
        yield from descend(optimizer, self.d1_steps, lambda _: self.d1(decoder, M, S))
        if self.hardened:
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
            attacker.zero_grad()
            F.mse_loss(learner(z), target).backward()
            attacker.step()
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

    def align(self, edited: Model, data: Data, rng: Generator) -> Iterator[Tensor]:
        """Train the adapters of `edited`: U1, then U2. Yields the loss of each step."""
        theta = trainable(edited.unet)
        u1 = (self.u1, self.u1_steps, self.u1_lr, self.u1_decay, self.u1_batch)
        u2 = (self.u2, self.u2_steps, self.u2_lr, self.u2_decay, self.u2_batch)
        for stage, steps, lr, decay, batch in (u1, u2) if self.hardened else (u1,):
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

        Each attack step is followed by a look at the rest of its batch; safe pairs are judged when the attack is over.
        """
        u, v = (weight / self.u2_batches for weight in self.u2_weights)
        learner = replace(edited, unet=copied(edited.unet))
        attacker = SGD(trainable(learner.unet), self.u2_attack_lr, momentum=0.9, dampening=0.9)
        losses, cut = [], self.u2_adapt
        for z_0, c in islice(M, self.u2_batches):
            attacker.zero_grad()
            denoising_loss(learner, z_0[:cut], c[:cut], rng=rng).backward()
            attacker.step()
            found = v * black_loss(learner, z_0[cut:], c[cut:], rng=rng)
            losses.append(transfer(found, learner.unet, edited.unet))
        for z_0, c in islice(S, self.u2_batches):
            found = u * denoising_loss(learner, z_0, c, rng=rng)
            losses.append(transfer(found, learner.unet, edited.unet))
        return torch.stack(losses).sum()

    def passes(self) -> int:
        """Guided sampling of z_M and z_S, then three for each sample of a forward and backward pass."""
        sampling = 2 * self.features * self.ddim_steps * (1 if self.guidance == 1 else 2)
        u1 = self.u1_steps * self.u1_batch
        u2 = self.u2_steps * self.u2_batch * self.u2_batches
        return (self.parts != "unet") * sampling + (self.parts != "decoder") * 6 * (u1 + self.hardened * u2)


def black_loss(model: Model, z_0: Tensor, text: Tensor, *, rng: Generator) -> Tensor:
    """L_black on latents `(B, C, h, w)` and text `(B, L, D)`, with t and z_t drawn as for L_DM. Reconstructed."""
    t = torch.randint(int(model.scheduler.config.num_train_timesteps), (len(z_0),), generator=rng)
    z_t = model.add_noise(z_0, normal(z_0.shape, rng, like=z_0), t)
    return model.predict_noise(z_t, t.to(z_0.device), text).square().mean()


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
