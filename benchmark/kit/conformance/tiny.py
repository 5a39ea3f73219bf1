"""What plug-ins are tried on: a random pipeline of a few thousand weights, a card and images; small fields."""

import string
from collections.abc import Mapping
from dataclasses import fields as fields_of
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmark.diffusion import Model
from benchmark.kit.conformance.expect import seeded
from benchmark.model.unet import UNetModel
from benchmark.types import ELSE, Concept, Examples, Prompt
from metrics.base import Metric

SMALL: Mapping[str, Any] = {
    "steps": 3,
    "ddim_steps": 4,
    "rank": 2,
    "alpha": 2,
    "lr": 1e-3,
    "batch": 2,
    "perceptual": "pixels",
    "features": 4,
    "latent_batch": 2,
    "d1_steps": 1,
    "d1_batch": 2,
    "d2_steps": 2,
    "d2_batch": 2,
    "u1_steps": 1,
    "u1_batch": 2,
    "u2_steps": 1,
    "u2_batch": 3,
    "u2_adapt": 2,
    "u2_batches": 2,
    "lora_steps": 2,
    "mask_batches": 2,
    "warm_steps": 2,
    "attack_steps": 2,
    "anchor_images": 3,
    "image_steps": 2,
    "pairs": 3,
    "edit_steps": 4,
    "rounds": 2,
    "invert_steps": 2,
    "pool": 2,
    "retain_pool": 1,
    "retain_batch": 2,
    "reg_batch": 1,
    "inner_steps": 2,
    "inner_rate": 10.0,
    "attacks": 1,
    "terms": 2,
    "meta_batch": 2,
    "looks": 1,
    "d1_lr": 1e-3,
    "d2_lr": 1e-3,
    "u1_lr": 1e-3,
    "u2_lr": 1e-3,
}
ON_MINI: Mapping[str, Any] = {"model": "mini:judge", "embedder": "mini:judge", "backbone": "mini"}


def tiny_tokenizer() -> CLIPTokenizer:
    """One token a letter, 12 tokens a text."""
    letters = list(string.ascii_lowercase)
    entries = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={e: i for i, e in enumerate(entries)}, merges=[], model_max_length=12)


def tiny_pipeline() -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline of 8 px with random weights, always the same; the global generator stays."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=4,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(4, 8),
            latent_channels=4,
            norm_num_groups=2,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            sample_size=8,
        )
        tokenizer = tiny_tokenizer()
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        text = CLIPTextConfig(vocab_size=len(tokenizer.get_vocab()), max_position_embeddings=12, **size, **ends)
        schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=CLIPTextModel(text),
            tokenizer=tokenizer,
            unet=unet,
            scheduler=DDPMScheduler(**schedule),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def tiny_model() -> Model:
    """The tiny pipeline as methods see it: frozen, on the CPU."""
    pipe = tiny_pipeline()
    return UNetModel(
        unet=pipe.unet, vae=pipe.vae, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer, scheduler=pipe.scheduler
    ).frozen()


def tiny_concept() -> Concept:
    """A card that fits the tiny tokenizer: two short prompts in every split."""
    splits = ("concept", "retained", "safe", "attacker", "defender", "prior", "benign")
    label = {"concept": "cat", "retained": "dog"}
    prompts = [Prompt(text=f"{s[:2]} {n}", split=s, label=label.get(s)) for s in splits for n in ("a", "b")]  # type: ignore[arg-type]
    labels = {"cat": "a cat", "dog": "a dog", ELSE: ELSE}
    return Concept(name="cat", phrase="cat", kind="object", prompts=tuple(prompts), labels=labels)


def tiny_examples() -> Examples:
    """Four captioned pictures of noise, 8 px."""
    images = torch.randint(0, 256, (4, 3, 8, 8), generator=seeded(1), dtype=torch.uint8)
    return Examples(images=images, captions=("a cat", "a cat", "one", "two"))


def small(cls: type[Any], given: Mapping[str, Any] | None = None) -> Any:
    """An instance with few steps, whatever fields it has; `given` fields win."""
    wanted = {**SMALL, **(ON_MINI if issubclass(cls, Metric) else {})}
    return cls(**{f.name: wanted[f.name] for f in fields_of(cls) if f.name in wanted} | dict(given or {}))
