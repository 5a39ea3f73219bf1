"""What a metric must do: one number for each image whatever the batch, or a distance that is one."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from benchmark.data import load_concept
from benchmark.errors import PluginError
from benchmark.kit.conformance.classes import check_class
from benchmark.kit.conformance.expect import expect, global_state_kept, seeded
from benchmark.kit.conformance.tiny import small
from benchmark.types import Prompt
from metrics.base import ImageMetric, Metric, PairMetric, ReferenceMetric, SetMetric
from metrics.embedders import embed

CARD = "robot"  # what metrics that read a card are given: the judges know it, and code draws it


def check_metric(cls: type[Metric], fields: Mapping[str, Any] | None = None) -> None:
    """Run all checks of a metric, as `check_defense`."""
    check_class(cls, Metric, fields)
    method = small(cls, fields)
    scores_black_white_and_grey(method)
    scores_whatever_the_batch(method)
    measures_distances(method)


def scores_black_white_and_grey(method: Metric) -> None:
    """One number an image (or a set), within the bounds; it says who it is."""
    images = torch.stack([torch.full((3, 64, 64), v) for v in (0.0, 0.5, 1.0)])
    prompts = [Prompt(text=f"a {CARD}", split="concept", label=CARD)] * 3
    with global_state_kept():
        values = per_image(method, images, prompts, images.flip(0))
    if isinstance(method, SetMetric):
        g = embed(method.embedder, images.flip(0) * 0.9)
        values = torch.tensor([method.distance(values, g, rng=Generator())["value"]])
    count, (low, high) = 1 if method.per == "set" else 3, method.bounds
    expect(values.shape == (count,), f"{count} numbers", tuple(values.shape))
    expect(bool(((values >= low) & (values <= high)).all()), f"numbers from {low} to {high}", values.tolist())
    expect(method.identity(), "an identity that names the variant", "an empty one")


def scores_whatever_the_batch(method: Metric) -> None:
    """Four images together have the numbers that each has alone."""
    images, others = torch.rand(2, 4, 3, 64, 64, generator=seeded(0))
    prompts = [Prompt(text=t, split="concept", label=CARD) for t in ("a cat", "a dog", "a key", "a car")]
    together = per_image(method, images, prompts, others)
    beside = [others if method.per == "reference" else others[i : i + 1] for i in range(4)]
    single = [per_image(method, images[i : i + 1], prompts[i : i + 1], beside[i]) for i in range(4)]
    alike = torch.allclose(together, torch.cat(single), rtol=1.3e-6, atol=1e-5, equal_nan=True)
    expect(alike, f"{torch.cat(single).tolist()} for images together as alone", together.tolist())


def measures_distances(method: Metric) -> None:
    """Same seed, same numbers; symmetric; further for sets further apart; an interval is around its value."""
    if not isinstance(method, SetMetric):
        expect(method.per in ("image", "pair", "reference"), "per to be image, pair, reference or set", method.per)
        return
    f, g = torch.nn.functional.normalize(torch.randn(2, 40, 8, generator=seeded(0)), dim=-1)
    with global_state_kept():
        found, again, back, far = (
            dict(method.distance(a, b, rng=seeded(3))) for a, b in ((f, g), (f, g), (g, f), (f, g + 0.5))
        )
    expect(set(found) >= {"value", "ci_low", "ci_high"}, "value, ci_low and ci_high", sorted(found))
    expect(repr(found) == repr(again), "the same numbers for the same seed", again)  # NaN is where it was
    symmetric = math.isclose(back["value"], found["value"], rel_tol=1e-9, abs_tol=1e-12)
    expect(symmetric, f"the same distance the other way, {found['value']}", back["value"])
    expect(far["value"] > found["value"], "a larger distance between sets further apart", far["value"])
    inside = math.isnan(found["ci_low"]) or found["ci_low"] < found["value"] < found["ci_high"]
    expect(inside, "an interval around the value", found)
    expect(method.embedded_by() in method.identity(), "the embedder's identity in the metric's", method.identity())


def per_image(method: Metric, images: Tensor, prompts: list[Prompt], others: Tensor) -> Tensor:
    """What a metric computes image by image: its value or, for a distance between sets, its features."""
    if isinstance(method, ImageMetric):
        return method.score(images, prompts, load_concept(CARD) if method.reads_concept else None)["value"]
    if isinstance(method, PairMetric | ReferenceMetric):
        return method.score(images, prompts, others)["value"]
    if isinstance(method, SetMetric):
        return embed(method.embedder, images)
    raise PluginError(
        f"expected a metric of images, pairs, references or sets, got {type(method).__name__}: see metrics.base."
    )
