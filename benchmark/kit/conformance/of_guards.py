"""What a guard must do: the same for an image whatever stands beside it, with gradients, and nothing lasting."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from benchmark.diffusion import Model, sample
from benchmark.guard import Guard, guarded
from benchmark.kit.conformance.expect import expect, seeded
from benchmark.types import Concept
from defenses.base import GuardDefense

STEPS, SCALE = 4, 3.0


def check_guard(
    method: GuardDefense, model: Model, concept: Concept, modules: Mapping[str, Tensor] | None = None
) -> None:
    """Run all checks of a defense's guard, which is given its extra layers if it has some."""
    guard = method.guard(concept)
    expect(type(guard) is method.guarding, f"a guard of the class {method.guarding.__name__}", type(guard).__name__)
    is_kept_as_json(guard)
    guard = guard.fitted(modules or {})
    parts = [name for name in ("read", "read_words", "course", "finish") if replaces(guard, name)]
    expect(parts, "a guard that replaces read, course or finish", "none of them")
    draws_each_image_alone(guarded(model, guard, SCALE))


def is_kept_as_json(guard: Guard) -> None:
    """Its fields are its defense's result, and it is made of them again."""
    own = vars(type(guard)).get("__dataclass_params__")
    expect(is_dataclass(guard) and own and own.frozen, "a frozen dataclass", type(guard).__name__)
    kind: Any = TypeAdapter(type(guard))
    again = kind.validate_json(kind.dump_json(guard))
    expect(again == guard, f"{guard} after a round trip through JSON", again)


def replaces(guard: Guard, name: str) -> bool:
    """Whether it has a part of its own."""
    return getattr(type(guard), name) is not getattr(Guard, name)


def draws_each_image_alone(model: Model) -> None:
    """What it does to one image depends neither on those beside it nor on those before."""
    z = torch.randn(2, *model.latent_shape, generator=seeded(1))
    texts = ["a cat", "a dog"]
    both, again = drawn(model, z, texts), drawn(model, z, texts)
    expect(torch.equal(both, again), "the same images of the same noise", "others: a guard may remember nothing")
    alone = torch.cat([drawn(model, z[i : i + 1], [text]) for i, text in enumerate(texts)])
    gap = float((both - alone).abs().max())
    expect(gap < 1e-4, "the same image alone and beside another", f"one that differs by {gap:.2g}")


def carries_gradients(
    method: GuardDefense, base: Model, concept: Concept, modules: Mapping[str, Tensor] | None = None
) -> None:
    """Who searches words on the guarded model gets a gradient, if words can be searched for on the base."""
    model = guarded(base, method.guard(concept).fitted(modules or {}), SCALE)
    try:
        words = model.words(model.ids(["a cat"])).detach().requires_grad_()
        text = model.encode_words(words)
    except ValueError:  # a family without words
        return
    z = torch.randn(1, *model.latent_shape, generator=seeded(1))
    times = model.times(1, rng=seeded(2))
    (gradient,) = torch.autograd.grad(model.predict(z, times, text).square().sum(), words)
    expect(bool(torch.isfinite(gradient).all() and gradient.any()), "a gradient of a prediction for words", "none")


def drawn(model: Model, z: Tensor, texts: list[str]) -> Tensor:
    """Images of texts."""
    with torch.no_grad():
        text, null = model.encode_text(texts), model.encode_text([""] * len(texts))
        return model.decode(sample(model, z, text, null, steps=STEPS, guidance=SCALE))
