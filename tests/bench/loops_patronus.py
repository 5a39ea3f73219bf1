"""Patronus by hand: its four stages, as short as they go, perceptual distance on pixels. See `loops`."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import islice
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import StepLR

from benchmark.diffusion import Model
from benchmark.types import Concept
from tests.bench.loops import Data, Losses, ddim, denoise, drawn, encoded, noise, noisy, pairs, predict, with_lora

Pairs = Iterator[tuple[Tensor, Tensor]]


def decoder(model: Model, concept: Concept, data: Data, m: Any, rng: Generator) -> Losses:
    """D1, then D2: the decoder learns to draw black for malicious latents, then to stay so under attack."""
    vae, scale = deepcopy(model.vae), model.vae.config.scaling_factor
    theta = [*vae.post_quant_conv.requires_grad_(True).parameters(), *vae.decoder.requires_grad_(True).parameters()]
    half = {"post": vae.post_quant_conv, "decoder": vae.decoder}
    pools = {split: Shelf(model, data, split, m, rng) for split in ("concept", "safe")}
    bad, good = pools["concept"], pools["safe"]

    def draw(z: Tensor, part: Any = half) -> Tensor:
        return part["decoder"](part["post"](z / scale)) / 2 + 0.5

    def to_itself(kind: str, n: int) -> Tensor:
        z, x = good.next(kind, n)
        return F.mse_loss(draw(z), x)

    optimizer = torch.optim.Adam(theta, m.d1_lr, weight_decay=m.d1_decay)
    a, b, s, g = m.d1_weights
    for _ in range(m.d1_steps):
        optimizer.zero_grad()
        loss = a * draw(bad.next("images", m.d1_batch, False)[0]).square().mean() + b * to_itself("images", m.d1_batch)
        loss = loss + s * draw(bad.next("latents", m.latent_batch, False)[0]).square().mean()
        loss = loss + g * to_itself("latents", m.latent_batch)
        loss.backward()
        optimizer.step()
        yield loss.item()

    optimizer = torch.optim.Adam(theta, m.d2_lr, weight_decay=m.d2_decay)
    a, b, s, g = m.d2_weights
    weight = {"images": a, "latents": s}
    for i in range(m.d2_steps):
        order = {kind: torch.randperm(len(bad.mean[kind]), generator=rng) for kind in ("images", "latents")}
        *x_attack, x_last = order["images"][: m.d2_images].split(one_of(m.d2_sizes, rng))
        cut = max(1, len(x_last) // 2)
        x_attack, x_query = [*x_attack, *([x_last[cut:]] if cut < len(x_last) else [])], x_last[:cut]
        *z_attack, z_query = order["latents"][: m.d2_latents].split(m.latent_batch)
        on, looks = one_of(("images", "latents"), rng), one_of(("images", "latents"), rng)
        looks = on if on == "latents" or i % 2 == 0 else looks
        attack = [bad.of(on, chosen) for chosen in (x_attack if on == "images" else z_attack)]
        query = {"images": bad.of("images", x_query, False)[0], "latents": bad.of("latents", z_query, False)[0]}
        copy = deepcopy(half)
        learned = [p for part in copy.values() for p in part.parameters()]
        if i % 2 == 0:
            attacker: Any = torch.optim.SGD(learned, one_of(m.d2_sgd, rng), momentum=0.9, dampening=0.9)
        else:
            attacker = torch.optim.Adam(learned, one_of(m.d2_adam, rng))
        optimizer.zero_grad()
        every = m.d2_every[("images", "latents").index(looks)]
        times = {kind: [len(attack) - 1] for kind in weight}
        times[looks] += list(range(0, len(attack), every))
        total = 0.0
        for at, (z, x) in enumerate(attack):
            attacker.zero_grad()
            F.mse_loss(draw(z, copy), x).backward()
            attacker.step()
            for kind in weight:
                if at in times[kind]:
                    share = weight[kind] * times[kind].count(at) / len(times[kind])
                    total += to_original(share * draw(query[kind], copy).square().mean(), learned, theta)
        loss = b * to_itself("images", m.d2_batch) + s * draw(query["latents"]).square().mean()
        loss = loss + g * to_itself("latents", m.latent_batch)
        loss.backward()
        optimizer.step()
        yield total + loss.item()


class Shelf:
    """Latents of a split's images, and latents drawn for its captions, with what each should decode to."""

    def __init__(self, model: Model, data: Data, split: str, m: Any, rng: Generator) -> None:
        examples, self.model, self.rng = data[split], model, rng
        factor = model.vae.config.scaling_factor
        with torch.no_grad():
            found = model.vae.encode(examples.images.to(model.device) / 127.5 - 1).latent_dist
        z, c, null = [], encoded(model, examples.captions), encoded(model, [""])
        for chosen in torch.arange(m.features).split(8):
            z_T = noise((len(chosen), *model.latent_shape), rng).to(c)
            z.append(drawn(model, ddim(model, m.ddim_steps), z_T, c[chosen % len(c)], null, m.guidance, m.ddim_steps))
        self.mean = {"images": found.mean * factor, "latents": torch.cat(z)}
        self.std = {"images": found.std * factor, "latents": torch.zeros_like(self.mean["latents"])}
        self.images = examples.images.to(c) / 255
        self.order: dict[str, list[int]] = {"images": [], "latents": []}

    def of(self, kind: str, chosen: Tensor | list[int], wanted: bool = True) -> tuple[Tensor, Tensor]:
        """Sampled latents of the chosen, and the images that they should decode to."""
        mean, std = self.mean[kind][chosen], self.std[kind][chosen]
        z = mean + std * noise(mean.shape, self.rng).to(mean)
        if kind == "images" or not wanted:
            return z, self.images[chosen] if kind == "images" else z
        with torch.no_grad():
            return z, self.model.vae.decode(z / self.model.vae.config.scaling_factor).sample / 2 + 0.5

    def next(self, kind: str, n: int, wanted: bool = True) -> tuple[Tensor, Tensor]:
        """The next n in a shuffled order."""
        order = self.order[kind]
        while len(order) < n:
            order += torch.randperm(len(self.mean[kind]), generator=self.rng).tolist()
        chosen, self.order[kind] = order[:n], order[n:]
        return self.of(kind, chosen, wanted)


def one_of(choices: Sequence[Any], rng: Generator) -> Any:
    return choices[int(torch.randint(len(choices), (), generator=rng))]


def to_original(loss: Tensor, learned: list[nn.Parameter], theta: list[nn.Parameter]) -> float:
    """Add the gradient found at the attacked copy to the original's."""
    for p, gradient in zip(theta, torch.autograd.grad(loss, learned), strict=True):
        p.grad = gradient if p.grad is None else p.grad + gradient
    return loss.item()


def unet(model: Model, concept: Concept, data: Data, m: Any, rng: Generator) -> Losses:
    """U1, then U2: the adapters learn to say zero for malicious pairs, then to stay so under attack."""
    trained = deepcopy(model.unet)
    theta = with_lora(trained, m.rank, m.alpha, rng)

    def black(part: nn.Module, z_0: Tensor, text: Tensor) -> Tensor:
        z_t, t, _ = noisy(model, z_0, rng)
        return predict(model, part, z_t, t, text).square().mean()

    def stage(steps: int, lr: float, decay: float, batch: int) -> Iterator[tuple[Pairs, Pairs]]:
        bad, good = (pairs(model, data[split], batch, rng) for split in ("concept", "safe"))
        optimizer = torch.optim.Adam(theta, lr, weight_decay=decay)
        schedule = StepLR(optimizer, max(1, steps // 3), 0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            yield bad, good
            optimizer.step()
            schedule.step()

    u, v = m.u1_weights
    for bad, good in stage(m.u1_steps, m.u1_lr, m.u1_decay, m.u1_batch):
        loss = u * denoise(model, trained, *next(good), rng=rng) + v * black(trained, *next(bad))
        loss.backward()
        last = loss.item()
        yield last
    u, v = (w / m.u2_batches for w in m.u2_weights)
    for bad, good in stage(m.u2_steps, m.u2_lr, m.u2_decay, m.u2_batch):
        copy = deepcopy(trained)
        learned = [p for p in copy.parameters() if p.requires_grad]  # of the adapters: the attack trains all of it
        everything = copy.requires_grad_(True).parameters()
        attacker, total = torch.optim.SGD(everything, m.u2_attack_lr, momentum=0.9, dampening=0.9), 0.0
        for z_0, c in islice(bad, m.u2_batches):
            attacker.zero_grad()
            denoise(model, copy, z_0[: m.u2_adapt], c[: m.u2_adapt], rng).backward()
            attacker.step()
            total += to_original(v * black(copy, z_0[m.u2_adapt :], c[m.u2_adapt :]), learned, theta)
        for z_0, c in islice(good, m.u2_batches):
            total += to_original(u * denoise(model, copy, z_0, c, rng), learned, theta)
        yield total
