"""Model + prompts -> images: the one sampler that all cells share.

Image i of a prompt starts from noise of its own seed, drawn on the CPU, so a cell's images do not depend on batch
size, order or resume beyond floating-point rounding. A prompt of a published set may bring its seed and its guidance.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, product

import torch
from torch import Tensor

from benchmark.diffusion import Model, sample
from benchmark.plan.seeds import CONFIRM, SEARCHED, image_seed
from benchmark.store.artifacts import Gallery
from benchmark.types import Prompt, Report

Ask = Callable[[Tensor], Tensor]  # texts -> what the model reads
Begin = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, int]]  # noise, text, null, guidance -> latents, steps


def start_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """z_T of each seed: `(B, C, h, w)`."""
    return torch.stack([torch.randn(tuple(shape), generator=torch.Generator().manual_seed(s)) for s in seeds])


def seed_of(prompt: Prompt, number: int, stream: str) -> int:
    """The seed of image `number`: the prompt's own for the first, if it has one; derived for all others.

    What a search looks at has none of these: its results are judged on them. Of fresh images all are derived: the first
    with the prompt's own seed was drawn before.
    """
    own = prompt.seed if number == 0 and stream not in (SEARCHED, CONFIRM) else None
    return image_seed(prompt.id, number, stream) if own is None else own


def batches(
    prompts: Sequence[Prompt], images: int, guidance: float, batch: int
) -> Iterator[tuple[float, list[tuple[Prompt, int]]]]:
    """(guidance, images) of at most `batch` images that share one guidance: a prompt's own, or `guidance`."""

    def scale(wanted: tuple[Prompt, int]) -> float:
        return guidance if wanted[0].guidance is None else wanted[0].guidance

    for shared, group in groupby(sorted(product(prompts, range(images)), key=scale), scale):
        same = list(group)
        yield from ((shared, same[start : start + batch]) for start in range(0, len(same), batch))


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
    ask: Ask | None = None,
) -> Gallery:
    """Draw `images` of each prompt, in batches of `batch`.

    `begin` says where a batch's trajectories start, `ask` what the model reads in place of the texts.
    """
    wanted, seeds = list[tuple[Prompt, int]](), list[int]()
    texts = {p.text: model.encode_text([p.text])[0] for p in prompts}
    null = model.encode_text([""])
    if ask:
        *read, null = ask(torch.stack([*texts.values(), null[0]])).unsqueeze(1)
        texts = {text: encoded[0] for text, encoded in zip(texts, read, strict=True)}
    parts = []
    for scale, chunk in batches(prompts, images, guidance, batch):
        own = [seed_of(prompt, number, stream) for prompt, number in chunk]
        z_T = start_noise(own, model.latent_shape).to(null)
        text = torch.stack([texts[prompt.text] for prompt, _ in chunk])
        z, start_at = begin(z_T, text, null.expand_as(text), scale) if begin else (z_T, 0)
        z = sample(model, z, text, null.expand_as(text), steps=steps, guidance=scale, start=start_at)
        parts.append((model.decode(z) * 255).round().to("cpu", torch.uint8))
        wanted += chunk
        seeds += own
        report(step=len(wanted), total=len(prompts) * images, loss=float("nan"))
    return Gallery(
        images=torch.cat(parts),
        prompt_ids=tuple(p.id for p, _ in wanted),
        prompts=tuple(p.text for p, _ in wanted),
        numbers=tuple(n for _, n in wanted),
        seeds=tuple(seeds),
    )
