"""The mini model's U-Net: noise prediction on pre-encoded latents, in Stable Diffusion 1.x's format and schedule."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from benchmark.mini.recipe.dataset import Art, Label, as_tensor, caption_texts, every_label
from benchmark.mini.recipe.loop import train
from benchmark.mini.recipe.pool import SCHEDULE

BATCH, STEPS, LR = 64, 3600, 1.2e-3
CAPTIONS_EACH = 10  # caption variants of every combination, encoded once
SNR_CAP = 5.0  # min-SNR weighting (Hang et al., ICCV 2023): weighs timesteps alike, which short training needs


def new_denoiser() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 96, 160),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=192,
        attention_head_dim=4,
        norm_num_groups=8,
    )


@torch.no_grad()
def encode_images(art: Art, vae: AutoencoderKL, labels: list[Label], *, seed: int) -> Tensor:
    """Latents of one drawing of each label: `(N, 4, 16, 16)`, scaled."""
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, len(labels), 64):
        x_pm1 = as_tensor([art.image(label, rng, wild=0.8) for label in labels[start : start + 64]]) * 2 - 1
        parts.append(vae.encode(x_pm1.to(vae.device)).latent_dist.mean * vae.config.scaling_factor)
    return torch.cat(parts)


@torch.no_grad()
def encode_captions(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, combinations: list[Label], *, seed: int
) -> Tensor:
    """`CAPTIONS_EACH` captions of every combination, then the empty one last: `(M, 77, 192)`."""
    texts = caption_texts(combinations, CAPTIONS_EACH, seed=seed)
    ids = tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    return torch.cat([text_encoder(part)[0] for part in ids.split(256)])


def train_denoiser(
    art: Art,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    out: Path,
    *,
    seed: int,
    steps: int = STEPS,
    poses: int = 24,
) -> UNet2DConditionModel:
    """Fit the noise of `poses` drawings of every combination; a tenth of the captions are empty, for guidance."""
    torch.manual_seed(seed)
    combinations = every_label()
    latents = encode_images(art, vae, combinations * poses, seed=seed)
    texts = encode_captions(tokenizer, text_encoder, combinations, seed=seed)
    model = new_denoiser()
    scheduler = DDPMScheduler(**SCHEDULE)
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)

    def step(i: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(seed * 1_000_003 + i)
        chosen = torch.randint(len(latents), (BATCH,), generator=g)
        variant = torch.randint(CAPTIONS_EACH, (BATCH,), generator=g)
        empty = torch.rand(BATCH, generator=g) < 0.1
        said = torch.where(empty, len(texts) - 1, (chosen % len(combinations)) * CAPTIONS_EACH + variant)
        t = torch.randint(1000, (BATCH,), generator=g)
        eps = torch.randn(BATCH, *latents.shape[1:], generator=g)
        z_t = scheduler.add_noise(latents[chosen], eps, t)
        error = (model(z_t, t, texts[said]).sample - eps).square().mean((1, 2, 3))
        weight = snr[t].clamp(max=SNR_CAP) / snr[t]
        return {"loss": (weight * error).mean(), "plain": error.mean()}

    model = train(model, step, steps=steps, lr=LR, log=out / "denoiser.csv", decay=0.9985)
    model.save_pretrained(out / "unet")
    return model
