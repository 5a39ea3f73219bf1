"""What a defense must do: train repeatably, touch nothing but what it returns."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmark.diffusion import Model
from benchmark.kit.conformance.classes import check_class
from benchmark.kit.conformance.expect import all_equal, expect, global_state_kept, seeded, silent, unchanged
from benchmark.kit.conformance.needs import says_what_it_uses
from benchmark.kit.conformance.of_guards import carries_gradients, check_guard
from benchmark.kit.conformance.tiny import small, tiny_concept, tiny_examples
from benchmark.kit.conformance.tiny_flow import tiny_for
from benchmark.types import Concept, Delta, Examples
from defenses.base import Defense, GuardDefense, ModuleDefense


def check_defense(cls: type[Defense], fields: Mapping[str, Any] | None = None) -> None:
    """Run all checks of a defense.

    Args:
        cls: the plug-in.
        fields: those that make it small, and those without a default.

    Raises:
        PluginError: it breaks the contract; the message says how.
    """
    check_class(cls, Defense, fields)
    method, concept, examples = small(cls, fields), tiny_concept(), tiny_examples()
    model = tiny_for(method)
    modules = dict[str, Tensor]()
    with unchanged(model), says_what_it_uses(method, model, concept):
        if isinstance(method, ModuleDefense):
            modules = layers_repeatably(method, model, concept, examples)
            delta = protect(method, model, concept, examples)
            expect(delta.is_zero, "a delta that is zero in a guard", "is_zero=False")
        else:
            delta = protects_repeatably(method, model, concept, examples)
        delta_applies(delta, model)
        if isinstance(method, GuardDefense):
            check_guard(method, model, concept, modules)
    if isinstance(method, GuardDefense):
        carries_gradients(method, model, concept, modules)


def protects_repeatably(method: Defense, model: Model, concept: Concept, examples: Examples) -> Delta:
    """Same seed, same delta, which it returns; the global generators stay; only controls and guards change nothing."""
    with global_state_kept():
        first, second = (protect(method, model, concept, examples) for _ in range(2))
    expect(isinstance(first, Delta), "protect to return a Delta", type(first).__name__)
    expect(first.dense.keys() == second.dense.keys(), "the same names in the delta for the same seed")
    unequal = [name for name in first.dense if not torch.equal(first.dense[name], second.dense[name])]
    expect(not unequal, "the same delta for the same seed", f"others at {unequal[:3]}: draw from `rng` only")
    expect(not unequal and all_equal(first.low_rank, second.low_rank), "the same adapters for the same seed")
    idle = method.fidelity == "control" or isinstance(method, GuardDefense)
    expect(first.is_zero == idle, "a delta that is zero in a control or a guard only", f"is_zero={first.is_zero}")
    return first


def delta_applies(delta: Delta, model: Model) -> None:
    """The delta fits the base, and changes what it predicts."""
    changed = [name.partition(".")[0] for name in (*delta.dense, *delta.low_rank)]
    defended = model.with_delta(delta)
    if set(changed) - {"vae"} or not changed:
        z, t, text = torch.zeros(1, *model.latent_shape), torch.tensor(5), ["cat"]
        a, b = (m.predict(z, t, m.encode_text(text)) for m in (model, defended))
        expect(torch.equal(a, b) == delta.is_zero, "a delta that changes the noise predicted unless it is zero")


def layers_repeatably(method: ModuleDefense, model: Model, concept: Concept, examples: Examples) -> dict[str, Tensor]:
    """Same seed, same extra layers, of float32; some of them is not zero."""
    data = dict.fromkeys(method.needed, examples)
    with global_state_kept():
        first, second = (
            method.layers(model, concept, data, rng=seeded(3), report=silent)  # type: ignore[arg-type]
            for _ in range(2)
        )
    expect(first.keys() == second.keys() and bool(first), "the same names of extra layers for the same seed", "others")
    unequal = [name for name in first if not torch.equal(first[name], second[name])]
    expect(not unequal, "the same extra layers for the same seed", f"others at {unequal[:3]}: draw from `rng` only")
    strange = [name for name, tensor in first.items() if tensor.dtype != torch.float32]
    expect(not strange, "float32 in extra layers", strange[:3])
    expect(any(bool(tensor.any()) for tensor in first.values()), "extra layers that are not zero", "zeros")
    return first


def protect(method: Defense, model: Model, concept: Concept, examples: Examples) -> Delta:
    """What a defense returns when it gets what it declares."""
    return method.protect(model, concept, dict.fromkeys(method.needed, examples), rng=seeded(3), report=silent)  # type: ignore[arg-type]
