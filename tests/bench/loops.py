"""The loops that people would write by hand: each yields its loss once a step, for ever.

They use torch, diffusers and peft alone, none of the library's helpers, and draw the same random numbers in the same
order as the methods do, so that the losses of the two can be compared: who minimises something else is found out.
A method's settings `m` are read, never its code. Two of them are written like the published scripts, not like ours.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmark.diffusion import Model
from benchmark.types import Concept, Examples

Losses = Iterator[float]
Data = dict[str, Examples]
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


# What several of them need.


@torch.no_grad()
def encoded(model: Model, texts: Sequence[str]) -> Tensor:
    """Text `(B, L, D)`."""
    return model.text_encoder(tokens(model, texts).to(model.device))[0]


def tokens(model: Model, texts: Sequence[str]) -> Tensor:
    length = model.tokenizer.model_max_length
    return model.tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


@torch.no_grad()
def pairs(model: Model, examples: Examples, batch: int, rng: Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless latents and texts, encoded beforehand."""
    found = model.vae.encode(examples.images.to(model.device) / 127.5 - 1).latent_dist
    mean, std = found.mean * model.vae.config.scaling_factor, found.std * model.vae.config.scaling_factor
    text, order = encoded(model, examples.captions), list[int]()
    while True:
        while len(order) < batch:
            order += torch.randperm(len(mean), generator=rng).tolist()
        chosen, order = order[:batch], order[batch:]
        yield mean[chosen] + std[chosen] * noise(mean[chosen].shape, rng).to(mean), text[chosen]


def noise(shape: Sequence[int], rng: Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=rng)


def predict(model: Model, unet: nn.Module, z: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """What a U-Net says, in the model's precision."""
    with torch.autocast(z.device.type, torch.bfloat16, enabled=model.precision == "bfloat16"):
        return unet(z, t, encoder_hidden_states=text).sample.float()


def noisy(model: Model, z_0: Tensor, rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """z_t, t and eps."""
    t = torch.randint(model.scheduler.config.num_train_timesteps, (len(z_0),), generator=rng).to(z_0.device)
    eps = noise(z_0.shape, rng).to(z_0)
    return model.scheduler.add_noise(z_0, eps, t), t, eps


def denoise(model: Model, unet: nn.Module, z_0: Tensor, text: Tensor, rng: Generator) -> Tensor:
    """The loss of diffusion."""
    z_t, t, eps = noisy(model, z_0, rng)
    return F.mse_loss(predict(model, unet, z_t, t, text), eps)


def with_lora(unet: Any, rank: int, alpha: int, rng: Generator) -> list[nn.Parameter]:
    """Adapters on the attention, and their parameters."""
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS))
    for name, parameter in unet.named_parameters():
        if "lora_A" in name:
            parameter.data = noise(parameter.shape, rng).to(parameter) / rank
    return [p for p in unet.parameters() if p.requires_grad]


def ddim(model: Model, steps: int) -> DDIMScheduler:
    """The sampler that diffusers makes of the model's schedule."""
    fixed = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    scheduler = DDIMScheduler.from_config(model.scheduler.config, timestep_spacing="leading", **fixed)
    scheduler.set_timesteps(steps)
    return scheduler


@torch.no_grad()
def drawn(
    model: Model, scheduler: DDIMScheduler, z: Tensor, c: Tensor, null: Tensor, guidance: float, stop: int
) -> Tensor:
    """Latents after the first `stop` steps of guided DDIM."""
    text = torch.cat([null.expand_as(c), c])
    for t in scheduler.timesteps[:stop]:
        eps_null, eps_c = predict(model, model.unet, torch.cat([z, z]), t, text).chunk(2)
        z = scheduler.step(eps_null + guidance * (eps_c - eps_null), t, z).prev_sample
    return z


def on_the_way(
    model: Model, scheduler: DDIMScheduler, c: Tensor, null: Tensor, m: Any, rng: Generator
) -> tuple[Tensor, Tensor]:
    """z_t and t: DDIM by the frozen model, stopped at a random step."""
    stop = int(torch.randint(m.ddim_steps, (), generator=rng))
    z_T = noise((m.batch, *model.latent_shape), rng).to(c)
    z_t = drawn(model, scheduler, z_T, c.expand(m.batch, -1, -1), null, m.start_guidance, stop)
    return z_t, scheduler.timesteps[stop].to(c.device)


# Attacks.


def lora(model: Model, concept: Concept, data: Data, m: Any, rng: Generator) -> Losses:
    """A bare peft loop on latents encoded beforehand."""
    unet = deepcopy(model.unet)
    theta = with_lora(unet, m.rank, m.alpha, rng)
    optimizer = torch.optim.AdamW(theta, m.lr)
    for z_0, text in pairs(model, data["concept"], m.batch, rng):
        loss = denoise(model, unet, z_0, text, rng)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(theta, 1.0)
        optimizer.step()
        yield loss.item()


class Pictures(Dataset):
    """Captioned pictures, made ready one by one, as the published script's dataset does."""

    def __init__(self, model: Model, examples: Examples) -> None:
        self.pictures = [Image.fromarray(x.permute(1, 2, 0).cpu().numpy()) for x in examples.images]
        self.ids = tokens(model, examples.captions)
        side = examples.images.shape[-1]
        self.ready = transforms.Compose(
            [
                transforms.Resize(side, interpolation=transforms.InterpolationMode.BILINEAR),
                transforms.CenterCrop(side),
                transforms.ToTensor(),
                transforms.Normalize([0.5], [0.5]),
            ]
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.ready(self.pictures[i]), self.ids[i]


def published_lora(model: Model, data: Data, m: Any, rng: Generator, *, accumulate: int) -> Losses:
    """As the published LoRA scripts go: every image and caption is encoded at each step.

    One step takes `m.batch` examples, in `accumulate` parts.
    """
    unet = deepcopy(model.unet)
    theta = with_lora(unet, m.rank, m.alpha, rng)
    optimizer = torch.optim.AdamW(theta, m.lr, weight_decay=1e-2)
    schedule = get_scheduler("constant", optimizer)
    loader = DataLoader(Pictures(model, data["concept"]), m.batch // accumulate, shuffle=True, generator=rng)
    endless = (batch for _ in iter(int, 1) for batch in loader if len(batch[0]) == m.batch // accumulate)
    while True:
        total = 0.0
        for _ in range(accumulate):
            pixels, ids = next(endless)
            with torch.no_grad():
                z_0 = model.vae.encode(pixels.to(model.device)).latent_dist.sample() * model.vae.config.scaling_factor
                text = model.text_encoder(ids.to(model.device), return_dict=False)[0]
            loss = denoise(model, unet, z_0, text, rng) / accumulate
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(theta, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield total


# Defenses.


def esd(model: Model, concept: Concept, data: Data, m: Any, rng: Generator) -> Losses:
    """ESD-x: cross-attention learns to be guided away from the phrase."""
    unet, scheduler = deepcopy(model.unet), ddim(model, m.ddim_steps)
    theta = [p.requires_grad_(True) for n, p in unet.named_parameters() if ".attn2." in n]
    optimizer = torch.optim.Adam(theta, m.lr)
    texts = encoded(model, [concept.phrase, *(concept.wordings if m.erase == "wordings" else ())])
    null = encoded(model, [""])
    while True:
        c = texts[int(torch.randint(len(texts), (), generator=rng))][None]
        z_t, t = on_the_way(model, scheduler, c, null, m, rng)
        c_all, null_all = c.expand(m.batch, -1, -1), null.expand(m.batch, -1, -1)
        with torch.no_grad():
            eps_null = predict(model, model.unet, z_t, t, null_all)
            eps_c = predict(model, model.unet, z_t, t, c_all)
        loss = F.mse_loss(predict(model, unet, z_t, t, c_all), eps_null - m.eta * (eps_c - eps_null))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def imma(model: Model, concept: Concept, data: Data, m: Any, rng: Generator) -> Losses:
    """A step of LoRA down the loss, a step of the attention up, in turn."""
    unet = deepcopy(model.unet)
    theta = [p for n, p in unet.named_parameters() if any(key in n for key in ("to_q", "to_k", "to_v", "to_out"))]
    phi = with_lora(unet, m.rank, m.rank, rng)
    for p in theta:
        p.requires_grad_(True)
    turns = [(phi, torch.optim.AdamW(phi, m.adapt_lr), 1), (theta, torch.optim.AdamW(theta, m.lr), -1)]
    for i, (z_0, text) in enumerate(pairs(model, data["concept"], m.batch, rng)):
        loss = denoise(model, unet, z_0, text, rng)
        parameters, optimizer, sign = turns[i % 2]
        for p, gradient in zip(parameters, torch.autograd.grad(sign * loss, parameters), strict=True):
            p.grad = gradient
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        yield loss.item()


def gift(model: Model, concept: Concept, data: Data, m: Any, rng: Generator) -> Losses:
    """A step on safe images, then one up on malicious ones with every layer pushed to noise."""
    unet = deepcopy(model.unet).requires_grad_(True)
    theta, h = list(unet.parameters()), list[Tensor]()
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    for layer in (x for block in blocks for kind in ("resnets", "attentions") for x in getattr(block, kind, ())):
        layer.register_forward_hook(lambda _, __, out: h.append((out if isinstance(out, Tensor) else out[0]).float()))
    lower, upper = torch.optim.AdamW(theta, m.lr_prior), torch.optim.AdamW(theta, m.lr_immunise)
    safe, malicious = (pairs(model, data[split], m.batch, rng) for split in ("safe", "concept"))
    while True:
        down(denoise(model, unet, *next(safe), rng=rng), theta, lower)
        z_0, text = next(malicious)
        z_t, t, eps = noisy(model, z_0, rng)
        h.clear()
        errors = (predict(model, unet, z_t, t, text) - eps).square().mean((1, 2, 3))
        found = []
        for layer in h:
            x = layer.movedim(1, -1).flatten(0, -2)
            x = x[torch.randperm(len(x), generator=rng)[: m.rows].to(x.device)]
            found.append(mmd(x, noise(x.shape, rng).to(x)))
        loss = -errors.clamp(max=m.loss_cap).mean() + m.beta * torch.stack(found).mean()
        down(loss, theta, upper)
        yield loss.item()


def down(loss: Tensor, theta: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(theta, 1.0)
    optimizer.step()


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """Biased squared MMD with five Gaussian kernels, 1/4 to 4 times the mean squared distance wide."""
    both, n = torch.cat([x, y]), len(x)
    both = both - both.mean(0)
    squares = (both * both).sum(1)
    d = (squares[:, None] + squares - 2 * both @ both.T).clamp(min=0)
    width = d.detach().sum() / (len(both) ** 2 - len(both))
    k = torch.stack([torch.exp(-d / (width * s)) for s in (0.25, 0.5, 1.0, 2.0, 4.0)]).sum(0)
    return k[:n, :n].mean() + k[n:, n:].mean() - k[:n, n:].mean() - k[n:, :n].mean()


def aegis(model: Model, concept: Concept, data: Data, m: Any, rng: Generator) -> Losses:
    """ESD-x toward a searched target under a searched prompt, pulled back where that helps."""
    unet, scheduler, table = deepcopy(model.unet), ddim(model, m.ddim_steps), model.text_encoder.get_input_embeddings()
    theta = [p.requires_grad_(True) for n, p in unet.named_parameters() if ".attn2." in n]
    theta_0 = [p for n, p in model.unet.named_parameters() if ".attn2." in n]
    optimizer, omega = torch.optim.Adam(theta, m.lr), 0.0
    texts = [concept.phrase, *(concept.wordings if m.erase == "wordings" else ()), ""]
    words, plain = table(tokens(model, texts).to(model.device)).detach(), encoded(model, texts)
    null = plain[-1:]
    width = words.shape[-1]
    free = table.weight.detach().std() * noise((1, m.prefix + 1, width), rng).to(words)

    def both(chosen: int, free: Tensor) -> tuple[Tensor, Tensor]:
        """c* and c': the free words put into the text and alone."""
        star = torch.cat([words[chosen, :1], free[0, :-1], words[chosen, 1 : -m.prefix]])
        prime = torch.cat([words[-1, :1], free[0, -1:], words[-1, 1:-1]])
        return read(model, torch.stack([star, prime])).split(1)  # type: ignore[return-value]

    while True:
        chosen = int(torch.randint(len(texts) - 1, (), generator=rng))
        c = plain[chosen : chosen + 1]
        z_t, t = on_the_way(model, scheduler, c, null, m, rng)
        free.requires_grad_()
        c_star, c_prime = both(chosen, free)
        size = (m.batch, -1, -1)
        with torch.no_grad():
            eps_0, eps_th = (predict(model, u, z_t, t, c.expand(size)) for u in (model.unet, unet))
        eps_prime = predict(model, model.unet, z_t, t, c_prime.expand(size))
        found = F.mse_loss(predict(model, unet, z_t, t, c_star.expand(size)), eps_0)
        found = found + m.aet_sign * F.mse_loss(eps_prime, eps_th) + F.mse_loss(eps_prime, eps_0)
        free = (free - m.beta * torch.autograd.grad(found, free)[0].sign()).detach()
        with torch.no_grad():
            c_star, c_prime = both(chosen, free)
            text = torch.cat([null.expand(size), c_prime.expand(size)])
            eps_null, eps_prime = predict(model, model.unet, torch.cat([z_t, z_t]), t, text).chunk(2)
        target = eps_null - m.eta * (eps_prime - eps_null)
        loss = F.mse_loss(predict(model, unet, z_t, t, c_star.expand(size)), target)
        conflict = False
        g_e = torch.autograd.grad(loss, theta)
        with torch.no_grad():
            for p, before, g in zip(theta, theta_0, g_e, strict=True):
                g_r = p - before
                product = (g * g_r).sum()
                meet = bool(product < 0)
                p.grad = g - omega * product / (g_r * g_r).sum() * g_r if meet else g
                conflict = conflict or meet
        optimizer.step()
        omega = min(1.0, omega + 2 / m.steps) if conflict else omega
        yield loss.item()


def read(model: Model, words: Tensor) -> Tensor:
    """The text encoder's answer to word vectors `(B, L, D)`."""
    table = model.text_encoder.get_input_embeddings()
    handle = table.register_forward_hook(lambda *_: words)
    try:
        return model.text_encoder(torch.zeros(words.shape[:2], dtype=torch.long, device=words.device))[0]
    finally:
        handle.remove()
