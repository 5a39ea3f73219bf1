"""Stable Diffusion 1 and 2: one CLIP text encoder, whose last hidden states the U-Net reads; eps or v-prediction.

The two differ in their configs alone: 2 has a larger text encoder and pads texts with another token.
"""

from pathlib import Path
from typing import Any

from diffusers import DDPMScheduler, StableDiffusionPipeline

from benchmark.model.unet import UNetModel

PIPELINES = ("StableDiffusionPipeline",)
PARTS = ("unet", "vae", "text_encoder")
SETTINGS = ("tokenizer", "scheduler")
FLAGS = ()
OPTIONAL = ()
SCHEDULERS = ()
LACKS: dict[str, str] = {}


def pipeline(folder: Path, **components: Any) -> StableDiffusionPipeline:
    """The pipeline of a folder, without a safety checker: what is drawn is judged, not hidden."""
    return StableDiffusionPipeline.from_pretrained(
        folder,
        use_safetensors=True,
        local_files_only=True,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
        **components,
    )


def model(pipe: Any, scheduler: DDPMScheduler) -> UNetModel:
    """The model of a pipeline."""
    return UNetModel(
        unet=pipe.unet, vae=pipe.vae, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer, scheduler=scheduler
    )
