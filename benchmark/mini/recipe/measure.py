"""The bar of the embedded models: what the second opinion sees in 256 images of fresh seeds, and how long 64 take."""

import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmark.data import load_concept
from benchmark.diffusion import Model
from benchmark.model.bases import load, locate
from benchmark.model.generate import generate
from benchmark.types import ELSE, Concept, Prompt, Report
from metrics.presence import Presence

BAR = {"object": 0.85, "style": 0.85, "seconds_for_64": 20.0}
BACKGROUNDS = ("white", "blue", "yellow", "pink")
STEPS, GUIDANCE, IMAGES = 25, 3.0, 256


def measure(
    report: Report, *, base: str = "mini", judge: str = "mini:second", grid: Path | None = None, device: str = "cpu"
) -> dict[str, float]:
    """Shares of images of `base` whose object and style `judge` names right, and seconds for 64 images.

    The prompts are a spread of all objects x styles x backgrounds; `grid` keeps a picture of the images.
    """
    model = load(locate(base), device=device)
    objects, styles = load_concept("cigarette"), load_concept("contrast")
    prompts = every_prompt(objects, styles)
    chosen = [prompts[i] for i in torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0))[:IMAGES]]
    images = draw(model, [p for p, _, _ in chosen], report)
    started = time.monotonic()
    draw(model, [p for p, _, _ in chosen[:64]], report)
    seconds = time.monotonic() - started
    method = Presence(model=judge)
    if grid:
        save_grid(images[:96], grid)
    return {
        "object": right(method, images, objects, [o for _, o, _ in chosen]),
        "style": right(method, images, styles, [s for _, _, s in chosen]),
        "seconds_for_64": round(seconds, 1),
    }


def every_prompt(objects: Concept, styles: Concept) -> list[tuple[Prompt, str, str]]:
    """Prompt, object and style of all objects x styles x backgrounds."""
    named = {label: text.removeprefix("an emoji of ") for label, text in objects.labels.items() if label != ELSE}
    combined = product(named, [label for label in styles.labels if label != ELSE], BACKGROUNDS)
    return [
        (
            Prompt(text=f"a {style} style emoji of {named[label]} on a {ground} background", split="concept"),
            label,
            style,
        )
        for label, style, ground in combined
    ]


def draw(model: Model, prompts: list[Prompt], report: Report) -> torch.Tensor:
    """One image `(N, 3, H, W)` in [0, 1] of each prompt, with seeds that nothing else uses."""
    settings = {"images": 1, "steps": STEPS, "guidance": GUIDANCE, "stream": "measure", "batch": 64}
    return generate(model, prompts, **settings, report=report).images.float() / 255  # type: ignore[arg-type]


def right(method: Presence, images: torch.Tensor, concept: Concept, wanted: list[str]) -> float:
    """The share of images whose most likely label is the wanted one; `something else` is wrong."""
    names = list(concept.labels)
    answers = method.probabilities(images, concept).argmax(1).tolist()
    return sum(names[a] == w for a, w in zip(answers, wanted, strict=True)) / len(wanted)


def save_grid(images: torch.Tensor, path: Path, columns: int = 16) -> None:
    """Write images in rows."""
    rows = [torch.cat(list(row), dim=2) for row in images.split(columns) if len(row) == columns]
    pixels = (torch.cat(rows, dim=1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
