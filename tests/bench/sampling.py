"""Drawing images: the sampler of all cells against the diffusers pipeline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from benchmark.config import config
from benchmark.data import load_concept
from benchmark.data.cards import spread
from benchmark.diffusion import Model
from benchmark.model import bases
from benchmark.model.generate import generate, start_noise
from benchmark.plan.seeds import image_seed
from benchmark.types import Prompt
from tests.bench.paired import alternate, ratio
from tests.bench.table import Row, compared
from tests.bench.training import silent


def pipeline(model: Model) -> StableDiffusionPipeline:
    """The diffusers pipeline on the same weights, with DDIM as Stable Diffusion ships it, and no bar."""
    fixed = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
    pipe = StableDiffusionPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=DDIMScheduler.from_config(model.scheduler.config, **fixed),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Draw:
    """The same images from the same noise by three hands."""

    def __init__(self, model: Model, prompts: Sequence[Prompt], *, images: int, steps: int, guidance: float) -> None:
        self.model, self.prompts, self.images = model, tuple(prompts), images
        self.steps, self.guidance, self.pipe = steps, guidance, pipeline(model)
        seeds = [image_seed(prompt.id, i, "bench") for prompt in self.prompts for i in range(images)]
        self.z_T = start_noise(seeds, model.latent_shape).to(model.device)
        self.common: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance}

    def harness(self) -> Tensor:
        """Ours: uint8 `(N, 3, H, W)`, in one batch."""
        return generate(
            self.model,
            self.prompts,
            images=self.images,
            steps=self.steps,
            guidance=self.guidance,
            stream="bench",
            batch=len(self.z_T),
            report=silent,
        ).images

    def batched(self) -> Tensor:
        """The pipeline, all in one batch, its images left as tensors: its quickest use."""
        texts = [prompt.text for prompt in self.prompts]
        with torch.autocast(self.z_T.device.type, torch.bfloat16, enabled=self.model.precision == "bfloat16"):
            found = self.pipe(
                texts, num_images_per_prompt=self.images, latents=self.z_T, output_type="pt", **self.common
            )
        return (found.images.float() * 255).round().to("cpu", torch.uint8)

    def single(self) -> list[Any]:
        """The pipeline prompt by prompt, as published evaluation scripts do, pictures as they save them."""
        texts = [prompt.text for prompt in self.prompts for _ in range(self.images)]
        return [
            self.pipe(text, latents=z[None], **self.common).images[0] for text, z in zip(texts, self.z_T, strict=True)
        ]


def rows(folder: Path | None = None, *, prompts: int = 16, images: int = 1, rounds: int = 9) -> Sequence[Row]:
    """The demo's sampling on its model.

    Raises:
        ValueError: the images of the two differ by more than rounding.
    """
    model, raw = bases.load(folder or bases.locate("mini")), config.load("demo").raw.sampling
    chosen = spread(load_concept("cigarette").of("concept"), prompts)
    draw = Draw(model, chosen, images=images, steps=raw.steps, guidance=raw.guidance)
    apart = int((draw.harness().int() - draw.batched().int()).abs().max())
    if apart > 2:
        raise ValueError(f"expected the same images from both, got some {apart} levels of 255 apart: mend one.")
    size = f"{len(draw.z_T)} images, {raw.steps} steps, guidance {raw.guidance:g}"
    together = ratio(*alternate(draw.harness, draw.batched, rounds))
    alone = ratio(*alternate(draw.harness, draw.single, max(1, rounds // 3)))
    note = f"images apart by {apart} of 255 levels"
    return [
        compared(
            f"generate: {size}, against the diffusers pipeline in one batch", together, target=">= 1.05", note=note
        ),
        compared(f"generate: {size}, against the pipeline one prompt at a time", alone),
    ]
