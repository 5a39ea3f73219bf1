"""Tiny random pipelines of the architectures that titer meets, written by diffusers itself: seconds each, 8 px."""

import string
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2TokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from benchmark.diffusion import Model
from benchmark.kit.conformance import tiny_pipeline

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BLOCKS = {
    "sample_size": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "use_linear_projection": True,
}


def tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """One token a letter, 12 tokens a text; the end token has the largest number, as in CLIP."""
    letters = ["!", *string.ascii_lowercase]
    entries = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={e: i for i, e in enumerate(entries)}, merges=[], model_max_length=12, pad_token=pad)


def vae(channels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8),
        latent_channels=channels,
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=8,
    )


def text_config(width: int, **more: Any) -> CLIPTextConfig:
    size = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    ends = {"bos_token_id": 54, "eos_token_id": 55}
    return CLIPTextConfig(vocab_size=56, max_position_embeddings=12, **{**size, **ends, **more})


def sd21() -> StableDiffusionPipeline:
    """As Stable Diffusion 2.1: predicts v, pads with `!`, projects by linear layers."""
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config(32)),
        tokenizer=tokenizer("!"),
        unet=UNet2DConditionModel(**BLOCKS, cross_attention_dim=32, attention_head_dim=(2, 4)),
        scheduler=DDIMScheduler(
            **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> StableDiffusionXLPipeline:
    """As Stable Diffusion XL: two text encoders of different widths, the second with CLIP's old end token number."""
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config(16)),
        text_encoder_2=CLIPTextModelWithProjection(
            text_config(24, projection_dim=28, hidden_act="gelu", bos_token_id=0, eos_token_id=2)
        ),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer("!"),
        unet=UNet2DConditionModel(
            **BLOCKS,
            cross_attention_dim=16 + 24,
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 28,
        ),
        scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


def flow_vae(channels: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8),
        latent_channels=channels,
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0609,
        scaling_factor=1.5305,
    )


def t5(width: int) -> tuple[T5EncoderModel, T5TokenizerFast]:
    """A T5 that reads words of its own, at most 10 tokens a text."""
    words = [
        "<pad>",
        "</s>",
        "<unk>",
        "\u2581",
        *(f"\u2581{c}" for c in string.ascii_lowercase),
        *string.ascii_lowercase,
    ]
    tokenizer = T5TokenizerFast(vocab=[(word, -float(i)) for i, word in enumerate(words)], extra_ids=0)
    tokenizer.model_max_length = 10
    config = T5Config(
        vocab_size=len(words), d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return T5EncoderModel(config), tokenizer


def sd3(with_t5: bool = False) -> StableDiffusion3Pipeline:
    """As Stable Diffusion 3: two CLIPs, T5 or not, a transformer of two blocks that predicts velocities."""
    encoders = [CLIPTextModelWithProjection(text_config(width, projection_dim=width, t5_rows=10)) for width in (16, 24)]
    heard, listening = t5(48) if with_t5 else (None, None)
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=4,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=48,
            caption_projection_dim=16,
            pooled_projection_dim=40,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flow_vae(4),
        text_encoder=encoders[0],
        tokenizer=tokenizer(),
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer("!"),
        text_encoder_3=heard,
        tokenizer_3=listening,
    )


def flux(is_dev: bool = True) -> FluxPipeline:
    """As FLUX.1: -dev reads its guidance and shifts its times by the image's size, -schnell does neither."""
    heard, listening = t5(32)
    shift = {"use_dynamic_shifting": True} if is_dev else {"shift": 1.0}
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=is_dev,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**shift),
        vae=flow_vae(4),
        text_encoder=CLIPTextModel(text_config(16)),
        tokenizer=tokenizer(),
        text_encoder_2=heard,
        tokenizer_2=listening,
    )


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>a{% if not enable_thinking %}x{% endif %}{% endif %}"
)


def qwen(width: int) -> tuple[Qwen3ForCausalLM, Qwen2TokenizerFast]:
    """A Qwen3 of 28 layers, since FLUX.2-klein reads the 9th, 18th and 27th, with a tokenizer of letters."""
    marks = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    words = [*string.ascii_letters, *string.digits, *string.punctuation, "\u0120", "\u010a", *marks]
    tokenizer = Qwen2TokenizerFast(
        vocab={word: i for i, word in enumerate(words)}, merges=[], pad_token=marks[0], unk_token=marks[0]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks[1:])})
    tokenizer.chat_template, tokenizer.model_max_length = CHAT, 1000
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
        text_rows=40,
    )
    return Qwen3ForCausalLM(config), tokenizer


def flux2(is_distilled: bool = False) -> Flux2KleinPipeline:
    """As FLUX.2-klein: one language model, latents normalised by the VAE's batch norm."""
    encoder, tokenizer = qwen(16)
    sizes = {"block_out_channels": (4, 8), "latent_channels": 4, "norm_num_groups": 2, "sample_size": 8}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    autoencoder = AutoencoderKLFlux2(**sizes, **kinds)
    autoencoder.bn.running_mean.normal_()
    autoencoder.bn.running_var.uniform_(0.5, 2.0)
    return Flux2KleinPipeline(
        transformer=Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * 16,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder,
        text_encoder=encoder,
        tokenizer=tokenizer,
        is_distilled=is_distilled,
    )


PIPELINES = {
    "sd1": tiny_pipeline,
    "sd21": sd21,
    "sdxl": sdxl,
    "sd3": sd3,
    "sd3-t5": partial(sd3, True),
    "flux": flux,
    "schnell": partial(flux, False),
    "flux2": flux2,
    "flux2-distilled": partial(flux2, True),
}


def write(name: str, folder: Path) -> Path:
    """A pipeline's folder, always with the same weights; the global generator stays."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        PIPELINES[name]().save_pretrained(folder)
    return folder


def stock(model: Model, kind: type[Any] = StableDiffusionPipeline) -> Any:
    """The pipeline of diffusers with a U-Net model's own parts, and DDIM as we sample."""
    found = kind(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.denoiser,
        scheduler=DDIMScheduler(
            **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    found.set_progress_bar_config(disable=True)
    return found
