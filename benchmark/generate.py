"""Model + prompts -> images: the one sampler that all cells share.

Image i of a prompt starts from noise of its own seed, drawn on the CPU, so a cell's images do not depend on batch
size, order or resume beyond floating-point rounding.
"""

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from benchmark.artifacts import Gallery
from benchmark.diffusion import Model, sample
from benchmark.seeds import image_seed
from benchmark.types import Prompt, Report

Begin = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, int]]  # noise, text, null -> latents, steps behind them


def start_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """z_T of each seed: `(B, C, h, w)`."""
    return torch.stack([torch.randn(tuple(shape), generator=torch.Generator().manual_seed(s)) for s in seeds])


@torch.no_grad()
def generate(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    images: int,
    steps: int,
    guidance: float,
    stream: str,
    batch: int,
    report: Report,
    begin: Begin | None = None,
) -> Gallery:
    """Draw `images` of each prompt, in batches of `batch`; `begin` says where a batch's trajectories start."""
    wanted = [(prompt, number) for prompt, number in product(prompts, range(images))]
    seeds = [image_seed(prompt.id, number, stream) for prompt, number in wanted]
    texts = {p.text: model.encode_text([p.text])[0] for p in prompts}
    null = model.encode_text([""])
    parts = []
    for start in range(0, len(wanted), batch):
        chunk = wanted[start : start + batch]
        z_T = start_noise(seeds[start : start + batch], model.latent_shape).to(null)
        text = torch.stack([texts[prompt.text] for prompt, _ in chunk])
        z, start_at = begin(z_T, text, null.expand_as(text)) if begin else (z_T, 0)
        z = sample(model, z, text, null.expand_as(text), steps=steps, guidance=guidance, start=start_at)
        parts.append((model.decode(z) * 255).round().to("cpu", torch.uint8))
        report(step=start + len(chunk), total=len(wanted), loss=float("nan"))
    return Gallery(
        images=torch.cat(parts),
        prompt_ids=tuple(p.id for p, _ in wanted),
        prompts=tuple(p.text for p, _ in wanted),
        numbers=tuple(n for _, n in wanted),
        seeds=tuple(seeds),
    )
