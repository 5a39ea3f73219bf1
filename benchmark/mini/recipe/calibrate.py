"""A calibration card for each judge: how often it is right on held-out pictures, and sees what is not there.

true_positive_drawn, _decoded   held-out renders of the concept, as drawn and through the autoencoder
false_positive_known            renders of the other known objects (or styles)
false_positive_unknown          renders of emoji that no judge was trained on
false_positive_empty            blank and noisy pictures, and sampling runs of the mini model stopped half way
false_positive_mixed            shredded pictures and blends of two, whose colours and strokes are real
positives, negatives            how many pictures with and without the concept the smallest kind has
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmark.data import load_concept
from benchmark.data.cards import cards
from benchmark.diffusion import Model, sample
from benchmark.mini import WEIGHTS
from benchmark.mini.recipe.dataset import Art, Label, as_tensor, every_label
from benchmark.mini.recipe.pool import broken_images, through
from benchmark.mini.subjects import BACKGROUNDS, SUBJECTS, draw
from benchmark.model import load
from benchmark.model.generate import start_noise
from benchmark.types import Concept
from metrics.presence import Presence
from metrics.similarity import Similarity

SEED = 777


def calibrate(art_folder: Path, weights: Path = WEIGHTS) -> None:
    """Write `calibration.json` beside each judge's weights."""
    model, rng = load(weights / "pipeline"), np.random.default_rng(SEED)
    art, noise = Art(art_folder, held_out=True), torch.Generator().manual_seed(SEED)
    labels = every_label()
    drawn = as_tensor([art.image(label, rng) for label in labels])
    decoded = torch.cat([through(model.vae, part, 0, noise) for part in drawn.split(64)])
    strangers, kinds = zip(*(art.other_image(rng) for _ in range(400)), strict=True)
    broken = broken_images(decoded, model.vae, rng, noise, n=300)
    images = {
        "drawn": drawn,
        "decoded": decoded,
        "unknown": as_tensor(list(strangers)),
        "empty": torch.cat([broken[:120], broken[240:], stopped(model, labels)]),
        "mixed": broken[120:240],
    }
    for judge in ("judge", "second"):
        method = Presence(model=f"mini:{judge}")
        seen: dict[str, dict[str, Tensor]] = {}
        known = [name for name in cards("mini") if not load_concept(name).drawn]
        for concept in map(load_concept, known):
            if concept.kind not in seen:
                seen[concept.kind] = {name: method.probabilities(x, concept) for name, x in images.items()}
        card = {name: rates(load_concept(name), seen, labels, list(kinds), float(method.rule)) for name in known}
        others = torch.cat([images["drawn"], images["unknown"]])
        taught = {name: subject_rates(judge, name, others) for name in SUBJECTS}
        text = json.dumps({"identity": method.identity(), "concepts": card, "subjects": taught}, indent=1)
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
    concept: Concept,
    seen: dict[str, dict[str, Tensor]],
    labels: list[Label],
    kinds: list[Label],
    threshold: float,
) -> dict[str, float]:
    """True and false positive rates of one concept, from the judge's probabilities on each set of images; counts."""
    at = list(concept.labels).index(concept.name)
    hits = {name: p[:, at] >= threshold for name, p in seen[concept.kind].items()}
    present = torch.tensor([getattr(label, concept.kind) == concept.name for label in labels])
    others = torch.tensor([getattr(kind, concept.kind) != concept.name for kind in kinds])
    return {
        "true_positive_drawn": share(hits["drawn"][present]),
        "true_positive_decoded": share(hits["decoded"][present]),
        "false_positive_known": share(torch.cat([hits["drawn"][~present], hits["decoded"][~present]])),
        "false_positive_unknown": share(hits["unknown"][others]),
        "false_positive_empty": share(hits["empty"]),
        "false_positive_mixed": share(hits["mixed"]),
        "positives": int(present.sum()),
        "negatives": min(int(others.sum()), int((~present).sum()), len(hits["empty"]), len(hits["mixed"])),
    }


def subject_rates(judge: str, name: str, others: Tensor, count: int = 64) -> dict[str, float]:
    """The threshold that leaves 2 % of other pictures above it, and how many drawings are."""
    metric, places = Similarity(model=f"mini:{judge}"), list(BACKGROUNDS)
    drawings = torch.stack([draw(name, places[i % len(places)], i, "calibration") for i in range(count)])
    ranked = metric.cosines(others, name).sort().values
    threshold = math.ceil(1e4 * float(ranked[math.floor(0.98 * len(ranked))])) / 1e4
    return {
        "threshold": threshold,
        "true_positive": share(metric.cosines(drawings.float() / 255, name) >= threshold),
        "false_positive": share(metric.cosines(others, name) >= threshold),
    }


def share(hits: Tensor) -> float:
    """The mean of booleans, rounded to four places."""
    return round(float(hits.float().mean()), 4)
