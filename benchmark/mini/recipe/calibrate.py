"""A calibration card for each judge: how often it is right on held-out pictures, and sees what is not there.

true_positive      held-out renders of the concept, as drawn and through the autoencoder
false: objects     renders of the other known objects (or styles)
false: unknown     renders of emoji that no judge was trained on
false: broken      blank, noisy, shredded, blended pictures and sampling runs of the mini model stopped half way
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.data import cards, load_concept
from benchmark.diffusion import Model, sample
from benchmark.generate import start_noise
from benchmark.mini import WEIGHTS
from benchmark.mini.recipe.dataset import Art, Label, as_tensor, every_label
from benchmark.mini.recipe.pool import broken_images, through
from benchmark.models import load
from benchmark.types import ELSE, Concept
from metrics.presence import Presence

SEED = 777


def calibrate(art_folder: Path, weights: Path = WEIGHTS) -> None:
    """Write `calibration.json` beside each judge's weights."""
    model, rng = load(weights / "pipeline"), np.random.default_rng(SEED)
    art, noise = Art(art_folder, held_out=True), torch.Generator().manual_seed(SEED)
    labels = every_label()
    drawn = as_tensor([art.image(label, rng) for label in labels])
    decoded = torch.cat([through(model.vae, part, 0, noise) for part in drawn.split(64)])
    unknown, kinds = zip(*(art.other_image(rng) for _ in range(400)), strict=True)
    broken = torch.cat([broken_images(decoded, model.vae, rng, noise, n=300), stopped(model, labels)])
    for judge in ("judge", "second"):
        method = Presence(model=f"mini:{judge}")
        card = {
            name: rates(method, load_concept(name), (drawn, decoded), labels, (as_tensor(list(unknown)), kinds), broken)
            for name in cards()
        }
        text = json.dumps({"identity": method.identity(), "concepts": card}, indent=1)
        (weights / judge / "calibration.json").write_text(text + "\n")


def stopped(model: Model, labels: list[Label], count: int = 128) -> Tensor:
    """Images of the mini model whose sampling ends after half of 25 steps: `(count, 3, 64, 64)`."""
    texts = [
        f"a {x.style} style emoji of a {x.object} on a {x.background} background"
        for x in labels[:: len(labels) // count]
    ]
    z_T = start_noise([SEED + i for i in range(count)], model.latent_shape)
    with torch.no_grad():
        text, null = model.encode_text(texts[:count]), model.encode_text([""]).expand(count, -1, -1)
        return model.decode(sample(model, z_T, text, null, steps=25, guidance=3.0, stop=12))


def rates(
    method: Presence,
    concept: Concept,
    renders: tuple[Tensor, Tensor],
    labels: list[Label],
    unknown: tuple[Tensor, Any],
    broken: Tensor,
) -> dict[str, float]:
    """True and false positive rates of one concept."""
    part, at = concept.kind, list(concept.labels).index(concept.name)

    def seen(images: Tensor) -> Tensor:
        return method.probabilities(images, concept)[:, at] >= method.threshold

    present = torch.tensor([getattr(label, part) == concept.name for label in labels])
    drawn, decoded = (seen(images) for images in renders)
    strangers = torch.tensor([getattr(kind, part) != concept.name for kind in unknown[1]])
    assert ELSE in concept.labels
    return {
        "true_positive_drawn": share(drawn[present]),
        "true_positive_decoded": share(decoded[present]),
        "false_positive_known": share(torch.cat([drawn[~present], decoded[~present]])),
        "false_positive_unknown": share(seen(unknown[0])[strangers]),
        "false_positive_broken": share(seen(broken)),
    }


def share(hits: Tensor) -> float:
    """The mean of booleans, rounded to four places."""
    return round(float(hits.float().mean()), 4)
